"use strict";
// The data is untrusted: it is only used in text nodes and numeric attributes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = visible(text);
  if (className) element.className = className;
  return element;
}

// Replaces control characters by visible symbols, and direction marks, which could reverse a line.
function visible(text) {
  return String(text)
    .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "\ufffd");
}

function table(head, rows, classOf) {
  const element = make("table");
  const top = element.createTHead().insertRow();
  for (const cell of head) {
    const name = make("th");
    for (const part of visible(cell).split(/(?<=_)/)) name.append(part, make("wbr")); // long ids may wrap
    top.append(name);
  }
  const body = element.createTBody();
  rows.forEach((row, i) => {
    const line = body.insertRow();
    line.className = classOf ? classOf(i) : "";
    for (const cell of row) {
      const [, main, rest] = /^(.*?)( \(.*\))?$/s.exec(cell); // intervals and "(published …)" are set small
      const place = make("td", main);
      if (rest) place.append(make("small", rest));
      line.append(place);
    }
  });
  return element;
}

at("about").textContent = data.about;
at("scores").append(table(data.scores.head, data.scores.rows, (i) => (i < data.scores.ours ? "ours" : "theirs")));
for (const { game, head, rows } of data.figures) {
  const box = make("div");
  const scroll = make("div", undefined, "scroll");
  scroll.append(table(head, rows));
  box.append(make("h3", game), scroll);
  at("figures").append(box);
}

// Training curves

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// 1, 2 or 5 times a power of ten, so that the range has four to nine grid lines.
function spacing(range) {
  const power = 10 ** Math.floor(Math.log10(range / 4));
  return power * [1, 2, 5].findLast((n) => n * power <= range / 4);
}

// A point with its interval.
function mark(key, x, mean, low, high) {
  const group = svg("g", { class: `point ${key}` });
  group.append(svg("line", { x1: x, x2: x, y1: low, y2: high }), svg("circle", { cx: x, cy: mean, r: 3 }));
  return group;
}

function chart(game, curves, marks) {
  const width = 400, height = 220, left = 40, right = 10, top = 10, bottom = 26;
  const ends = Object.values(marks).flat().flatMap(([step, , low, high]) => [[step, low], [step, high]]);
  const points = [...Object.values(curves).flat(), ...ends];
  const last = Math.max(1, ...points.map((p) => p[0])), first = Math.min(...points.map((p) => p[0]));
  const values = points.map((p) => p[1]), tick = spacing(Math.max(1, ...values) - Math.min(0, ...values));
  const high = Math.ceil(Math.max(1, ...values) / tick) * tick, low = Math.floor(Math.min(0, ...values) / tick) * tick;
  const x = (step) => left + ((step - first) / Math.max(last - first, 1e-9)) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
  const figure = make("figure"), drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  for (let i = 0; i <= Math.round((high - low) / tick); i++) {
    const value = low + tick * i;
    drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, +value.toPrecision(3)));
  }
  for (const [i, anchor] of ["start", "middle", "end"].entries()) {
    const step = first + ((last - first) * i) / 2;
    drawing.append(svg("text", { x: x(step), y: height - 8, "text-anchor": anchor }, Math.round(step)));
  }
  const legend = make("div", undefined, "legend");
  for (const [key, name] of Object.entries(data.curve_names)) {
    if (!curves[key] && !marks[key]) continue;
    const path = (curves[key] ?? []).map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ");
    if (path) drawing.append(svg("polyline", { class: key, points: path }));
    for (const [at, mean, low, high] of marks[key] ?? []) drawing.append(mark(key, x(at), y(mean), y(low), y(high)));
    legend.append(make("span", name, key));
  }
  figure.append(make("h3", game), drawing, legend, make("p", data.leads[game], "hint"));
  return figure;
}

for (const [game, curves] of Object.entries(data.curves)) {
  const marks = data.points[game] ?? {};
  if ([...Object.values(curves), ...Object.values(marks)].some((list) => list.length)) at("charts").append(chart(game, curves, marks));
}
at("training").hidden = !at("charts").hasChildNodes();

// Replays

let episode = 0, step = 0, timer = 0;
const sheets = data.replays.map((replay) => {
  const image = new Image();
  image.onload = () => data.replays[episode] === replay && show();
  image.src = replay.sheet.startsWith("data:image/") ? replay.sheet : "";
  return image;
});

function draw(replay, now) {
  const canvas = at("frame"), context = canvas.getContext("2d"), sheet = sheets[episode];
  const [top, left, height, width] = replay.frame, piece = replay.piece, columns = replay.grid[1];
  const scale = Math.max(1, Math.round(840 / width));
  canvas.width = width * scale;
  canvas.height = height * scale;
  if (!sheet.complete || !sheet.naturalWidth) return;
  const stored = sheet.naturalWidth / replay.sheet_columns; // the sheet may be downscaled
  context.imageSmoothingEnabled = false;
  replay.places[step].forEach((place, i) => {
    const sx = (place % replay.sheet_columns) * stored, sy = Math.floor(place / replay.sheet_columns) * stored;
    const x = (i % columns) * piece - left, y = Math.floor(i / columns) * piece - top;
    context.drawImage(sheet, sx, sy, stored, stored, x * scale, y * scale, piece * scale, piece * scale);
  });
  if (now.read) {
    now.true.forEach((kind, i) => {
      if (now.read[i] === kind) return;
      const x = (replay.board[1] - left + (i % replay.cols) * piece) * scale;
      const y = (replay.board[0] - top + Math.floor(i / replay.cols) * piece) * scale;
      const line = Math.max(3, piece * scale * 0.06);
      const mark = now.read[i] < 0 ? "#7d8590" : "#e5322d";
      for (const [color, inset, wide] of [["#ffffff", line, line], [mark, line / 2, line]]) { // visible on a red tile too
        context.lineWidth = wide;
        context.strokeStyle = color;
        context.strokeRect(x + inset, y + inset, piece * scale - 2 * inset, piece * scale - 2 * inset);
      }
    });
  }
}

function misread(replay, now) {
  if (!now.read) return "";
  const wrong = now.true.map((kind, i) => [kind, now.read[i], i]).filter(([kind, read]) => kind !== read);
  if (wrong.length && wrong.every(([, read]) => read < 0)) return `${wrong.length} cells were not read`;
  const shown = wrong.slice(0, 6).map(([kind, read, i]) => {
    const as = read < 0 ? "was not read" : `was read as ${replay.names[read]}`;
    return `(${Math.floor(i / replay.cols)}, ${i % replay.cols}) is ${replay.names[kind]}, ${as}`;
  });
  return shown.join("; ") + (wrong.length > 6 ? `; and ${wrong.length - 6} more` : "");
}

function fact(name, value, className) {
  at("facts").append(make("dt", name), make("dd", value, className));
}

function showFacts(now) {
  at("facts").replaceChildren();
  fact("Answer", now.invalid ? "unreadable" : now.answer, now.invalid ? "bad" : "");
  if (!now.invalid) fact("Move", now.legal ? "legal" : "illegal", now.legal ? "good" : "bad");
  fact("Reward", now.reward, now.reward > 0 ? "good" : now.reward < 0 ? "bad" : "");
  if (now.exact !== null) fact("Perception", now.exact ? "exact" : "not exact", now.exact ? "good" : "bad");
  if (now.end) fact("Board", "ends here; a new one follows");
}

function part(response, tag) {
  const start = response.indexOf(`<${tag}>`);
  if (start < 0) return null;
  const from = start + tag.length + 2, end = response.indexOf(`</${tag}>`, from);
  return end < 0 ? null : response.slice(from, end);
}

function showResponse(now) {
  const box = at("response");
  box.replaceChildren();
  if (now.response === null) return;
  for (const [tag, title] of [["perception", "What it saw"], ["think", "What it thought"]]) {
    const content = part(now.response, tag);
    if (content !== null && content.trim()) box.append(make("h3", title), make("pre", content.trim()));
  }
  const whole = now.response + (now.left_out ? `\n[${now.left_out} characters left out]` : "");
  box.append(make("h3", "Full response"), make("pre", whole === "" ? "(empty)" : whole));
  box.lastChild.id = "whole";
}

function show() {
  const replay = data.replays[episode], now = replay.steps[step];
  draw(replay, now);
  at("slider").max = replay.steps.length - 1;
  at("slider").value = step;
  at("place").textContent = `step ${step + 1} of ${replay.steps.length}`;
  at("misread").textContent = visible(misread(replay, now));
  showFacts(now);
  showResponse(now);
}

function go(to) {
  const count = data.replays[episode].steps.length;
  step = Math.min(Math.max(to, 0), count - 1);
  show();
}

function choose(to) {
  episode = Math.min(Math.max(to, 0), data.replays.length - 1);
  at("episode").selectedIndex = episode;
  go(0);
}

function run(on) {
  clearInterval(timer);
  timer = on ? setInterval(() => {
    if (step + 1 >= data.replays[episode].steps.length) run(false);
    else go(step + 1);
  }, 300) : 0;
  at("run").textContent = on ? "Pause" : "Play";
}

if (data.replays.length) {
  at("replay").hidden = false;
  data.replays.forEach((replay) => at("episode").append(make("option", `${replay.game}, episode ${replay.episode}`)));
  at("episode").addEventListener("change", (event) => { choose(event.target.selectedIndex); event.target.blur(); });
  at("slider").addEventListener("input", (event) => { run(false); go(Number(event.target.value)); });
  at("previous").addEventListener("click", () => { run(false); go(step - 1); });
  at("next").addEventListener("click", () => { run(false); go(step + 1); });
  at("run").addEventListener("click", () => run(!timer));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const moves = {
      ArrowLeft: () => go(step - 1), ArrowRight: () => go(step + 1), Home: () => go(0), End: () => go(Infinity),
      ArrowUp: () => choose(episode - 1), ArrowDown: () => choose(episode + 1),
      " ": () => run(!timer),
    };
    if (!moves[event.key] || (event.key === " " && event.target.tagName === "BUTTON")) return;
    event.preventDefault();
    if (event.key !== " ") run(false);
    moves[event.key]();
  });
  choose(0);
}
