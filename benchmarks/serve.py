"""How many OpenEnv sessions the server holds, and how long a step takes.

    python benchmarks/serve.py --sessions 1000 --killed 0.2 --clients 100 --steps 20

The server runs in its own process on this machine, so clients and server share its cores. First `sessions` sessions of
2048 play at once, of which a fraction is killed at random steps, and the rewards of the others are compared with the
same episodes played alone. Then `clients` sessions step one after another, each with a picture, and percentiles of the
time from request to reply are printed.
"""

import argparse
import asyncio
import multiprocessing
import random
import socket
import time

import jax
import numpy as np

from g1jax import envs

NUM_STEPS = 10


def serve(port: int, max_sessions: int) -> None:
    import uvicorn

    from g1jax.adapters.openenv import make_app

    app = make_app({"game_2048": envs.make("game_2048")}, max_sessions=max_sessions)
    uvicorn.run(app, port=port, log_level="error", backlog=4096)


def rewards_alone(seed: int, actions: list[int]) -> list[float]:
    state, rewards = RESET(jax.random.key(seed)), []
    for number, action in enumerate(actions):
        state, result = STEP(state, action, jax.random.fold_in(jax.random.key(seed), number))
        rewards.append(float(result.reward))
    return rewards


RESET, STEP = jax.jit(envs.make("game_2048").reset), jax.jit(envs.make("game_2048").step)


async def play(url: str, seed: int, is_killed: bool, gate: asyncio.Semaphore) -> list[float] | None:
    from g1jax.adapters.openenv import GameAction, GameClient

    client = GameClient(url, connect_timeout_s=300, message_timeout_s=300)
    async with gate:  # connects in waves, as a kernel's queue of connections is short
        await client.connect()
    await client.reset(seed=seed)
    rewards, last = [], random.randrange(NUM_STEPS) if is_killed else NUM_STEPS
    for action in moves(seed)[:last]:
        rewards.append((await client.step(GameAction(action=action))).reward)
    if is_killed:
        client._ws.transport.abort()
        return None
    await client.close()
    return rewards


def moves(seed: int) -> list[int]:
    return [int(move) for move in np.random.default_rng(seed).integers(0, 4, NUM_STEPS)]


async def many(url: str, sessions: int, killed: float) -> None:
    random.seed(0)
    gate, start = asyncio.Semaphore(64), time.perf_counter()
    plays = [play(url, seed, random.random() < killed, gate) for seed in range(sessions)]
    results = await asyncio.gather(*plays, return_exceptions=True)
    seconds = time.perf_counter() - start
    errors = [result for result in results if isinstance(result, BaseException)]
    whole = {seed: result for seed, result in enumerate(results) if isinstance(result, list)}
    wrong = sum(rewards != rewards_alone(seed, moves(seed)) for seed, rewards in whole.items())
    steps = len(whole) * NUM_STEPS
    print(f"{sessions} sessions, {sessions - len(whole) - len(errors)} killed, {len(errors)} failed", *errors[:1])
    print(f"{wrong} of {len(whole)} differ from the episode alone; {steps / seconds:.0f} steps/s")


async def latency(url: str, clients: int, steps: int) -> None:
    from g1jax.adapters.openenv import GameAction, GameClient

    times: list[float] = []

    async def client(seed: int) -> None:
        async with GameClient(url, message_timeout_s=300) as env:
            await env.reset(seed=seed)
            for step in range(steps):
                await asyncio.sleep(random.random())  # a policy thinks between steps
                start = time.perf_counter()
                await env.step(GameAction(action=step % 4))
                times.append(time.perf_counter() - start)

    await asyncio.gather(*(client(seed) for seed in range(clients)))
    milliseconds = np.percentile(times, (50, 90, 99)) * 1000
    print(f"{clients} clients, one step each 0 to 1 s: p50, p90, p99 = {milliseconds.round(1).tolist()} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--killed", type=float, default=0.2)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, options.sessions + 100)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=arguments, daemon=True)
    server.start()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert server.is_alive(), "the server ended"
            time.sleep(0.5)
    url = f"http://127.0.0.1:{port}"
    asyncio.run(many(url, options.sessions, options.killed))
    asyncio.run(latency(url, options.clients, options.steps))
    server.terminate()


if __name__ == "__main__":
    main()
