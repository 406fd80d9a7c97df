"""The class in docs/agent_frameworks.md: TRL plays episodes over an OpenEnv server."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from g1jax import envs
from tests.adapters.test_sessions import alone
from tests.conftest import REPOSITORY

pytest.importorskip("trl", reason="extras: trl")
pytest.importorskip("torch", reason="extras: trl")
pytest.importorskip("openenv", reason="extras: openenv")
import trl.chat_template_utils as templates
import uvicorn
from datasets import Dataset
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig, GRPOTrainer

from examples import trl_grpo
from g1jax.adapters import openenv

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
MOVES = 3


@pytest.fixture
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = openenv.make_app({"game_2048": envs.make("game_2048")}, max_sessions=12, max_steps=MOVES)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True


class Scripted(GRPOTrainer):  # type: ignore[misc]
    """Response i calls `move` with i as its answer, `MOVES` times, and then ends."""

    calls = 0

    def _generate_single_turn(self, prompt_ids: list[Any], *_: Any, **__: Any) -> tuple[list[Any], None]:
        call = '<tool_call>\n{{"name": "move", "arguments": {{"answer": "{}"}}}}\n</tool_call>'
        texts = [call.format(i) if self.calls < MOVES else "Done." for i in range(len(prompt_ids))]
        self.calls += 1
        return [self._tokenizer(text + "<|im_end|>")["input_ids"] for text in texts], None


def test_episodes_over_a_server_have_the_games_rewards(url: str, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "agent_frameworks.md").read_text("utf-8")
    (source,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class GameTools" in block)
    names: dict[str, Any] = {}
    exec(source, names)
    tools = names["GameTools"]
    tools.url = url
    folder = str(trl_grpo.folder_of("g1-nano"))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = trl_grpo.make_processor(folder, model.config)
    processor.chat_template = templates.qwen3_vl_chat_template
    row = {"prompt": [{"role": "user", "content": "Play."}], "game": "game_2048", "seed": 7}
    trainer = Scripted(
        model=model,
        processing_class=processor,
        environment_factory=tools,
        train_dataset=Dataset.from_list([row]),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=2000,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
        ),
    )
    trainer.train()
    scores = [environment.get_reward() for environment in trainer.environments]
    assert scores == [sum(alone(7, [move] * MOVES)[1]) for move in range(4)]
    (logged,) = [line for line in trainer.state.log_history if "reward" in line]
    assert logged["rewards/GameTools/mean"] == pytest.approx(sum(scores) / 4)
    assert logged["tools/failure_frequency"] == 0
    for environment in trainer.environments:
        environment._env.close()
