"""The program `g1jax serve`: games as OpenEnv environments, on one port of this machine."""

import importlib.util
from dataclasses import dataclass
from typing import Annotated

from g1jax import settings
from g1jax.envs.batch import EPISODE_STEPS
from g1jax.errors import EvaluationError
from g1jax.programs.shared import games_of, print_status
from g1jax.settings import Range

_MISSING = "the server needs a package: pip install 'g1jax[openenv]'"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the server."""

    games: str = "all"
    """Games and presets, such as `swap,shisen_sho:easy+noisy`. Clients name one when they reset; the first is the
    default."""
    host: str = "127.0.0.1"
    """The address to listen on. `0.0.0.0` makes the server reachable from other machines, without any password."""
    port: Annotated[int, Range(1, 65535)] = 8000
    """The port to listen on."""
    max_sessions: Annotated[int, Range(1, 65536)] = 1024
    """Clients at once; one more gets an error."""
    max_steps: settings.Steps = EPISODE_STEPS
    """An episode is truncated after this many steps."""


def serve(options: Options) -> None:
    """Serves until Ctrl-C.

    Raises:
        EvaluationError: a setting is invalid, or the package is missing.
    """
    settings.check(options, EvaluationError)
    EvaluationError.require(importlib.util.find_spec("openenv") is not None, _MISSING)
    games = games_of(options.games)
    import uvicorn

    from g1jax.adapters import openenv

    print_status(f"compiling {', '.join(games)} …")
    app = openenv.make_app(games, max_sessions=options.max_sessions, max_steps=options.max_steps)
    print_status(f"http://{options.host}:{options.port} serves {', '.join(games)}; Ctrl-C ends it")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", backlog=4096)
