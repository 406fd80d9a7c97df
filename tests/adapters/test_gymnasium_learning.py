"""2048 is learned through Gymnasium: by Stable-Baselines3, and by PPO in one loop around the vector environment.

pip install -e ".[gym-learners]" && pytest -m slow tests/adapters/test_gymnasium_learning.py -s
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from g1jax.adapters.gymnasium import GameVectorEnv

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
torch: Any = pytest.importorskip("torch")

NUM_KINDS, REWARD_SCALE = 18, 1 / 64
STEPS, GAMMA, LAMBDA, CLIP = 100, 0.97, 0.9, 0.2
Boards = np.ndarray[Any, Any]


def one_hot(boards: Boards) -> Boards:
    """int32[..., 4, 4] -> float32[..., 288]."""
    return np.eye(NUM_KINDS, dtype=np.float32)[boards].reshape(*boards.shape[:-2], -1)


def mean_score(act: Callable[[Boards], Any], num_envs: int = 256) -> float:
    """The mean score of an episode, at most 100 steps; every player gets the same first boards."""
    env = GameVectorEnv("game_2048", num_envs, observation="board", action_mask=False, autoreset_mode="Disabled")
    boards, _ = env.reset(seed=1234)
    total = np.zeros(num_envs)
    for _ in range(STEPS):
        boards, reward, *_ = env.step(np.asarray(act(boards)))
        total += reward
    return float(total.mean())


def random_score() -> float:
    generator = np.random.default_rng(0)
    return mean_score(lambda boards: generator.integers(4, size=len(boards)))


def test_stable_baselines3_learns() -> None:
    """Stable-Baselines3 has its own interface of vector environments; `SAME_STEP` is what it expects of them."""
    stable_baselines3 = pytest.importorskip("stable_baselines3")

    class Envs(stable_baselines3.common.vec_env.VecEnv):  # type: ignore[misc, name-defined]
        def __init__(self, envs: GameVectorEnv) -> None:
            self.envs = envs
            space = gymnasium.spaces.Box(0, 1, (16 * NUM_KINDS,), np.float32)
            super().__init__(envs.num_envs, space, envs.single_action_space)

        def reset(self) -> Boards:
            return one_hot(self.envs.reset(seed=0)[0])

        def step_async(self, actions: Boards) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            boards, reward, terminated, truncated, info = self.envs.step(self.actions)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            for i in np.flatnonzero(terminated | truncated):
                final = one_hot(info["final_obs"][i])
                infos[i] = {"terminal_observation": final, "TimeLimit.truncated": bool(truncated[i])}
            return one_hot(boards), reward * REWARD_SCALE, terminated | truncated, infos

        def close(self) -> None:
            self.envs.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [getattr(self.envs, attr_name)] * self.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

    torch.set_num_threads(1)
    envs = GameVectorEnv("game_2048", 256, observation="board", action_mask=False, autoreset_mode="SameStep")
    learner = stable_baselines3.PPO(
        "MlpPolicy", Envs(envs), n_steps=32, batch_size=1024, n_epochs=3, gamma=GAMMA, gae_lambda=LAMBDA,
        learning_rate=1e-3, ent_coef=0.01, seed=0, device="cpu",
    )  # fmt: skip
    before = random_score()
    learner.learn(120 * 32 * 256)
    after = mean_score(lambda boards: learner.predict(one_hot(boards))[0])
    print(f"\nStable-Baselines3's PPO: {after:.0f}, random play {before:.0f}")
    assert after > 1.2 * before


class Agent(torch.nn.Module):  # type: ignore[misc]
    """A policy and a value of a board."""

    def __init__(self) -> None:
        super().__init__()
        width = 128
        self.body = torch.nn.Sequential(
            torch.nn.Linear(16 * NUM_KINDS, width), torch.nn.Tanh(), torch.nn.Linear(width, width), torch.nn.Tanh()
        )
        self.policy, self.value = torch.nn.Linear(width, 4), torch.nn.Linear(width, 1)
        torch.nn.init.zeros_(self.policy.weight)

    def forward(self, boards: Any) -> tuple[Any, Any]:
        hidden = self.body(torch.nn.functional.one_hot(boards.long(), NUM_KINDS).float().flatten(-3))
        return torch.distributions.Categorical(logits=self.policy(hidden)), self.value(hidden)[..., 0]


def test_ppo_in_one_loop_learns() -> None:
    """Boards go to PyTorch by DLPack; the step after an end resets, and is left out of the losses."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    num_envs, num_steps, num_updates = 256, 32, 120
    envs = GameVectorEnv("game_2048", num_envs, observation="board", action_mask=False, arrays="jax")
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), 1e-3)
    before = random_score()
    boards, has_ended = torch.from_dlpack(envs.reset(seed=0)[0]).clone(), torch.zeros(num_envs, dtype=torch.bool)
    for _ in range(num_updates):
        steps: list[Any] = []
        for _ in range(num_steps):
            with torch.no_grad():
                policy, value = agent(boards)
                action = policy.sample()
            after, *outcome, _ = envs.step(action.numpy())
            reward, terminated, truncated = (torch.from_dlpack(array).clone() for array in outcome)
            steps.append((boards, action, policy.log_prob(action), value, reward * REWARD_SCALE, has_ended))
            boards, has_ended = torch.from_dlpack(after).clone(), terminated | truncated
        learn(agent, optimizer, [torch.stack(column) for column in zip(*steps, strict=True)], boards, has_ended)
    with torch.no_grad():
        after_score = mean_score(lambda b: agent(torch.tensor(b))[0].sample().numpy())
    print(f"\nPPO in one loop: {after_score:.0f}, random play {before:.0f}")
    assert after_score > 1.2 * before


def learn(agent: Agent, optimizer: Any, rollout: list[Any], last_boards: Any, last_ended: Any) -> None:
    """PPO with GAE; `has_ended[t]`: step t only resets, and step t - 1 ended the episode."""
    boards, actions, old_logprobs, values, rewards, has_ended = rollout
    with torch.no_grad():
        following = torch.cat([values[1:], agent(last_boards)[1][None]])
        ends = torch.cat([has_ended[1:], last_ended[None]])
        advantages, running = torch.zeros_like(values), torch.zeros_like(values[0])
        for t in reversed(range(len(values))):
            delta = rewards[t] + GAMMA * following[t] * ~ends[t] - values[t]
            running = delta + GAMMA * LAMBDA * running * ~ends[t]
            advantages[t] = running
    keep = ~has_ended.flatten()
    boards, actions, old, advantage, target = (
        array.flatten(0, 1)[keep] for array in (boards, actions, old_logprobs, advantages, advantages + values)
    )
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    for _ in range(3):
        for rows in torch.randperm(len(boards)).split(1024):
            policy, value = agent(boards[rows])
            ratio = (policy.log_prob(actions[rows]) - old[rows]).exp()
            gain = torch.min(ratio * advantage[rows], ratio.clamp(1 - CLIP, 1 + CLIP) * advantage[rows])
            loss = -gain.mean() + 0.5 * (value - target[rows]).square().mean() - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
