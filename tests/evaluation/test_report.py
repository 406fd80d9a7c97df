"""The report: its content, and its behavior in a real browser."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from g1jax import envs
from g1jax.evaluation import EvaluationError, play, random_player, report, result_of
from g1jax.evaluation.protocol import Episodes
from g1jax.evaluation.replay import SHEET_BYTES, frames_of, replays_of
from tests.evaluation.browser import CHROMIUM, Page, browsing

GAME = envs.make("game_2048")
NUM_STEPS = 6
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\"'`\0\u2028\u202e<!--"
BOARD = "2 | - | - | -\n- | - | - | -\n- | - | - | -\n- | - | - | 4"


def played(game: Any = GAME, responses: list[list[str]] | None = None, num_episodes: int = 2) -> Episodes:
    """Random play, with given responses."""
    episodes = play(game, random_player(), num_episodes, NUM_STEPS, num_recorded=num_episodes)
    if responses is None:
        return episodes
    assert episodes.recorded is not None
    is_exact: Any = np.zeros((num_episodes, NUM_STEPS), bool)
    steps = dataclasses.replace(episodes.steps, is_exact=is_exact)
    return dataclasses.replace(
        episodes, steps=steps, recorded=dataclasses.replace(episodes.recorded, responses=responses)
    )


def page_of(
    episodes: Episodes,
    name: str = "ours",
    curves: report.Curves | None = None,
    points: report.Points | None = None,
    **options: bool,
) -> str:
    result = result_of({"name": name}, {"game_2048": episodes})
    return report.as_html([result], replays_of({"game_2048": episodes}), curves, points, **options)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def frames_from(replay: dict[str, Any]) -> np.ndarray:
    """The frames reconstructed from a sheet and its places."""
    import base64
    import io

    from PIL import Image

    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(replay["sheet"].partition(",")[2]))).convert("RGB"))
    size, columns = replay["piece"], replay["sheet_columns"]
    out = []
    for places in replay["places"]:
        pieces = [sheet[p // columns * size :, p % columns * size :][:size, :size] for p in places]
        rows, cols = replay["grid"]
        frame = np.concatenate([np.concatenate(pieces[r * cols : (r + 1) * cols], axis=1) for r in range(rows)], axis=0)
        top, left, height, width = replay["frame"]
        out.append(frame[top : top + height, left : left + width])
    return np.stack(out)


@pytest.mark.parametrize("keys", [{}, {"frame_size": (140, 126)}, {"noise": 20.0}], ids=str)
def test_a_replay_shows_the_frames_that_were_seen(keys: dict[str, Any]) -> None:
    episodes = played(envs.make("game_2048", **keys))
    frames = frames_of(episodes)
    for i, replay in enumerate(replays_of({"game": episodes})):
        np.testing.assert_array_equal(frames_from(replay), frames[i])


def test_noisy_frames_fit_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("g1jax.evaluation.replay.SHEET_BYTES", 40_000)
    for replay in replays_of({"game": played(envs.make("game_2048", noise=60.0))}):
        assert replay["sheet"].startswith("data:image/jpeg")
        assert len(replay["sheet"]) <= 40_000 < SHEET_BYTES


def test_cells_are_compared_with_what_was_read() -> None:
    responses = [[f"<perception>{BOARD}</perception>"] * NUM_STEPS, ["<perception>4 | x"] * NUM_STEPS]
    first, second = replays_of({"game_2048": played(responses=responses)})
    names = first["names"]
    read = [names[kind] for kind in first["steps"][0]["read"]]
    assert read == ["2", *["-"] * 14, "4"]
    assert second["steps"][0]["read"] == [-1] * 16
    assert replays_of({"game_2048": played()})[0]["steps"][0]["read"] is None
    true = np.reshape([names[kind] for kind in first["steps"][0]["true"]], (4, 4))
    episodes = played()
    assert episodes.recorded is not None
    board = episodes.recorded.states.board[0, 0].reshape(4, 4)
    np.testing.assert_array_equal(true != "-", board != 0)


def test_hostile_text_stays_data() -> None:
    page = page_of(played(responses=[[HOSTILE] * NUM_STEPS] * 2), name="<b>&{{data}}{{script}}")
    assert data_of(page)["replays"][0]["steps"][0]["response"] == HOSTILE
    assert page.count("<script") == 2
    assert "onerror" not in re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    assert "<b>" not in page
    assert "http" not in re.sub(r'http-equiv|"http://www\.w3\.org/2000/svg"', "", page)


def test_long_responses_are_truncated() -> None:
    responses = [["x" * 2_000_000] * NUM_STEPS, ["short"] * NUM_STEPS]
    page = page_of(played(responses=responses))
    assert len(page.encode()) < 3_500_000
    long, short = data_of(page)["replays"]
    assert short["steps"][0]["response"] == "short"
    assert long["steps"][0]["left_out"] + len(long["steps"][0]["response"]) == 2_000_000
    assert len(long["steps"][0]["response"]) > 400_000


def write_metrics(folder: Path, text: str) -> Path:
    (folder / "metrics.jsonl").write_text(text, "utf-8")
    return folder


def test_curves_are_read(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "phase": "rl", "game_2048/perception": 0.9, "game_2048/reward": float("nan"), "loss": 1},
        {"step": 20, "game_2048/perception": 0.95, "swap:base/reasoning": 0.5, "game_2048/other": 1},
    ]
    text = "\n".join(map(json.dumps, lines))
    expected = {"game_2048": {"perception": [(10, 0.9), (20, 0.95)]}, "swap:base": {"reasoning": [(20, 0.5)]}}
    assert report.read_curves(write_metrics(tmp_path, text + '\n{"step": 30, "ga')) == expected
    assert report.read_curves(write_metrics(tmp_path, text + "\n") / "metrics.jsonl") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no curves at"), ("{}\n{}\n", r"jsonl:1: not a line"), ('{"step": 1}\n', "no keys such as")],
)
def test_invalid_curves(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        write_metrics(tmp_path, text)
    with pytest.raises(EvaluationError, match=message):
        report.read_curves(tmp_path)


def test_the_report_says_which_curve_leads() -> None:
    rise = {key: [(float(s), float(s > at)) for s in range(20)] for key, at in (("perception", 5), ("reasoning", 8))}
    leads = data_of(page_of(played(), curves={"a": rise, "b": {"reward": [(0.0, 1.0)]}}))["leads"]
    assert leads["b"] == ""
    assert leads["a"].startswith(
        "P reaches half of its rise at step 6, R at step 9. Their changes correlate best with P 3 points"
    )


def test_reasoning_is_undefined_where_no_board_is_read(tmp_path: Path) -> None:
    lines = [{"step": step, "a/perception": p, "a/reasoning": r} for step, p, r in ((1, 0.0, 0.0), (2, 0.5, 0.0))]
    curves = report.read_curves(write_metrics(tmp_path, "\n".join(map(json.dumps, lines))))
    assert curves == {"a": {"perception": [(1, 0.0), (2, 0.5)], "reasoning": [(2, 0.0)]}}
    assert report.read_curves(write_metrics(tmp_path, '{"step": 1}\n'), may_be_none=True) == {}


def test_points_without_curves_and_published_scores() -> None:
    points: report.Points = {"b": {"seeing": [(5, 0.5, 0.25, 0.75)]}}
    data = data_of(page_of(played(), curves={"a": {"reward": [(0, 1.0)]}}, points=points, published=False))
    assert data["curves"] == {"a": {"reward": [[0, 1.0]]}, "b": {}}
    assert data["points"] == {"b": {"seeing": [[5, 0.5, 0.25, 0.75]]}}
    assert len(data["scores"]["rows"]) == 1
    assert "Published" not in data["about"]
    assert len(data_of(page_of(played()))["scores"]["rows"]) == 1  # nothing is published for so few steps
    alone = {"game_2048": play(GAME, random_player(), 1, 100)}
    late = {"game_2048": dataclasses.replace(alone["game_2048"], game=envs.make("game_2048", preset="late"))}
    for about, others in (({"name": "late"}, late), ({"name": "given the board", "sees": True}, alone)):
        assert len(data_of(report.as_html([result_of(about, others)], []))["scores"]["rows"]) == 1
    paper = page_of(alone["game_2048"])
    assert len(data_of(paper)["scores"]["rows"]) == 9
    assert "Published" in data_of(paper)["about"]


# In the browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    path = tmp_path_factory.mktemp("report") / "report.html"
    responses = [[HOSTILE, f"<perception>{BOARD}</perception><think>{HOSTILE}</think>", "", "3", "4", "5"]] * 2
    curves: report.Curves = {
        "<i>game": {
            "perception": [(0, 0.1), (50, 0.9)],
            "reward": [(0, -1.0), (50, 0.5)],
            "play": [(0, 90.0), (50, 700.0)],
        }
    }
    points: report.Points = {"<i>game": {"seeing": [(25, 0.5, 0.4, 0.6), (50, 0.7, 0.6, 0.8)]}, "b": {"perception": []}}
    path.write_text(page_of(played(responses=responses), name="<b>ours", curves=curves, points=points), "utf-8")
    with browsing() as page:
        page.open(path)
        yield page


def pixels(page: Page) -> str:
    page.run("new Promise(done => requestAnimationFrame(() => done(0)))")
    return str(page.run("document.getElementById('frame').toDataURL()"))


@pytest.mark.slow
def test_the_page_runs_without_errors_or_connections(page: Page) -> None:
    assert page.run("document.querySelectorAll('table').length") == 2
    assert page.run("document.querySelector('tr.ours td').textContent") == "<b>ours"
    assert page.run("document.querySelector('#charts h3').textContent") == "<i>game"
    assert page.run("document.querySelectorAll('#charts polyline').length") == 3
    assert page.run("document.querySelectorAll('#charts polyline.play').length") == 1
    assert page.run("document.querySelectorAll('#charts .point.seeing circle').length") == 2
    assert page.run("document.getElementById('replay').hidden") is False
    assert page.messages == []
    assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}


@pytest.mark.slow
def test_slider_keys_and_buttons_move_the_frames(page: Page) -> None:
    def place() -> Any:
        return page.run("document.getElementById('place').textContent")

    page.run("choose(0)")
    first = pixels(page)
    assert place() == "step 1 of 6"
    page.run("(s => { s.value = 4; s.dispatchEvent(new Event('input')); })(document.getElementById('slider'))")
    assert place() == "step 5 of 6"
    assert pixels(page) != first
    for key, expected in (("ArrowLeft", 4), ("ArrowRight", 5), ("End", 6), ("ArrowRight", 6), ("Home", 1)):
        page.press(key)
        assert place() == f"step {expected} of 6"
    assert pixels(page) == first
    page.press("ArrowDown")
    assert page.run("document.getElementById('episode').selectedIndex") == 1
    assert pixels(page) != first
    page.run("document.getElementById('next').click()")
    assert place() == "step 2 of 6"
    assert page.messages == []


@pytest.mark.slow
def test_hostile_responses_show_as_text_and_do_nothing(page: Page) -> None:
    page.run("choose(0)")
    shown = page.run("document.getElementById('whole').textContent")
    assert shown == HOSTILE.replace("\0", "\u2400").replace("\u2028", "\ufffd").replace("\u202e", "\ufffd")
    page.press("ArrowRight")
    assert "window.hacked=1" in page.run("document.getElementById('response').textContent")
    assert page.run("typeof window.hacked") == "undefined"
    assert page.run("document.querySelectorAll('img, main script').length") == 0
    # Even injected markup does not run.
    page.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')")
    page.run("new Promise(done => setTimeout(done, 300))")
    assert page.run("typeof window.hacked") == "undefined"
    page.messages.clear()


@pytest.mark.slow
def test_misread_cells_are_marked(page: Page) -> None:
    page.run("choose(0)")
    assert "16 cells were not read" in page.run("document.getElementById('misread').textContent")
    page.press("ArrowRight")
    text = page.run("document.getElementById('misread').textContent")
    assert re.match(r"\(\d, \d\) is (-|\d+), was read as (-|\d+)", text)


@pytest.mark.slow
def test_the_board_as_it_was_read_and_the_move(page: Page) -> None:
    page.run("choose(0)")
    assert page.run("document.querySelectorAll('table.board').length") == 0  # no cell was read
    page.press("ArrowRight")
    true, read = (page.run(f"data.replays[0].steps[1].{key}") for key in ("true", "read"))
    assert page.run("document.querySelectorAll('table.board td').length") == 16
    assert page.run("document.querySelectorAll('table.board td.wrong').length") == sum(
        a != b for a, b in zip(true, read, strict=True)
    )
    assert page.run("document.querySelector('table.board td').textContent") == "2"
    caption = page.run("document.getElementById('caption').textContent")
    assert re.fullmatch(r"Step 2: (up|right|down|left), reward -?\d+, score \d+", caption)
    marked = pixels(page)
    page.run("data.replays[0].steps[1].move = [[], '']; show()")
    assert pixels(page) != marked


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_it_fits_in_light_and_dark_wide_and_narrow(page: Page, width: int, tmp_path: Path) -> None:
    backgrounds = set()
    for dark in (False, True):
        page.picture(tmp_path / "page.png", width=width, height=900, dark=dark)
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert page.run("document.documentElement.scrollWidth") <= width
        backgrounds.add(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2
    stage = page.run("getComputedStyle(document.querySelector('.stage')).gridTemplateColumns.split(' ').length")
    assert stage == (1 if width == 390 else 2)
