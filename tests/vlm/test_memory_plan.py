"""The estimate against published sizes, arithmetic by hand, and actual allocations."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from g1jax import vlm
from g1jax.vlm import lora, memory_plan, qwen
from tests.conftest import REPOSITORY
from tests.vlm.shapes import TINY

BF16 = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
WORK = memory_plan.Work(rows=2, samples=4, prompt_length=12, response_length=6, frame=(56, 84))


@pytest.mark.parametrize(("name", "count"), [("3B", 3_754_622_976), ("7B", 8_292_166_656)])
def test_published_sizes(name: str, count: int) -> None:
    assert vlm.count_params(qwen.shape_of(name)) == count
    found = memory_plan.estimate(qwen.shape_of(name, **BF16), memory_plan.Work(), is_compiled=False)
    assert (found.params, found.master, found.moments, found.reference) == (2 * count, 4 * count, 8 * count, 2 * count)
    assert found.gradients == 4 * count + 2 * count  # their sum, and a microbatch's
    assert found.state == 16 * count
    assert found.activations is None
    assert found.training == found.state + found.gradients
    assert found.writing == found.state + found.cache
    assert found.inference == found.params + found.cache


def test_float32_params_need_no_master_weights() -> None:
    count = vlm.count_params(TINY)
    found = memory_plan.estimate(TINY, dataclasses.replace(WORK, has_reference=False), is_compiled=False)
    assert (found.params, found.master, found.reference, found.gradients) == (4 * count, 0, 0, 8 * count)


def test_the_cache_by_hand() -> None:
    """7B: 28 layers, 4 heads of 128 numbers for keys and for values, 2 bytes each: 57,344 bytes a token."""
    work = memory_plan.Work(samples=64, prompt_length=500, response_length=524)
    config = qwen.shape_of("7B", **BF16)
    one, eight, split = (
        memory_plan.estimate(config, work, mesh=shape, is_compiled=False).cache
        for shape in ((1, 1, 1), (2, 4, 1), (1, 2, 4))
    )
    assert one == 57_344 * 1024 * 64
    assert eight == split == one // 8


@pytest.mark.parametrize("devices", [4, 8])
def test_fsdp_divides_the_weights(devices: int) -> None:
    config = qwen.shape_of("7B", **BF16)
    one = memory_plan.estimate(config, memory_plan.Work(), is_compiled=False)
    many = memory_plan.estimate(config, memory_plan.Work(), mesh=(1, devices, 1), is_compiled=False)
    for part in ("params", "master", "moments", "reference", "gradients"):
        assert 1 <= getattr(many, part) * devices / getattr(one, part) < 1.03
    data = memory_plan.estimate(config, memory_plan.Work(), mesh=(devices, 1, 1), is_compiled=False)
    assert (data.params, data.moments) == (one.params, one.moments)
    assert data.cache == one.cache // devices


def test_lora_trains_little() -> None:
    config, spec = qwen.shape_of("7B", **BF16), lora.LoRA(rank=16)
    full = memory_plan.estimate(config, memory_plan.Work(), is_compiled=False)
    low = memory_plan.estimate(config, memory_plan.Work(), lora=spec, is_compiled=False)
    text = config.text
    kv = text.num_kv_heads * text.head_dim
    sides = 4 * text.hidden_size + 2 * (text.hidden_size + kv) + 3 * (text.hidden_size + text.intermediate_size)
    numbers = text.num_layers * 16 * sides  # inputs + outputs of q, o; k, v; gate, up, down
    assert low.master == 0  # LoRA's are float32
    assert low.gradients == 8 * numbers
    assert low.reference == 4 * numbers
    assert low.moments == 8 * numbers
    assert low.params == full.params + 4 * numbers
    assert low.training < full.training / 5


def test_the_estimate_matches_allocations() -> None:
    params = vlm.init(TINY, jax.random.key(0))
    found = memory_plan.estimate(TINY, WORK, is_compiled=False)
    assert found.params == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    own = lora.init(TINY, lora.LoRA(rank=2), jax.random.key(0))
    low = memory_plan.estimate(TINY, WORK, lora=lora.LoRA(rank=2), is_compiled=False)
    assert low.reference == sum(leaf.nbytes for leaf in jax.tree.leaves(own))


@pytest.mark.slow
def test_remat_and_rows_in_the_compilers_plan() -> None:
    deep = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, num_layers=6), is_scanned=True)
    remat = dataclasses.replace(deep, is_remat=True)
    work = dataclasses.replace(WORK, rows=8, response_length=30)
    held, again = (memory_plan.estimate(config, work).activations for config in (deep, remat))
    assert held is not None
    assert again is not None
    assert 0 < again < 0.7 * held
    more = memory_plan.estimate(remat, dataclasses.replace(work, rows=32)).activations
    assert more is not None
    assert more > 2.5 * again


def test_work_that_does_not_fit() -> None:
    with pytest.raises(vlm.ConfigError, match=r"an estimate for \d+ devices needs as many, and there are"):
        memory_plan.estimate(TINY, WORK, mesh=(1, len(jax.devices()) + 1, 1))
    with pytest.raises(vlm.ConfigError, match="prompt_length=3: the image alone has 6 tokens"):
        memory_plan.estimate(TINY, dataclasses.replace(WORK, prompt_length=3))
    with pytest.raises(vlm.ConfigError, match="is longer than the context, 32768"):
        memory_plan.estimate(TINY, dataclasses.replace(WORK, response_length=40_000), is_compiled=False)
    with pytest.raises(vlm.ConfigError, match=r"unknown size of Qwen2\.5-VL '72B'"):
        qwen.shape_of("72B")


def test_the_script_prints_a_table() -> None:
    command = [sys.executable, "scripts/memory.py", "--sizes", "7B", "--no-compile", "--devices", "1,8"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| 7B")]
    assert [row[3].strip() for row in rows] == ["1", "8", "1", "8"]
    assert np.isclose(float(rows[0][4]), 2 * 8_292_166_656 / 2**30, atol=0.01)
