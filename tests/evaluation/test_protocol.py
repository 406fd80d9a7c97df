"""Playing: results independent of batching, equal boards for all players, and the metrics of a step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from g1jax import envs, vlm
from g1jax.envs import text
from g1jax.evaluation import EvaluationError, Player, expert_player, play, policy_player, random_player
from g1jax.evaluation.players import _max_perception_tokens, _perception
from g1jax.evaluation.protocol import Answers, Episodes, Judged, _advance, judge, step_score
from g1jax.rl.policy import Policy
from tests.envs.helpers import assert_trees_equal
from tests.training.tiny import CONFIG, TOKENIZER

GAME = envs.make("game_2048")
SMALL = envs.make("shisen_sho", rows=2, cols=2)


def play_in(batch_size: int, steps_per_call: int, *, game: Any = GAME, seed: int = 0) -> Episodes:
    player = Player("random", random_player().respond, steps_per_call=steps_per_call)
    return play(game, player, 7, 12, seed, batch_size=batch_size, num_recorded=5)


@pytest.mark.parametrize("game", [GAME, SMALL], ids=lambda game: game.id)
def test_results_do_not_depend_on_batching(game: Any) -> None:
    whole = play_in(7, 12, game=game)
    other = play_in(3, 5, game=game)
    assert_trees_equal(other.steps, whole.steps)
    assert whole.recorded is not None
    assert other.recorded is not None
    assert_trees_equal(other.recorded.states, whole.recorded.states)
    np.testing.assert_array_equal(other.recorded.actions, whole.recorded.actions)
    assert whole.steps.reward.shape == (7, 12)
    assert whole.recorded.actions.shape == (5, 12)
    assert not np.array_equal(play_in(7, 12, game=game, seed=1).steps.reward, whole.steps.reward)


def first_boards(played: Episodes, episode: int) -> list[list[int]]:
    """The initial boards of an episode."""
    assert played.recorded is not None
    boards, ends = played.recorded.states.board[episode], np.asarray(played.steps.is_end)[episode]
    return [boards[0].tolist(), *(boards[t + 1].tolist() for t in np.flatnonzero(ends[:-1]))]


def test_all_players_meet_the_same_boards() -> None:
    game = envs.make("shisen_sho", rows=2, cols=4)
    quick = play(game, expert_player(), 4, 40, num_recorded=4)
    slow = play(game, random_player(), 4, 40, num_recorded=4)
    num_shared = 0
    for episode in range(4):
        ours, theirs = first_boards(quick, episode), first_boards(slow, episode)
        assert len(ours) >= 10, "cleared boards are replaced"
        assert ours[: len(theirs)] == theirs
        num_shared += len(theirs)
    assert num_shared > 4, "the random player cleared some too"
    assert len({str(board) for episode in range(4) for board in first_boards(quick, episode)}) > 5


def test_random_keys_differ_in_each_episode() -> None:
    played = play_in(7, 12).recorded
    assert played is not None
    boards = played.states.board
    assert len({board.tobytes() for board in boards[:, 0]}) > 2
    assert len({board.tobytes() for board in boards[:, -1]}) == 5


def test_progress_is_reported_after_every_call() -> None:
    reported: list[tuple[int, int]] = []
    player = Player("random", random_player().respond, batch_size=3, steps_per_call=5)
    play(GAME, player, 7, 12, on_progress=lambda done, total: reported.append((done, total)))
    assert reported == [(n, 84) for n in (12, 24, 36, 48, 60, 72, 76, 80, 84)]


def test_an_invalid_answer_costs_reward_but_no_score() -> None:
    def say_nothing(params: Any, game: Any, states: Any, keys: Any, /) -> Answers:
        return Answers(jnp.full(keys.shape[0], game.invalid_action, jnp.int32))

    played = play(GAME, Player("mute", say_nothing), 2, 3)
    assert np.asarray(played.steps.is_invalid).all()
    assert not np.asarray(played.steps.is_legal).any()
    assert (np.asarray(played.steps.reward) == -1).all()
    assert (played.score == 0).all()
    assert played.steps.is_exact is None


def test_scores() -> None:
    steps: Any = Judged(np.float32([8, 0, -1]), None, np.array([0, 0, 1], bool), None)  # type: ignore[arg-type]
    assert step_score(GAME, steps).tolist() == [8.0, 0.0, 0.0]
    assert step_score(SMALL, steps).tolist() == [1.0, 0.0, 0.0]


@functools.partial(jax.jit, static_argnums=0)
def judged_on(game: Any, state: Any, response: Any) -> Judged:
    action = game.parse(response)
    _, result = game.step(state, action, jax.random.key(0))
    return judge(game, state, Answers(action, response, jnp.int32(5)), result)


@pytest.mark.parametrize(
    ("seen", "rest", "expected"),
    [
        ("2 | 2 | - | -", "<think></think><answer>3</answer>", (True, 16, True, False, True, 4)),
        ("2 | 4 | - | -", "<think></think><answer>2</answer>", (False, 15, True, False, True, 0)),
        ("2 | 2 | - | -", "<answer>right</answer>", (True, 16, False, True, False, -1)),
        (None, "<think></think><answer>0</answer>", (False, 0, False, False, False, 0)),
    ],
)
def test_metrics_of_a_response(seen: str | None, rest: str, expected: tuple[Any, ...]) -> None:
    others = "\n- | - | - | -\n- | - | - | -\n- | - | - | -"
    state = GAME.from_text("2 | 2 | - | -" + others)
    response = rest if seen is None else f"<perception>{seen}{others}</perception>{rest}"
    found = judged_on(GAME, state, text.encode(response, 256))
    assert found.num_bytes is not None
    assert int(found.num_bytes) == len(response)
    values = (found.is_exact, found.num_right, found.is_formatted, found.is_invalid, found.is_legal, found.reward)
    assert tuple(np.asarray(value).item() for value in values) == expected


@pytest.mark.parametrize(("episodes", "steps", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1), (1, 1, 2**31)])
def test_what_cannot_be_played_is_told(episodes: int, steps: int, seed: int) -> None:
    with pytest.raises(EvaluationError, match=r"^(episodes|steps|seed)=-?\d+: expected a whole number from [01] to "):
        play(GAME, random_player(), episodes, steps, seed)


def test_a_policy_shares_its_program_across_params() -> None:
    tokenizer = vlm.Tokenizer.load("games")
    policy = Policy(vlm.preset("nano", vocab_size=tokenizer.vocab_size), tokenizer, budget=8)
    params = vlm.init(policy.config, jax.random.key(0))
    played = play(GAME, policy_player(policy, params), 2, 2, num_recorded=1)
    assert played.steps.num_tokens is not None
    assert (played.steps.num_tokens <= 8).all()
    assert played.recorded is not None
    assert played.recorded.responses is not None
    assert [len(row) for row in played.recorded.responses] == [2]
    trained = policy_player(policy, jax.tree.map(lambda leaf: leaf * 2, params))
    num_programs = _advance._cache_size()  # type: ignore[attr-defined]
    play(GAME, trained, 2, 2, num_recorded=1)
    assert _advance._cache_size() == num_programs  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_policy_given_the_perception() -> None:
    policy = Policy(CONFIG, TOKENIZER, budget=32, templates=(("shisen_sho", "Pairs"),))
    params = vlm.init(policy.config, jax.random.key(0))
    game = envs.make("shisen_sho", rows=2, cols=2)
    played = play(game, policy_player(policy, params, given_perception=True), 3, 2, num_recorded=1)
    assert played.steps.is_exact is not None
    assert played.steps.is_exact.all()
    assert played.steps.num_tokens is not None
    assert (played.steps.num_tokens <= 32).all(), "given tokens are not counted"
    assert played.recorded is not None
    assert played.recorded.responses is not None
    state = jax.tree.map(lambda leaf: leaf[0, 0], played.recorded.states)
    assert played.recorded.responses[0][0].startswith(f"<perception>{text.decode(game.describe(state))}</perception>")


@pytest.mark.parametrize("game_id", envs.game_ids())
def test_the_bound_holds_for_the_perception_of_any_board(game_id: str) -> None:
    tokenizer = vlm.Tokenizer.load("games")
    policy = Policy(vlm.preset("nano", vocab_size=tokenizer.vocab_size), tokenizer)
    game = envs.make(game_id, **({"images": "digits"} if game_id == "shisen_sho_cifar10" else {}))
    rng, names = np.random.default_rng(0), np.array(game.cell_names())
    boards = [
        "\n".join(" | ".join(row) for row in names[rng.integers(0, len(names), (game.rows, game.cols))])
        for _ in range(50)
    ]
    longest = max(len(tokenizer.encode(_perception(board))) for board in boards)
    assert longest <= _max_perception_tokens(policy, game) <= 3 * longest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game_id", "published"), [("game_2048", 693), ("shisen_sho", 1.25), ("shisen_sho_cifar10", 1.25), ("swap", 0.23)]
)
def test_random_play_matches_the_original(game_id: str, published: float) -> None:
    keys = {"images": "digits"} if game_id == "shisen_sho_cifar10" else {}
    played = play(envs.make(game_id, **keys), random_player(), 10_000)
    assert played.score.sum(axis=1).mean() == pytest.approx(published, rel=0.15)
