"""The Game contract: what every game provides and what all games share.

A game file opens with its State and Level, followed by a thin subclass of `Game` and the rules as small pure functions.
The subclass defines the initial state (`begin`), moves (`move`), legal actions (`legal_actions`), the text of a cell
(`cell_names`) and its sprite (`draw_tiles`). Text, pixels, freezing of finished games and the answer format are here.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8, UInt32

from g1jax.envs import level as level_keys
from g1jax.envs import prng, prompt, text
from g1jax.envs.checks import as_int32, check_seed
from g1jax.envs.level import Level, TracedLevel, base_id_of, keys_of, make_level, make_traced, names_of, traced_keys
from g1jax.envs.render import Renderer
from g1jax.envs.response import ANSWER_FORMAT
from g1jax.errors import LevelError, unknown
from g1jax.typing import Array, ArrayLike, HostImages, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a step returns besides the next state."""

    reward: Float32[Array, "*B"]
    terminated: Bool[Array, "*B"]  # the game is over
    truncated: Bool[Array, "*B"]  # cut off by a time limit; games never set it
    is_legal: Bool[Array, "*B"]  # the action was one of `legal_actions`


class State(Protocol):
    """The fields of every game's state, a frozen dataclass registered with JAX."""

    @property
    def terminated(self) -> Bool[Array, "*B"]:
        """Whether the game is over."""

    @property
    def seed(self) -> UInt32[Array, "*B"]:
        """Determines the appearance of an episode, never its course."""

    @property
    def level(self) -> TracedLevel:
        """The traced part of the difficulty."""


S = TypeVar("S", bound=State)
G = TypeVar("G", bound="Game[Any]")

ANY = "any"
"""As a traced palette or background: each episode draws one of the game's own."""

_ANSWER_FORMS = {1: "#", 2: "(#, #)", 4: "(#, #) (#, #)"}


class Game(Generic[S]):
    """One game at one level: pure functions of the state of one environment; `jax.vmap` them for a batch.

    All methods can be traced by JAX, except `traced_level`, `format_action` and those given a string. Two games are
    equal, and share compiled programs, if their class and level are equal.

    >>> from g1jax import envs
    >>> game = envs.make("game_2048")
    >>> state = game.reset(jax.random.key(0))
    >>> state, result = game.step(state, jnp.int32(3), jax.random.key(1))
    >>> game.render(state).shape
    (112, 112, 3)
    """

    id: ClassVar[str]
    Level: ClassVar[type[Level]] = Level
    default_prompt: ClassVar[str]

    def __init__(self, level: Any) -> None:
        level_keys.check_traced_type(level, self.id)
        self.level = level
        self.rows, self.cols = level.rows, level.cols
        self.action_shape = self.shape_actions()
        self.num_actions = math.prod(self.action_shape)
        self.invalid_action = self.num_actions
        self._strides = np.array(
            [math.prod(self.action_shape[i + 1 :]) for i in range(len(self.action_shape))], np.int32
        )
        self.answer_text = text.AnswerText(_ANSWER_FORMS[len(self.action_shape)], self.action_shape)
        self.board_text = text.BoardText(self.cell_names(), self.rows, self.cols)
        self.prompt = self.fill_prompt(self.default_prompt)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.level == other.level

    def __hash__(self) -> int:
        return hash((type(self), self.level))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.level,)  # everything else is derived from the level

    def __repr__(self) -> str:
        own = keys_of(type(self.level)())
        changed = [f"{key}={value!r}" for key, value in keys_of(self.level).items() if value != own[key]]
        return f"make({', '.join([repr(self.id), *changed])})"

    @property
    def base_id(self) -> str:
        """The id of the game's rules: without the preset that is part of a level's name, as in `swap:tiny`."""
        return base_id_of(self.id)

    def with_keys(self: G, **changes: Any) -> G:
        """The same game at a level with other values of some keys.

        Raises:
            LevelError: a key does not exist, or the level cannot be played.
        """
        return type(self)(make_level(type(self.level), self.id, {**keys_of(self.level), **changes}))

    # What a game defines

    def shape_actions(self) -> tuple[int, ...]:
        """Upper bounds of the numbers in an action: (4,) one number, (R, C) a cell, (R, C, R, C) two cells."""
        raise NotImplementedError

    def cell_names(self) -> Sequence[str]:
        """The text of every kind of cell; kind 0 is the empty cell, `-`, if there is one."""
        raise NotImplementedError

    def draw_tiles(self, palette: str, background: str) -> HostImages:
        """The sprites, uint8[K, Z, Z, 3]."""
        raise NotImplementedError

    def begin(self, key: Key, seed: UInt32[Array, ""], level: Any) -> S:
        """A fresh state at a level, a `TracedLevel` of this game."""
        raise NotImplementedError

    def move(self, state: S, action: Int32[Array, ""], key: Key) -> tuple[S, Float32[Array, ""], Bool[Array, ""]]:
        """A move in a running game: the next state, the reward, and whether the move is legal."""
        raise NotImplementedError

    def cells(self, state: S) -> Int32[Array, "R C"]:
        """The kind of every cell, an index into `cell_names`."""
        raise NotImplementedError

    def tiles(self, state: S) -> Int32[Array, "R C"]:
        """The sprite of every cell. Equal to the kind, unless a kind has several sprites."""
        return self.cells(state)

    def from_cells(self, cells: Int[Array, "R C"], seed: UInt32[Array, ""], level: Any) -> S:
        """The state with this board; `terminated` follows from the rules."""
        raise NotImplementedError

    def legal_actions(self, state: S) -> Bool[Array, "{self.num_actions}"]:
        """Which actions are legal, without the invalid action. All False once the game is over."""
        raise NotImplementedError

    def expert(self, state: S, key: Key) -> Int32[Array, ""]:
        """A strong scripted player's action. The invalid action if none is legal."""
        raise NotImplementedError

    def worth(self, state: S, action: Int32[Array, ""], result: StepResult) -> Float32[Array, ""]:
        """A dense reward: how good an action is, −1 (illegal) to 1 (best; by default, any legal one)."""
        del state, action
        return jnp.where(result.is_legal, jnp.float32(1), jnp.float32(-1))

    @property
    def fact_names(self) -> tuple[str, ...]:
        """The names of `facts`, in order; empty for a game without facts."""
        return ()

    def facts(self, state: S) -> Bool[Array, "R C F"]:
        """Visible properties of each cell besides its kind, named by `fact_names`.

        Relations that a move depends on, such as "the next tile to the right is equal". A policy may learn them from an
        auxiliary loss on its visual tokens in the cold start.
        """
        return jnp.zeros((self.rows, self.cols, 0), bool)

    # What all games share: playing

    def reset(self, key: Key, level: TracedLevel | None = None) -> S:
        """A fresh state, at the game's own level or at one made by `traced_level`."""
        seed_key, begin_key = jax.random.split(key)
        state = self.begin(begin_key, jax.random.bits(seed_key, dtype=jnp.uint32), self._or_own(level))
        return self._take_start_moves(state, jax.random.split(key, 3)[2]) if self.level.start_moves else state

    def _take_start_moves(self, state: S, key: Key) -> S:
        def move(i: Int[Array, ""], state: S) -> S:
            action_key, move_key, begin_key = jax.random.split(jax.random.fold_in(key, i), 3)
            moved, result = self.step(state, self.sample_action(state, action_key, legal=False), move_key)
            fresh = self.begin(begin_key, state.seed, state.level)
            return cast(S, jax.tree.map(lambda new, old: jnp.where(result.terminated, new, old), fresh, moved))

        return jax.lax.fori_loop(np.int32(0), np.int32(self.level.start_moves), move, state)

    def step(self, state: S, action: ArrayLike | int, key: Key) -> tuple[S, StepResult]:
        """One move. A finished game does not change and gives reward 0. Any integer is an action, legal or not.

        Raises:
            InputError: the action is not a scalar integer; `branch` takes several, `jax.vmap` maps over a batch.
        """
        action = as_int32("action", action, ())
        action = jnp.where((action >= 0) & (action < self.num_actions), action, self.invalid_action)
        after, reward, is_legal = self.move(state, action, key)
        is_over = state.terminated
        after = jax.tree.map(lambda old, new: jnp.where(is_over, old, new), state, after)
        reward = jnp.where(is_over, jnp.float32(0), reward)
        return after, StepResult(reward, after.terminated, jnp.zeros_like(is_over), is_legal & ~is_over)

    def sample_action(self, state: S, key: Key, *, legal: bool = True) -> Int32[Array, ""]:
        """A uniformly random action: a legal one (the invalid action if there is none), or any."""
        bits = jax.random.bits(key, dtype=jnp.uint32)
        if not legal:
            return prng.dice(bits, self.num_actions)[0]
        return jnp.minimum(prng.choose(self.legal_actions(state), bits), self.invalid_action)

    def branch(self, state: S, actions: Array, key: Key, *, common: bool = True) -> tuple[S, StepResult]:
        """Steps one state with K actions, int32[K]: K next states and results, each leaf with a leading axis K.

        With `common` randomness all steps use the same key and differ only by their action; else each has its own key.
        """
        actions = as_int32("actions", actions, (None,))
        keys = key if common else jax.random.split(key, actions.shape[0])
        return jax.vmap(self.step, (None, 0, None if common else 0))(state, actions, keys)

    # What all games share: pixels

    @functools.cached_property
    def renderer(self) -> Renderer:
        """The atlas of this game's sprites, drawn on first use."""
        return Renderer(self.level.appearance, self.rows, self.cols, self.draw_tiles)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of a frame."""
        return *self.level.appearance.frame_shape(self.rows, self.cols), 3

    def render(self, state: S) -> UInt8[Array, "H W 3"]:
        """The frame of a state."""
        return self.renderer.paint(self.tiles(state), state.seed, state.level.appearance)

    # What all games share: text

    def describe(self, state: S) -> UInt8[Array, "L"]:
        """The true board text, zero-padded."""
        return self.board_text.write(self.cells(state))

    def read_board(self, board_text: str | bytes | ArrayLike) -> Int32[Array, "R C"]:
        """The cell kinds in a board text, a string or uint8[N]; -1 where a cell is unreadable."""
        if isinstance(board_text, str | bytes):
            return cast(Array, _on_device(self, "read_board", text.encode(board_text)))
        return self.board_text.read(text.as_bytes(board_text))

    def from_text(
        self, board_text: str | bytes | ArrayLike, level: TracedLevel | None = None, seed: Array | int = 0
    ) -> S:
        """The state that a board text describes. In an array (as opposed to a string), unreadable cells become kind 0.

        Raises:
            ValueError: a string is not a board of this game; the message has the row and column.
            InputError: an array is not uint8, or the seed has more than 32 bits.
        """
        check_seed(seed)
        if isinstance(board_text, str | bytes):
            self._check_board(board_text)
            seed = jnp.asarray(seed, jnp.uint32)
            return cast(S, _on_device(self, "from_text", text.encode(board_text), self._or_own(level), seed))
        cells = jnp.maximum(self.read_board(board_text), 0)
        return self.from_cells(cells, jnp.asarray(seed, jnp.uint32), self._or_own(level))

    def parse(self, response: str | bytes | ArrayLike) -> Int32[Array, ""]:
        """The action in a response, a string or uint8[N]; the invalid action if it is unreadable.

        The first `<answer>…</answer>` counts. It holds one action number, or two cells `(r1, c1) (r2, c2)`.
        """
        if isinstance(response, str | bytes):
            return cast(Array, _on_device(self, "parse", text.encode(response)))
        numbers, is_valid = self.answer_text.read(text.as_bytes(response))
        action = jnp.sum(numbers * self._strides, dtype=jnp.int32)
        return jnp.where(is_valid, action, self.invalid_action).astype(jnp.int32)

    def write_action(self, action: ArrayLike | int) -> UInt8[Array, "A"]:
        """An action as a response that `parse` reads. The invalid action has an empty answer."""
        action = as_int32("action", action, ())
        numbers = action[None] // self._strides % np.array(self.action_shape, np.int32)
        return self.answer_text.write(numbers, (action >= 0) & (action < self.num_actions))

    def format_action(self, action: ArrayLike | int) -> str:
        """An action as a response: `parse(format_action(a)) == a` for every a, including the invalid action."""
        return text.decode(cast(Array, _on_device(self, "write_action", as_int32("action", action, ()))))

    def perception_exact(self, response: str | bytes | ArrayLike, state: S) -> Bool[Array, ""]:
        """Whether the `<perception>` of a response, a string or uint8[N], is exactly the true board text."""
        if isinstance(response, str | bytes):
            return cast(Array, _on_device(self, "perception_exact", text.encode(response), state))
        return self.board_text.exact_score(text.as_bytes(response), self.cells(state))

    def perception_cells(self, response: str | bytes | ArrayLike, state: S) -> Float32[Array, ""]:
        """The fraction of cells, 0 to 1, that the `<perception>` of a response, a string or uint8[N], has right."""
        if isinstance(response, str | bytes):
            return cast(Array, _on_device(self, "perception_cells", text.encode(response), state))
        return self.board_text.cell_score(text.as_bytes(response), self.cells(state))

    # Difficulty

    def traced_level(self, **changes: Any) -> TracedLevel:
        """The traced part of this game's level, with changes, for `reset`. Changes do not recompile anything.

        Raises:
            LevelError: a key is static, or its value cannot be used in this game (it exceeds the tables the game was
                made with, or its effect was compiled out).
        """
        rules = traced_keys(self.level)
        for key in changes:
            LevelError.require(key in rules, f"{self.id}: {unknown('traced level key', key, rules)}")
        own_keys = keys_of(self.level)
        names = {key: value for key, value in changes.items() if value != ANY}
        keys = keys_of(make_level(type(self.level), self.id, {**own_keys, **names}))
        for key, value in changes.items():
            rule, own = rules[key], own_keys[key]
            LevelError.require(rule != "at_most" or value <= own, f"{key}={value}: the game was made for at most {own}")
            LevelError.require(
                rule != "if_on" or own > 0, f"{key}={value}: make the game with {key} above 0 to compile it in"
            )
            if rule == "choice" and value != ANY:
                LevelError.require(value in names_of(own), unknown(f"{key} of this game", value, names_of(own)))
        values = {}
        for key, rule in rules.items():
            value = keys[key]
            if rule == "choice":
                chosen = changes.get(key, ANY)
                value = -1 if chosen == ANY else names_of(own_keys[key]).index(chosen)
            values[key] = jnp.asarray(value, jnp.float32 if isinstance(value, float) else jnp.int32)
        return make_traced(self.level, values)

    def _or_own(self, level: TracedLevel | None) -> TracedLevel:
        return self.traced_level() if level is None else level

    # Checks on the host

    def _check_board(self, board_text: str | bytes) -> None:
        """Raises ValueError with the row and column if a string is not a board of this game."""
        board_text = board_text.decode("utf-8", "replace") if isinstance(board_text, bytes) else board_text
        rows = board_text.strip(" \t\r\n").split("\n")
        known = list(self.cell_names())
        for r, row in enumerate(rows[: self.rows]):
            cells = [cell.strip(" \t\r\n") for cell in row.split("|")]
            for c, cell in enumerate(cells[: self.cols]):
                if cell not in known:
                    raise ValueError(f"row {r}, column {c}: {unknown(f'cell of {self.id}', cell, known)}")
            if len(cells) != self.cols:
                c = min(len(cells), self.cols)
                raise ValueError(f"row {r}, column {c}: {len(cells)} cells in this row, the board has {self.cols}")
        if len(rows) != self.rows:
            raise ValueError(f"row {min(len(rows), self.rows)}, column 0: {len(rows)} rows, the board has {self.rows}")

    # Prompts

    def fill_prompt(self, template: str, without: Collection[str] = ()) -> str:
        """A prompt from a template, with this game's `prompt_fields`, without some of its parts; see `envs.prompt`.

        Raises:
            LevelError: the template has an unknown name, or lacks a part to leave out.
        """
        return prompt.fill(template, self.prompt_fields(), self.id, without)

    def prompt_fields(self) -> dict[str, str]:
        """The values of `{name}` in a prompt template. Games add their own."""
        return {
            "rows": str(self.rows),
            "cols": str(self.cols),
            "last_row": str(self.rows - 1),
            "last_col": str(self.cols - 1),
            "num_actions": str(self.num_actions),
            "cell_names": ", ".join(self.cell_names()),
            "places": " ".join(f"({r}, {c})" for r in range(self.rows) for c in range(self.cols)),
            "format": ANSWER_FORMAT,
        }


def describe_level(game: Game[Any]) -> dict[str, Any]:
    """A game's level as JSON values; `images="auto"` becomes the image set in use."""
    level: dict[str, Any] = json.loads(json.dumps(keys_of(game.level)))
    pictures = getattr(game, "pictures", None)
    return level if pictures is None else level | {"images": pictures.name}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _on_device(game: Game[Any], method: str, *args: Any) -> Any:
    """Runs a method as one compiled program, for callers with Python strings."""
    return getattr(game, method)(*args)
