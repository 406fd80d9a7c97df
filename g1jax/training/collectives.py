"""The communication volume of a compiled program, counted from its text, for which fake devices are enough.

    text = jax.jit(step).lower(*shapes).compile().as_text()
    traffic_of(text)["all-reduce"].sent             # bytes that each device sends in one call

Counted is what bandwidth-optimal ring algorithms send: with P bytes over n devices, each sends P·(n−1)/n in an
all-gather, reduce-scatter or all-to-all, twice that in an all-reduce, and P in a permute. The body of a loop is
multiplied by its trip count if the compiler knows it; of a conditional the most expensive branch counts.

The counts are of this machine's compiler. XLA for CPUs keeps an all-reduce where each device needs only a part of the
sum; those for TPUs and GPUs may turn it into a reduce-scatter, of half the bytes. It also reduces bfloat16 as float32.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SHARES = {
    "all-reduce": 2.0,
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
    "collective-permute": 1.0,
}
"""By kind, the bytes that each of n devices sends, as a multiple of payload · (n − 1) / n."""

_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*)")
_NAME = re.compile(r"(?:ENTRY )?%?([\w.\-]+) .*\{$")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in one call of a program, for each device."""

    calls: float = 0.0
    payload: float = 0.0
    """Bytes of the whole arrays that are reduced, gathered, scattered, exchanged or permuted."""
    sent: float = 0.0
    """Bytes that a device sends."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.calls + other.calls, self.payload + other.payload, self.sent + other.sent)

    def __mul__(self, times: float) -> "Traffic":
        return Traffic(self.calls * times, self.payload * times, self.sent * times)


def traffic_of(text: str, *, unknown_trips: int = 1) -> dict[str, Traffic]:
    """The traffic in a compiled program, `compiled.as_text()`, by kind.

    `unknown_trips`: the trip count of loops for which the compiler does not know it, such as the loop over the tokens
    of a response. The difference between 1 and 0 is the cost of one iteration.
    """
    found = _Program(_computations(text), _num_devices(text), unknown_trips).traffic_of(_entry(text))
    return {kind: found.get(kind, Traffic()) for kind in SHARES}


def sent_bytes(traffic: Mapping[str, Traffic]) -> float:
    """The bytes that a device sends, over all kinds."""
    return sum(part.sent for part in traffic.values())


def sent_a_turn(text: str, scope: str) -> float:
    """The most bytes that a device sends in one turn of a loop within this `jax.named_scope`."""
    program = _Program(_computations(text), _num_devices(text), 0)
    turns = [0.0]
    for instructions in program.computations.values():
        for instruction in instructions:
            if instruction.kind == "while":
                called = [_attribute(instruction, key) for key in ("body", "condition")]
                # The loop itself may have lost its name in the compiler's passes.
                inside = [part for name in called for part in program.computations[name]]
                if any(f"{scope}/while" in part.rest for part in (instruction, *inside)):
                    turns.append(sent_bytes(_sum(program.traffic_of(name) for name in called)))
    return max(turns)


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    kind: str
    rest: str  # operands and attributes


@dataclass(frozen=True)
class _Program:
    computations: Mapping[str, Sequence[_Instruction]]
    num_devices: int
    unknown_trips: int
    cache: dict[str, dict[str, Traffic]] = dataclasses.field(default_factory=dict)

    def traffic_of(self, name: str) -> dict[str, Traffic]:
        """The traffic of a computation and those it calls."""
        if name not in self.cache:
            self.cache[name] = _sum(self._instruction(instruction) for instruction in self.computations[name])
        return self.cache[name]

    def _instruction(self, instruction: _Instruction) -> dict[str, Traffic]:
        kind = instruction.kind.removesuffix("-start")
        if kind in SHARES:
            return {kind: self._collective(kind, instruction)}
        if kind == "while":
            body, condition = (self.traffic_of(_attribute(instruction, key)) for key in ("body", "condition"))
            trips = self._trips(instruction)
            return _sum((_scaled(body, trips), _scaled(condition, trips + 1)))
        if kind == "conditional":
            branches = [self.traffic_of(name) for name in _branches(instruction)]
            return max(branches, key=sent_bytes)
        called = re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", instruction.rest)
        return _sum(self.traffic_of(name) for name in called)

    def _trips(self, loop: _Instruction) -> int:
        """The trip count, by the compiler's note or, as for TPUs, from a condition that only compares a counter."""
        known = _KNOWN_TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        *before, last = self.computations[_attribute(loop, "condition")]
        constants = {part.name: part.rest for part in before if part.kind == "constant"}
        bound = re.match(r"%?[\w.\-]+, %?([\w.\-]+)\)", last.rest)
        if last.kind == "compare" and "direction=LT" in last.rest and bound and bound[1] in constants:
            return int(constants[bound[1]].partition(")")[0])
        return self.unknown_trips

    def _collective(self, kind: str, instruction: _Instruction) -> Traffic:
        size = _group_size(instruction, self.num_devices)
        shape = instruction.shape
        if instruction.kind in ("all-gather-start", "reduce-scatter-start", "collective-permute-start"):
            shape = _elements(shape)[1]  # of (operands, results, …)
        payload = _num_bytes(shape) * (size if kind == "reduce-scatter" else 1)
        share = (size - 1) / size if kind != "collective-permute" else 1.0
        return Traffic(1.0, payload, SHARES[kind] * share * payload)


def _sum(parts: Iterable[Mapping[str, Traffic]]) -> dict[str, Traffic]:
    total: dict[str, Traffic] = {}
    for part in parts:
        for kind, traffic in part.items():
            total[kind] = total.get(kind, Traffic()) + traffic
    return total


def _scaled(traffic: Mapping[str, Traffic], times: float) -> dict[str, Traffic]:
    return {kind: part * times for kind, part in traffic.items()}


# Parsing


def _computations(text: str) -> dict[str, list[_Instruction]]:
    """The instructions of each computation."""
    found: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = _NAME.match(line)
            if name:
                current = found.setdefault(name[1], [])
            continue
        parts = _LINE.match(line) if line.startswith(" ") else None
        if parts:
            shape = _shape_end(parts[2])
            kind, _, rest = parts[2][shape:].lstrip().partition("(")
            current.append(_Instruction(parts[1], parts[2][:shape], kind, rest))
    return found


def _entry(text: str) -> str:
    name = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    if name is None:
        raise ValueError("not the text of a compiled program: it has no ENTRY")
    return name[1]


def _num_devices(text: str) -> int:
    header = text.partition("\n")[0]
    counts = [re.search(rf"{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
    partitions, replicas = (int(count[1]) if count else 1 for count in counts)
    return partitions * replicas


def _shape_end(text: str) -> int:
    """The end of the shape that a text starts with: an array's at a space, a tuple's at its closing parenthesis."""
    if not text.startswith("("):
        return text.index(" ")
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"a shape without an end: {text[:80]}")


def _elements(shape: str) -> list[str]:
    """The parts of a tuple's shape."""
    parts, depth, start = [], 0, 1
    for i, letter in enumerate(shape):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(shape[start:i].strip())
            start = i + 1
    return parts


def _num_bytes(shape: str) -> float:
    """The bytes of all arrays in a shape."""
    total = 0.0
    for kind, bits, sizes in _ARRAY.findall(shape):
        count = 1
        for size in sizes.split(",") if sizes else ():
            count *= int(size)
        total += count * (1 if kind == "pred" else int(bits) / 8)
    return total


def _group_size(instruction: _Instruction, num_devices: int) -> int:
    """The number of devices in each replica group.

    Groups are listed, `{{0,1},{2,3}}`; iota tiles, `[2,4]<=[8]`; or mesh axes, `mesh['x'=2,'y'=4] {'y'}`, or parts of
    them, `{'y':(1)2}`. Without groups, `{}`, all devices form one.
    """
    groups = instruction.rest.partition("replica_groups=")[2]
    listed, iota = re.match(r"\{\{([\d,]+)\}", groups), re.match(r"\[(\d+),(\d+)\]<=", groups)
    if listed:
        return len(listed[1].split(","))
    if iota:
        return int(iota[2])
    axes = re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", groups)
    if axes:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
        taken = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in taken)
    if groups and not groups.startswith("{}"):
        raise ValueError(f"{instruction.kind} {instruction.name}: unknown groups of devices, {groups[:60]}")
    return num_devices


def _attribute(instruction: _Instruction, key: str) -> str:
    value = re.search(rf"\b{key}=%?([\w.\-]+)", instruction.rest)
    if value is None:
        raise ValueError(f"{instruction.kind} {instruction.name} has no {key}")
    return value[1]


def _branches(instruction: _Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [_attribute(instruction, key) for key in ("true_computation", "false_computation")]
