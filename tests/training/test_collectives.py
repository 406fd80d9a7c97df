"""Communication volume, checked on programs that can be counted by hand: 2 × 4 devices with 512 bytes each."""

import json
import subprocess
import sys
from typing import Any

import pytest

from g1jax.training.collectives import sent_a_turn, sent_bytes, traffic_of
from tests.conftest import REPOSITORY
from tests.training import tiny


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.training.on_eight_devices"]
    done = subprocess.run(command, cwd=REPOSITORY, env=tiny.environment(8), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        # calls, bytes of the whole, bytes that a device sends
        ("psum 1", {"all-reduce": [1, 512, 2 * 512 * 3 / 4]}),
        ("psum_of_all 1", {"all-reduce": [1, 512, 2 * 512 * 7 / 8]}),
        ("psums_in_loops 1", {"all-reduce": [15, 15 * 512, 15 * 2 * 512 * 3 / 4]}),
        ("psums_in_loops 7", {"all-reduce": [15, 15 * 512, 15 * 2 * 512 * 3 / 4]}),
        ("psum_in_a_while_loop 0", {"all-reduce": [1, 512, 512]}),
        ("psum_in_a_while_loop 1", {"all-reduce": [2, 1024, 512 + 768]}),
        ("psum_in_a_while_loop 7", {"all-reduce": [8, 8 * 512, 512 + 7 * 768]}),
        ("psum_in_a_branch 1", {"all-reduce": [1, 512, 768]}),
        ("all_gather 1", {"all-gather": [1, 4 * 512, 3 * 512]}),
        ("reduce_scatter 1", {"reduce-scatter": [1, 512, 3 * 128]}),
        ("all_to_all 1", {"all-to-all": [1, 512, 3 * 128]}),
        ("permute 1", {"collective-permute": [1, 512, 512]}),
    ],
)
def test_programs_that_can_be_counted(counted: dict[str, Any], program: str, expected: dict[str, list[float]]) -> None:
    assert counted[program] == expected


LINES = {
    "(f32[2,8]{1,0}, bf16[4]{0}) all-reduce(%a, %b), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add": 64 + 8,
    "(f32[8], f32[64]{0}) all-gather-start(%a), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}": 256 * 7 / 8,
    "((f32[8], s8[4]), (f32[16], s8[8])) all-gather-start(%a, %b), replica_groups={{0,1},{2,3}}": (64 + 8) / 2,
    "((f32[64], f32[32]), (f32[8], f32[4])) reduce-scatter-start(%a, %b), replica_groups={}": (256 + 128) * 7 / 8,
    "((f32[64]), f32[8]) reduce-scatter-start(%a), replica_groups=[1,8]<=[8], dimensions={0}": 256 * 7 / 8,
    "f32[64]{0} all-gather-done(%a)": 0,
    "f32[16]{0:T(128)} all-reduce-start(%a), replica_groups={}, to_apply=%add": 2 * 64 * 7 / 8,
    "(f32[16], f32[16], u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}": 64,
    "pred[] all-reduce(%a), replica_groups={{0},{1}}, to_apply=%or": 0,
    "f32[16] all-reduce(%a), replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add": 2 * 64 * 3 / 4,
    "f32[16] all-gather(%a), replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x','y'}": 64 * 7 / 8,
    "f32[16] all-gather(%b), replica_groups=mesh['x'=2,'y'=4] {'y':(1)2}": 64 / 2,
    "((f32[8]), f32[4], s32[]) async-start(%a), calls=%scatter": 16,
    "f32[] custom-call(%a), custom_call_target=\"x\"": 0,
    "f32[4] conditional(%p, %a, %a), true_computation=%scatter, false_computation=%add": 16,
}  # fmt: skip
PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  ROOT %sum = f32[] add(%x, %y)
}}

%scatter (x: f32[8]) -> f32[4] {{
  ROOT %s = f32[4]{{0}} reduce-scatter(%x), replica_groups={{{{0,1}},{{2,3}}}}, dimensions={{0}}, to_apply=%add
}}

ENTRY %main.5_spmd (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0), metadata={{op_name="all-reduce(x)"}}
  %r = {line}
  ROOT %q = f32[8]{{0}} copy(%p)
}}
"""


@pytest.mark.parametrize("line", LINES)
def test_forms_that_other_compilers_write(line: str) -> None:
    assert sent_bytes(traffic_of(PROGRAM.format(line=line))) == LINES[line]


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        traffic_of("module @jit_f {}")


def test_unknown_groups_are_not_taken_for_all_devices() -> None:
    with pytest.raises(ValueError, match="unknown groups of devices, some of them"):
        traffic_of(PROGRAM.format(line="f32[16] all-reduce(%a), replica_groups=some of them"))


LOOP = """HloModule f, num_partitions=8

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]) parameter(0)
  %x = f32[8]{{0}} get-tuple-element(%p), index=1
  %r = f32[8]{{0}} all-reduce(%x), replica_groups={{}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %r)
}}

%condition (p: (s32[], f32[8])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(7)
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  {last}
}}

ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]) parameter(0)
  ROOT %w = (s32[], f32[8]) while(%p), condition=%condition, body=%body, metadata={{op_name="jit(f)/decode/while"}}
}}
"""
SENT = 2 * 32 * 7 / 8


@pytest.mark.parametrize(
    ("last", "trips"),
    [
        ("ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT, metadata={}", 7),
        ("ROOT %and = pred[] and(%lt, %other), metadata={}", 3),  # unknown
    ],
)
def test_trip_counts_without_the_compilers_note(last: str, trips: int) -> None:
    text = LOOP.format(last=last)
    assert sent_bytes(traffic_of(text, unknown_trips=3)) == trips * SENT
    assert sent_a_turn(text, "decode") == SENT
    assert sent_a_turn(text, "encode") == 0
