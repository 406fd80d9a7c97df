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

function chart(title, curves, marks, lead) {
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
  figure.append(make("h3", title), drawing, legend, make("p", lead, "hint"));
  return figure;
}

for (const [game, curves] of Object.entries(data.curves)) {
  const marks = data.points[game] ?? {}, { play, ...rest } = curves; // scores have another scale
  if ([...Object.values(rest), ...Object.values(marks)].some((list) => list.length)) at("charts").append(chart(game, rest, marks, data.leads[game]));
  if (play && play.length) at("charts").append(chart(`${game}, play`, { play }, {}, ""));
}
at("training").hidden = !at("charts").hasChildNodes();

// Replays

let episode = 0, step = 0, timer = 0, isOpen = false; // isOpen: whether the full response is shown
const sheets = data.replays.map((replay) => {
  const image = new Image();
  image.onload = () => data.replays[episode] === replay && show();
  image.src = replay.sheet.startsWith("data:image/") ? replay.sheet : "";
  return image;
});

function draw(replay, now) {
  const canvas = at("frame"), context = canvas.getContext("2d"), sheet = sheets[episode];
  const [top, left, height, width] = replay.frame, piece = replay.piece, columns = replay.grid[1];
  const scale = Math.max(1, Math.round(840 / width)), margin = 44; // pixels, for the labels
  canvas.width = width * scale + margin;
  canvas.height = height * scale + margin;
  if (!sheet.complete || !sheet.naturalWidth) return;
  context.translate(margin, margin);
  drawLabels(context, replay, scale, margin);
  const stored = sheet.naturalWidth / replay.sheet_columns; // the sheet may be downscaled
  context.imageSmoothingEnabled = false;
  replay.places[step].forEach((place, i) => {
    const sx = (place % replay.sheet_columns) * stored, sy = Math.floor(place / replay.sheet_columns) * stored;
    const x = (i % columns) * piece - left, y = Math.floor(i / columns) * piece - top;
    context.drawImage(sheet, sx, sy, stored, stored, x * scale, y * scale, piece * scale, piece * scale);
  });
  const isRead = now.read && now.read.some((kind) => kind >= 0);
  (isRead ? now.read : []).forEach((kind, i) => {
    if (kind !== now.true[i]) outline(context, replay, scale, Math.floor(i / replay.cols), i % replay.cols, kind < 0 ? "#7d8590" : "#e5322d", 2);
  });
  const [cells, direction] = now.move;
  for (const [r, c] of cells) outline(context, replay, scale, r, c, "#dc1e8c", 0);
  if (direction) drawArrow(context, replay, scale, direction);
}

// The place of a cell on the canvas, and its size.
function place(replay, scale, r, c) {
  const x = (replay.board[1] - replay.frame[1] + c * replay.piece) * scale;
  const y = (replay.board[0] - replay.frame[0] + r * replay.piece) * scale;
  return [x, y, replay.piece * scale];
}

function drawLabels(context, replay, scale, margin) {
  context.fillStyle = getComputedStyle(context.canvas).color;
  context.font = `${margin * 0.7}px sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let r = 0; r < replay.rows; r++) context.fillText(r, -margin / 2, place(replay, scale, r + 0.5, 0)[1]);
  for (let c = 0; c < replay.cols; c++) context.fillText(c, place(replay, scale, 0, c + 0.5)[0], -margin / 2);
}

// The outline of a cell, inside as many others; white within, so that it is visible on a tile of its color too.
function outline(context, replay, scale, r, c, mark, others) {
  const [x, y, side] = place(replay, scale, r, c), line = Math.max(3, side * 0.06);
  for (const [color, n] of [["#ffffff", others + 1], [mark, others]]) {
    const inset = line * (n + 0.5);
    context.lineWidth = line;
    context.strokeStyle = color;
    context.strokeRect(x + inset, y + inset, side - 2 * inset, side - 2 * inset);
  }
}

function drawArrow(context, replay, scale, direction) {
  const [x, y, side] = place(replay, scale, replay.rows / 2, replay.cols / 2);
  const [dx, dy] = { up: [0, -1], right: [1, 0], down: [0, 1], left: [-1, 0] }[direction];
  context.beginPath();
  for (const [along, across] of [[-0.5, 0.12], [0.2, 0.12], [0.2, 0.32], [0.75, 0], [0.2, -0.32], [0.2, -0.12], [-0.5, -0.12]]) {
    context.lineTo(x + side * (along * dx - across * dy), y + side * (along * dy + across * dx));
  }
  context.closePath();
  context.fillStyle = "#dc1e8c";
  context.strokeStyle = "#ffffff";
  context.lineWidth = 4;
  context.fill();
  context.stroke();
}

// The board as it was read: a table whose wrong cells are marked.
function boardRead(replay, now) {
  const board = make("table", undefined, "board"), body = board.createTBody();
  const top = board.createTHead().insertRow();
  for (let c = -1; c < replay.cols; c++) top.append(make("th", c < 0 ? "" : c));
  for (let r = 0; r < replay.rows; r++) {
    const line = body.insertRow();
    line.append(make("th", r));
    for (let c = 0; c < replay.cols; c++) {
      const kind = now.read[r * replay.cols + c], isRight = kind === now.true[r * replay.cols + c];
      const cell = make("td", kind < 0 ? "?" : replay.names[kind], isRight ? "" : kind < 0 ? "unread" : "wrong");
      if (!isRight) cell.title = `is ${replay.names[now.true[r * replay.cols + c]]}`;
      line.append(cell);
    }
  }
  const scroll = make("div", undefined, "scroll");
  scroll.append(board);
  return scroll;
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

function showResponse(replay, now) {
  const box = at("response");
  box.replaceChildren();
  if (now.response === null) return;
  for (const [tag, title] of [["perception", "What it saw"], ["think", "What it thought"]]) {
    const content = part(now.response, tag);
    if (content === null || !content.trim()) continue;
    const isBoard = tag === "perception" && now.read && now.read.some((kind) => kind >= 0);
    box.append(make("h3", title), isBoard ? boardRead(replay, now) : make("pre", content.trim()));
  }
  const whole = now.response + (now.left_out ? `\n[${now.left_out} characters left out]` : "");
  const details = make("details"), text = make("pre", whole === "" ? "(empty)" : whole);
  text.id = "whole";
  details.open = isOpen || !box.hasChildNodes();
  details.addEventListener("toggle", () => { isOpen = details.open; });
  details.append(make("summary", "Full response"), text);
  box.append(details);
}

function show() {
  const replay = data.replays[episode], now = replay.steps[step];
  draw(replay, now);
  at("slider").max = replay.steps.length - 1;
  at("slider").value = step;
  at("place").textContent = `step ${step + 1} of ${replay.steps.length}`;
  const answer = now.invalid ? "unreadable answer" : now.answer;
  at("caption").textContent = visible(`Step ${step + 1}: ${answer}, reward ${now.reward}, score ${now.score}`);
  at("misread").textContent = visible(misread(replay, now));
  showFacts(now);
  showResponse(replay, now);
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
