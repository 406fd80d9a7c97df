"""The program `g1jax serve`: games as OpenEnv environments, on one port of this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import uvicorn

from g1jax import settings
from g1jax.adapters import openenv
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.errors import EvaluationError
from g1jax.programs import command_line
from g1jax.programs.machine import keep_programs, require_devices
from g1jax.programs.shared import games_of, print_status
from g1jax.settings import Range

DESCRIPTION = """Serves the games as OpenEnv environments, for trainers and agents that speak its protocol.

    {command} --games=game_2048,swap
    {command} --games=shisen_sho:easy+noisy --port=9000 --max-sessions=64
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the server."""

    games: str = "all"
    """Games and presets, such as `swap,shisen_sho:easy+noisy`. A client names one when it resets; the first is the
    default."""
    host: str = "127.0.0.1"
    """The address to listen on. `0.0.0.0` makes the server reachable from other machines, without any password."""
    port: Annotated[int, Range(1, 65535)] = 8000
    """The port to listen on."""
    max_sessions: Annotated[int, Range(1, 65536)] = 1024
    """Clients at once; one more gets an error."""
    max_steps: settings.Steps = EPISODE_STEPS
    """An episode is truncated after this many steps."""


def main(arguments: Sequence[str], command: str) -> int:
    """Serves until Ctrl-C; returns the exit status."""
    return command_line.main("serve", Options, serve, arguments, DESCRIPTION.format(command=command), command)


def serve(options: Options) -> None:
    """Serves until Ctrl-C.

    Raises:
        EvaluationError: a setting is invalid.
    """
    settings.check(options, EvaluationError)
    keep_programs()
    require_devices()
    games = games_of(options.games)
    print_status(f"compiling {', '.join(games)} …")
    app = openenv.make_app(games, max_sessions=options.max_sessions, max_steps=options.max_steps)
    print_status(f"serving {', '.join(games)} at http://{options.host}:{options.port}; Ctrl-C stops it")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", backlog=4096)
