"""The program `g1jax dataset`: writes a dataset of a teacher's demonstrations."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from g1jax import envs
from g1jax.endpoint.client import Endpoint
from g1jax.envs.core import Game, describe_level
from g1jax.errors import ExperimentError
from g1jax.programs import command_line
from g1jax.programs.machine import keep_programs, require_devices
from g1jax.programs.shared import games_of, print_status, progress_line
from g1jax.rl.prompts import Templates, prompt_of, read_templates
from g1jax.settings import Range, Seed, Share, check
from g1jax.sft.dataset_writer import DatasetWriter, Form
from g1jax.sft.states import StateSource, draw_states, make_examples
from g1jax.teachers import Respond, built_in
from g1jax.teachers.endpoint import ask_endpoint
from g1jax.terminal import printable
from g1jax.training.experiments import load_experiment

EXCHANGES = "exchanges"


DESCRIPTION = """Writes a dataset of demonstrations: states, with a teacher's perception, reasoning and move.

    {command} --out=data/expert --games=all --states=1000
    {command} --out=data/multigame --experiment=g1_multigame --format=parquet
    {command} --out=data/endpoint --teacher=endpoint --model=… --base-url=http://localhost:8000/v1

Train on it with `python train/main.py --cold-start.dataset=data/multigame`; TRL and LLaMA-Factory read it too. The same
command resumes an interrupted dataset. The endpoint's key is read from OPENAI_API_KEY.
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a dataset of demonstrations, for `--cold-start.dataset=…` and for other trainers."""

    out: Path
    """The dataset's folder. With the same options, an interrupted program resumes."""
    games: str = ""
    """Comma-separated game ids, optionally with presets: `swap,shisen_sho:base+noisy`; or `all`. Empty: those of the
    experiment, or all."""
    experiment: str = ""
    """Use the games at this experiment's levels and with its prompts, as its runs need them."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompt templates by game, or `@file`: `--prompts swap @swap.txt game_2048 "Play."`. Default: those of the
    experiment, else each game's own."""
    states: Annotated[int, Range(1, 10**7)] = 1000
    """States of each game."""
    teacher: Literal["expert", "endpoint"] = "expert"
    """`expert`: the built-in teacher; all its demonstrations are written. `endpoint`: a model; demonstrations without a
    reward are dropped."""
    format: Form = "jsonl"
    """`jsonl`: data.jsonl and images. `parquet`: one file, which needs pyarrow."""
    random_moves: Share = 0.5
    """Share of moves between states that are random; the others are the expert's."""
    seed: Seed = 0
    """Seed of the boards and of the sampling."""
    endpoint: Annotated[Endpoint, tyro.conf.arg(name="")] = field(default_factory=Endpoint)


def main(arguments: Sequence[str], command: str) -> int:
    """Runs the program; returns the exit status."""
    description = DESCRIPTION.format(command=command)
    interrupted = "interrupted; run the same command to resume"
    return command_line.main("dataset", Options, _work, arguments, description, command, interrupted=interrupted)


def _work(options: Options) -> None:
    keep_programs()
    require_devices()
    print(printable(str(make_dataset(options))))


def make_dataset(options: Options) -> Path:
    """Runs the program; returns the dataset's file.

    Raises:
        ExperimentError, EvaluationError, LevelError, OSError: an option is invalid or the program fails; the message is
            one line.
    """
    check(options, ExperimentError)
    is_remote = options.teacher == "endpoint"
    ExperimentError.require(bool(options.endpoint.model) or not is_remote, "name the endpoint's model: --model=…")
    games, templates = _games(options), read_templates(_prompts(options))
    source = StateSource(options.states, options.seed, options.random_moves)
    with DatasetWriter(options.out, options.format, _setting(options, games, templates)) as writer:
        if writer.is_done:
            print_status(f"{options.out} is already complete")
            return writer.file
        teachers: dict[str, Respond] = dict.fromkeys(games, built_in)
        if is_remote:
            teachers = ask_endpoint(
                games,
                lambda game: draw_states(game, source),
                source.num_states,
                source.setting(),
                options.endpoint,
                options.out / EXCHANGES,
                _progress("states"),
            )
        on_progress = _progress("demonstrations")
        for label, game in games.items():
            left_out = []
            prompt = prompt_of(templates, game)
            examples = make_examples(game, source, teachers[label], only_rewarded=is_remote, prompt=prompt)
            for i, row in enumerate(examples, 1):
                if isinstance(row, str):
                    left_out.append(row)
                else:
                    writer.add(row)
                on_progress(label, i, options.states)
            if left_out:
                kept = f"{label}: {options.states - len(left_out)} of {options.states} demonstrations kept"
                reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(left_out).most_common())
                print_status(f"{kept}; left out: {reasons}")
        return writer.finish()


def _games(options: Options) -> dict[str, Game[Any]]:
    """The games, by label."""
    if not options.experiment:
        return games_of(options.games)
    e = load_experiment(options.experiment)
    envs.import_games(e.imports)
    names = [name.strip() for name in options.games.split(",")] if options.games not in ("", "all") else list(e.games)
    missing = [name for name in names if name not in e.games]
    if missing:
        raise ExperimentError(f"{e.name} has no game {missing[0]!r}: it has {', '.join(e.games)}")
    return {name: envs.make(name, e.preset or None, **envs.setting_of(e.levels, name, {})) for name in names}


def _prompts(options: Options) -> Mapping[str, str]:
    """The prompt templates that the dataset records: those of the options, else of the experiment."""
    return options.prompts or (load_experiment(options.experiment).prompts if options.experiment else {})


def _setting(options: Options, games: dict[str, Game[Any]], templates: Templates) -> dict[str, Any]:
    """Everything that determines the rows."""
    setting: dict[str, Any] = {
        "games": {
            label: {"game": game.id, "level": describe_level(game), "prompt": prompt_of(templates, game)}
            for label, game in games.items()
        },
        "states": options.states,
        "teacher": options.teacher,
        "random_moves": options.random_moves,
        "seed": options.seed,
    }
    return setting | ({"endpoint": options.endpoint.setting()} if options.teacher == "endpoint" else {})


def _progress(what: str) -> Callable[[str, int, int], None]:
    """Prints the progress of each game: (label, done, total)."""
    line = functools.cache(lambda label: progress_line(label, what))
    return lambda label, done, total: line(label)(done, total)
