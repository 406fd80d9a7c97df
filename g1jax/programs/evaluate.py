"""The program `g1jax evaluate`: plays and writes results, replays, a report and films; or compares two results."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from g1jax import settings
from g1jax.analysis.transfer import game_of
from g1jax.endpoint.client import Budget, Endpoint
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.envs.core import Game
from g1jax.errors import EvaluationError, G1Error
from g1jax.evaluation import console, media, players, replay, report, results, tables
from g1jax.evaluation.endpoint_player import play_remote
from g1jax.evaluation.protocol import Episodes, Player, play
from g1jax.evaluation.results import Result
from g1jax.files import file_name, require_writable
from g1jax.programs import command_line
from g1jax.programs.machine import all_devices
from g1jax.programs.shared import folder_name, games_of, parse_games, print_results, progress_line
from g1jax.rl.observation import Observation, Shown
from g1jax.rl.observation import about as recorded
from g1jax.rl.prompts import Templates, override, prompt_of, read_templates
from g1jax.training.bucket import is_url, local_copy
from g1jax.training.saved_model import SHIPPED, is_model, load_policy
from g1jax.training.saved_run import open_setup, policy_of_run
from g1jax.vlm.config import ImageSize

ON_DEVICE: dict[str, Callable[[], Player]] = {"random": players.random_player, "expert": players.expert_player}


DESCRIPTION = """Evaluates a player on the games: metrics with confidence intervals, a report page, comparisons.

    {command} --player=random --games=all --episodes=1000 --steps=100 --seed=0 --out=evaluations/random
    {command} --player=runs/g1_swap --games=swap --film=gif
    {command} --player=openai --endpoint.model=… --endpoint.base-url=http://localhost:8000/v1
    {command} --compare evaluations/g1_swap evaluations/random

The same command resumes an interrupted evaluation through an endpoint. The endpoint's key is read from OPENAI_API_KEY.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluates a player on the games, or compares two results."""

    player: str = "random"
    """`random`, `expert`, `openai` (see the endpoint's options), `g1-nano` or `base` (the models that ship), or the
    folder of a training run or of a Qwen2.5-VL model."""
    games: str = ""
    """Comma-separated game ids, optionally with presets: `swap,shisen_sho:base+noisy`; or `all`. A run plays the games
    that it was trained on at its own levels. Empty: a run's own games, all games for other players."""
    episodes: settings.Episodes | None = None
    """Episodes of each game. Default: 1000; 10 through an endpoint, where steps may cost money, as in the paper."""
    steps: settings.Steps = EPISODE_STEPS
    """Steps of each episode; a finished board is reset."""
    seed: settings.Seed = 0
    """Seed of the boards and of the sampling."""
    out: Path | None = None
    """The output folder. Default: `evaluations/<player>`."""
    temperature: settings.Temperature = 1.0
    """Sampling temperature of a policy. 0: greedy."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompt templates by game, or `@file`: `--prompts swap @swap.txt game_2048 "Play."`. Default: the policy's own,
    for an endpoint each game's own."""
    observation: Shown = ()
    """What the player is shown: `picture`, `caption` (the true board as text), or both; without the rules or the goal
    that a prompt marks: `no_rules`, `no_goal`. `--observation caption`: text only. Default: what the policy was trained
    with, for an endpoint the picture."""
    image_size: ImageSize = ()
    """(height, width) in pixels to which frames are resized for the policy. Default: as it was trained."""
    sees: bool = False
    """Gives the policy the true perception, to measure its reasoning alone."""
    record: Annotated[int, settings.Range(0, 10_000)] = 3
    """Maximum number of episodes of each game to replay in the report."""
    film: Literal["none", "gif", "mp4", "both"] = "none"
    """Also write a film of the recorded episodes of each game, side by side."""
    curves: Path | None = None
    """A training run whose `metrics.jsonl` the report shows. Default: the player, if it is a run."""
    beside: tuple[Path, ...] = ()
    """Other results to show in the tables."""
    compare: tuple[Path, Path] | None = None
    """Only print the paired differences of two results, A minus B."""
    endpoint: Endpoint = field(default_factory=Endpoint)


def main(arguments: Sequence[str], command: str) -> int:
    """Runs the program; returns the exit status."""
    description = DESCRIPTION.format(command=command)
    return command_line.main("evaluate", Options, all_devices()(evaluate), arguments, description, command)


def evaluate(options: Options) -> None:
    """Runs the program.

    Raises:
        EvaluationError, ExperimentError, LevelError: an option is invalid or the evaluation fails; the message is one
            line.
    """
    settings.check(options, EvaluationError)
    if options.compare is not None:
        a, b = map(results.load, options.compare)
        console.show(tables.differences_as_markdown(a, b, results.compare(a, b)))
        return
    options = _with_defaults(options)
    templates = read_templates(options.prompts)
    for name in ("prompts", "observation", "image_size"):
        is_read = options.player not in ON_DEVICE or not getattr(options, name)
        EvaluationError.require(is_read, f"{name}: {options.player} reads none")
    EvaluationError.require(
        options.player != "openai" or not options.image_size, "image_size: for an endpoint set --endpoint.image-side"
    )
    others = [results.load(path) for path in options.beside]
    games = games_for_run(options.games, Path(options.player)) if _is_run(options) else games_of(options.games)
    observation, player, prompts = Observation.of(options.observation), None, {}
    if options.player == "openai":
        prompts = {label: prompt_of(templates, game, observation) for label, game in games.items()}
    else:
        player = player_named(
            options.player, tuple(games.values()), options.temperature, options.sees, templates, options.observation,
            options.image_size,
        )  # fmt: skip
        observation = players.observation_of(player)
    curves = curves_of_run(options)
    out = options.out
    assert out is not None
    media.require_writer(_film_suffixes(options.film))
    films = [f"{file_name(label)}.{suffix}" for label in games for suffix in _film_suffixes(options.film)]
    names = (results.FILE, tables.FILE, replay.FILE, report.FILE, *films)
    require_writable(out, names, EvaluationError, folders=["exchanges"])
    about, episodes = _play_all(options, player, games, prompts, out)
    about |= recorded(observation) | ({"prompts": dict(templates)} if templates else {})
    result = results.result_of(about, episodes)
    write(out, result, episodes, others, curves)
    if options.film != "none":
        film(out, episodes, options.film)
    print_results(out, tables.FILE)


def _with_defaults(options: Options) -> Options:
    """The options, with the defaults that depend on others; a run in a bucket is copied."""
    if is_url(options.player):
        options = dataclasses.replace(options, player=str(local_copy(options.player)))
    is_remote = options.player == "openai"
    episodes = options.episodes if options.episodes is not None else 10 if is_remote else 1000
    name = options.endpoint.model if is_remote else Path(options.player).resolve().name
    out = options.out or Path("evaluations") / folder_name(name, "player")
    return dataclasses.replace(options, episodes=episodes, out=out)


def write(
    out: Path,
    result: Result,
    episodes: dict[str, Episodes],
    others: list[Result],
    curves: report.Curves | None,
) -> None:
    """Writes results.json, results.md, replays.json and report.html."""
    shown = [result, *others]
    results.save(result, out)
    (out / tables.FILE).write_text(tables.as_markdown(shown), "utf-8")
    replays = replay.replays_of(episodes)
    replay.save(replays, out)
    (out / report.FILE).write_text(report.as_html(shown, replays, curves), "utf-8")


def film(out: Path, episodes: dict[str, Episodes], kind: str) -> None:
    """Writes films of the recorded episodes of each game, side by side: `<game>.gif`, `<game>.mp4`."""
    for label, played in episodes.items():
        if played.recorded is not None:
            frames = media.side_by_side(replay.film_of(played))
            for suffix in _film_suffixes(kind):
                media.write_film(out / f"{file_name(label)}.{suffix}", frames)


def _film_suffixes(kind: str) -> tuple[str, ...]:
    return {"none": (), "both": ("gif", "mp4")}.get(kind, (kind,))


def games_for_run(names: str, folder: Path) -> dict[str, Game[Any]]:
    """The games of `id,id:preset+preset` for a training run, by label; empty: the run's own games.

    The run's own games keep the levels that it was trained on, also under presets.
    """
    setup = open_setup(folder)
    own = {game.id: game for game in setup.games}
    if not names:
        return own
    return {
        trial.label: own[trial.label] if trial.label in own else game_of(trial, setup.experiment)
        for trial in parse_games(names)
    }


def curves_of_run(options: Options) -> report.Curves | None:
    """The curves to show: those of `options.curves`, or of the player's run."""
    if options.curves is not None:
        return report.read_curves(options.curves)
    own = Path(options.player) / report.METRICS
    return report.read_curves(own, may_be_none=True) if _is_run(options) and own.is_file() else None


def _is_run(options: Options) -> bool:
    if options.player in (*ON_DEVICE, "openai") or is_model(options.player):
        return False
    known = ", ".join([*ON_DEVICE, "openai", *SHIPPED])
    message = f"no player {options.player!r}: expected one of {known}, or the folder of a training run or a model"
    EvaluationError.require(Path(options.player).is_dir(), message)
    return True


def _play_all(
    options: Options, player: Player | None, games: dict[str, Game[Any]], prompts: Mapping[str, str], out: Path
) -> tuple[dict[str, Any], dict[str, Episodes]]:
    """The player's description for the results, and its episodes by game. Player None: the endpoint, with `prompts`."""
    counts = (options.episodes or 0, options.steps, options.seed)
    about, episodes = {"name": options.endpoint.model, "kind": "openai", **options.endpoint.setting()}, {}
    if player is not None:
        kind = options.player if options.player in ON_DEVICE else "run" if _is_run(options) else "model"
        about = {"name": player.name, "kind": kind}
        if kind in ("run", "model"):
            about |= {"temperature": options.temperature, "sees": options.sees}
    budget = Budget.of(options.endpoint)
    for label, game in games.items():
        common: dict[str, Any] = {"num_recorded": options.record, "on_progress": progress_line(label)}
        if player is not None:
            episodes[label] = play(game, player, *counts, **common)
        else:
            log = out / "exchanges" / f"{file_name(label)}.jsonl"
            common |= {"prompt": prompts[label], "observation": Observation.of(options.observation)}
            episodes[label] = play_remote(game, options.endpoint, log, *counts, budget=budget, **common)
    return about, episodes


def _size_note(image_size: ImageSize) -> str:
    """Part of a player's name: how its images are resized, if not as it was trained."""
    return f" ({image_size[0]}×{image_size[1]})" if image_size else ""


def player_named(
    name: str,
    games: Sequence[Game[Any]],
    temperature: float = 1.0,
    sees: bool = False,
    templates: Templates = (),
    shown: Shown = (),
    image_size: ImageSize = (),
) -> Player:
    """A player on the device: a built-in one by name, or the policy of a run or a model.

    `templates`, `shown`, `image_size`: prompts, an observation and a size of images instead of the policy's own.

    Raises:
        EvaluationError: there is no such player, the folder has no usable policy, or a game's prompt or picture does
            not suit it.
    """
    if name in ON_DEVICE:
        return ON_DEVICE[name]()
    try:
        policy, params = load_policy(name) if is_model(name) else policy_of_run(name)
        policy = dataclasses.replace(policy, templates=override(policy.templates, templates))
        observation = Observation.of(shown) if shown else policy.observation
        if image_size:
            vision = dataclasses.replace(policy.config.vision, image_size=image_size)
            policy = dataclasses.replace(policy, config=dataclasses.replace(policy.config, vision=vision))
        policy = dataclasses.replace(players.prepared(policy, temperature, games), observation=observation)
        for game in games:
            policy.prompt_tokens(game)
    except G1Error as error:
        raise EvaluationError(str(error)) from None
    name = Path(name).resolve().name + (" (sees)" if sees else "") + _size_note(image_size)
    return players.policy_player(policy, params, name=name, given_perception=sees)
