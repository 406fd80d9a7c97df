"""What `train/evaluate.py` does: plays, and writes results, replays, a report and films; or compares two results."""

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from g1jax import envs, settings
from g1jax.analysis.transfer import Trial, game_of
from g1jax.endpoint.client import Budget, Endpoint
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.envs.core import Game
from g1jax.errors import EvaluationError, G1Error
from g1jax.evaluation import media, players, replay, report, results, tables
from g1jax.evaluation.endpoint_player import play_remote
from g1jax.evaluation.protocol import Episodes, Player, Progress, play
from g1jax.evaluation.results import Result
from g1jax.files import file_name, require_writable
from g1jax.terminal import one_line, printable, printable_lines
from g1jax.training.saved_run import open_setup, policy_of_run

ON_DEVICE: dict[str, Callable[[], Player]] = {"random": players.random_player, "expert": players.expert_player}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Puts a player through the games, or compares two results."""

    player: str = "random"
    """`random`, `expert`, `openai` (see the endpoint's options), or the folder of a training run."""
    games: str = ""
    """Game ids with commas between, each with presets if wanted: `swap,shisen_sho:base+noisy`; or `all`. A run plays a
    game that it learnt at the level it learnt. Empty: a run's own games, all games for other players."""
    episodes: settings.Episodes | None = None
    """Of each game. If not given 1000; through an endpoint, where each step may cost, 10 as in the paper."""
    steps: settings.Steps = EPISODE_STEPS
    """Of each episode; a board that ends is followed by a fresh one."""
    seed: settings.Seed = 0
    out: Path | None = None
    """The folder to write to; `evaluations/<player>` if not given."""
    temperature: settings.Temperature = 1.0
    """That a run's policy draws tokens at. 0: always the likeliest."""
    sees: bool = False
    """A run's policy is given the true perception, and shows how it would reason if it saw everything rightly."""
    record: Annotated[int, settings.Range(0, 10_000)] = 3
    """Episodes of each game that the report replays, at most."""
    film: Literal["none", "gif", "mp4", "both"] = "none"
    """Also films the recorded episodes of each game, side by side."""
    curves: Path | None = None
    """A training run whose `metrics.jsonl` the report shows; the player's own if it is a run."""
    beside: tuple[Path, ...] = ()
    """Results that the tables show too."""
    compare: tuple[Path, Path] | None = None
    """Plays nothing: prints the paired differences of two results, A minus B."""
    endpoint: Endpoint = field(default_factory=Endpoint)


def evaluate(options: Options) -> None:
    """Runs the program.

    Raises:
        EvaluationError, LevelError: what cannot be done, in one line.
    """
    settings.check(options, EvaluationError)
    if options.compare is not None:
        ours, theirs = map(results.load, options.compare)
        print(printable_lines(tables.differences_as_markdown(ours, theirs, results.compare(ours, theirs))))
        return
    options = _with_defaults(options)
    others = [results.load(path) for path in options.beside]
    games = games_for_run(options.games, Path(options.player)) if _is_run(options) else games_of(options.games)
    player = None
    if options.player != "openai":
        player = player_named(options.player, tuple(games.values()), options.temperature, options.sees)
    curves = curves_of_run(options)
    out = options.out
    assert out is not None
    media.require_writer(_film_suffixes(options.film))
    films = [f"{file_name(label)}.{suffix}" for label in games for suffix in _film_suffixes(options.film)]
    names = (results.FILE, tables.FILE, replay.FILE, report.FILE, *films)
    require_writable(out, names, EvaluationError, folders=["exchanges"])
    about, episodes = _play_all(options, player, games, out)
    result = results.result_of(about, episodes)
    write(out, result, episodes, others, curves)
    if options.film != "none":
        film(out, episodes, options.film)
    print(printable_lines((out / tables.FILE).read_text("utf-8")))
    print(printable(f"In {out}: {', '.join(sorted(path.name for path in out.iterdir() if path.is_file()))}"))


def _with_defaults(options: Options) -> Options:
    """The options, with those that follow from others."""
    is_remote = options.player == "openai"
    episodes = options.episodes if options.episodes is not None else 10 if is_remote else 1000
    name = options.endpoint.model if is_remote else Path(options.player).resolve().name
    out = options.out or Path("evaluations") / (re.sub(r"[^\w.-]+", "-", name).strip(".-") or "player")
    return dataclasses.replace(options, episodes=episodes, out=out)


def write(
    out: Path,
    result: Result,
    episodes: dict[str, Episodes],
    others: list[Result] | None = None,
    curves: report.Curves | None = None,
) -> None:
    """Writes results.json, results.md, replays.json and report.html."""
    shown = [result, *(others or [])]
    results.save(result, out)
    (out / tables.FILE).write_text(tables.as_markdown(shown), "utf-8")
    replays = replay.replays_of(episodes)
    replay.save(replays, out)
    report.write(out / report.FILE, shown, replays, curves)


def film(out: Path, episodes: dict[str, Episodes], kind: str) -> None:
    """Films the recorded episodes of each game, side by side: `<game>.gif`, `<game>.mp4`."""
    for label, played in episodes.items():
        if played.recorded is not None:
            frames = media.side_by_side(replay.frames_of(played))
            for suffix in _film_suffixes(kind):
                media.write_film(out / f"{file_name(label)}.{suffix}", frames)


def _film_suffixes(kind: str) -> tuple[str, ...]:
    return {"none": (), "both": ("gif", "mp4")}.get(kind, (kind,))


def games_of(names: str) -> dict[str, Game[Any]]:
    """The games of `id,id:preset+preset`, or all, by what they are called there."""
    return {label: envs.make(game_id, preset or None) for label, game_id, preset in _named(names)}


def games_for_run(names: str, folder: Path) -> dict[str, Game[Any]]:
    """The same for a training run, which is asked in the words it learnt: its own games as they are, or with presets.

    Without names its own games.
    """
    setup = open_setup(folder)
    own = {game.id: game for game in setup.games}
    if not names:
        return own
    return {
        label: own[label] if label in own else game_of(Trial(label, game_id, preset), setup.experiment)
        for label, game_id, preset in _named(names)
    }


def _named(names: str) -> list[tuple[str, str, str]]:
    """What each is called, its game's id, and its presets."""
    labels = envs.game_ids() if names in ("", "all") else [name.strip() for name in names.split(",") if name.strip()]
    if not labels:
        raise EvaluationError("name at least one game, such as --games=game_2048, or all")
    return [(label, *label.partition(":")[::2]) for label in labels]


def curves_of_run(options: Options) -> report.Curves | None:
    """The curves to show: of the run that is named, or of the player's own."""
    if options.curves is not None:
        return report.read_curves(options.curves)
    own = Path(options.player) / report.METRICS
    return report.read_curves(own, may_be_none=True) if _is_run(options) and own.is_file() else None


def _is_run(options: Options) -> bool:
    return options.player not in (*ON_DEVICE, "openai")


def _play_all(
    options: Options, player: Player | None, games: dict[str, Game[Any]], out: Path
) -> tuple[dict[str, Any], dict[str, Episodes]]:
    """What the results say of the player (None: the endpoint), and what it did in each game."""
    counts = (options.episodes or 0, options.steps, options.seed)
    about, episodes = {"name": options.endpoint.model, "kind": "openai", **options.endpoint.setting()}, {}
    if player is not None:
        about = {"name": player.name, "kind": options.player if options.player in ON_DEVICE else "run"}
    if _is_run(options):
        about |= {"temperature": options.temperature, "sees": options.sees}
    budget = Budget.of(options.endpoint)
    for label, game in games.items():
        rest: dict[str, Any] = {"num_recorded": options.record, "on_progress": progress_line(label)}
        if player is not None:
            episodes[label] = play(game, player, *counts, **rest)
        else:
            log = out / "exchanges" / f"{file_name(label)}.jsonl"
            episodes[label] = play_remote(game, options.endpoint, log, *counts, budget=budget, **rest)
    return about, episodes


def player_named(name: str, games: Sequence[Game[Any]], temperature: float = 1.0, sees: bool = False) -> Player:
    """A player on the device: by its name, or a policy by the folder of its run.

    Raises:
        EvaluationError: there is no such player, or no policy in the folder.
    """
    if name in ON_DEVICE:
        return ON_DEVICE[name]()
    folder = Path(name)
    if not folder.is_dir():
        known = ", ".join([*ON_DEVICE, "openai"])
        raise EvaluationError(f"no player {name!r}: neither one of {known}, nor the folder of a training run")
    try:
        policy, params = policy_of_run(folder)
        policy = players.prepared(policy, temperature, games)
    except G1Error as error:
        raise EvaluationError(str(error)) from None
    name = folder.resolve().name + (" (sees)" if sees else "")
    return players.policy_player(policy, params, name=name, sees=sees)


def progress_line(label: str, what: str = "steps") -> Progress:
    """Shows how far a game is, on one line of standard error that is written over; once a second at most."""
    start = last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < 1:
            return
        last = now
        end = "\n" if done >= total else "\r"
        told = one_line(f"{label}: {done} of {total} {what}, {now - start:.0f} s")
        print(told, end=end, file=sys.stderr, flush=True)

    return tell
