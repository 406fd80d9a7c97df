"""Reads pickles of plain data: dicts, lists, strings, numbers, and uint8 arrays. Nothing is imported or called.

A pickle is a program for a stack machine. Python's own `pickle` runs all of it, even if restricted: a single memo index
can allocate gigabytes, and nested values can overflow the interpreter's stack. This machine has only the instructions
that plain data needs, and limits their number, the size of integers and the types of keys. It never traverses nested
values, so their depth costs nothing.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_INSTRUCTIONS = 100_000  # a CIFAR-10 batch has 10,000 labels with one each and 10,000 names with two each
_MAX_NAME = 80

_RECONSTRUCT = {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}
_DTYPE = ("numpy", "dtype")
_GLOBALS = {*_RECONSTRUCT, _DTYPE, ("numpy", "ndarray")}
_MARK = object()


class PickleError(ValueError):
    """A pickle is damaged, or has more than plain data."""


@dataclass(frozen=True)
class _Global:
    """A name that a pickle imports; never resolved."""

    name: tuple[str, str]


@dataclass(eq=False)
class _Dtype:
    """uint8, the only supported dtype."""


@dataclass(eq=False)
class Array:
    """A uint8 array, once its state is set."""

    values: np.ndarray | None = None


def read_plain(data: bytes) -> Any:
    """The value of a pickle. Strings of Python 2 are bytes.

    Raises:
        PickleError: it is damaged, too long, or has more than plain data.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, KeyError):
        raise PickleError(f"it is damaged at byte {machine.at}") from None


@dataclass(eq=False)
class _Machine:
    data: bytes
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.data[self.at]
            self.at += 1
            if code == ord("."):
                return self.stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise PickleError(f"byte {self.at} is an instruction that plain data does not need: {bytes([code])!r}")
            instruction(self)
        raise PickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")

    # The operands of an instruction

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise PickleError(f"it is cut short at byte {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> int:
        return int(struct.unpack(kind, self.take(struct.calcsize(kind)))[0])

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + _MAX_NAME)
        if end < 0:
            raise PickleError(f"a name at byte {self.at} is cut short or too long")
        raw = self.take(end - self.at)
        self.at += 1
        return raw.decode("ascii")

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def pop_tuple(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.push(tuple(items[::-1]))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise PickleError(f"byte {self.at} appends to a {type(target).__name__}")
        target += items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise PickleError(f"byte {self.at} sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (bytes, str):  # hashing a nested tuple can take exponential time
                raise PickleError(f"byte {self.at}: a key is a {type(key).__name__}")
            target[key] = value

    # Imports, and the two that are supported as calls

    def push_global(self, module: str, name: str) -> None:
        if (module, name) not in _GLOBALS:
            raise PickleError(f"it imports {module}.{name}, which plain data does not need")
        self.push(_Global((module, name)))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise PickleError(f"byte {self.at} calls a {type(function).__name__}")
        if function.name in _RECONSTRUCT:
            self.push(Array())
        elif function.name == _DTYPE:
            code = arguments[0] if arguments else b""
            code = code[:_MAX_NAME] if type(code) in (bytes, str) else b"?"
            if code not in (b"u1", b"|u1", b"uint8", "u1", "|u1", "uint8"):
                raise PickleError(f"its array is {code!r}, not uint8")
            self.push(_Dtype())
        else:
            raise PickleError(f"byte {self.at} calls {'.'.join(function.name)}")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _Dtype:
            return  # byte order, fields and alignment, which uint8 does not have
        if type(target) is not Array or type(state) is not tuple or len(state) != 5:
            raise PickleError(f"byte {self.at} sets the state of a {type(target).__name__}")
        _, shape, dtype, is_fortran, raw = state
        is_array = type(shape) is tuple and len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)
        if not is_array or type(dtype) is not _Dtype or type(is_fortran) is not bool or type(raw) is not bytes:
            raise PickleError(f"byte {self.at} makes an array from something other than a shape, uint8 and bytes")
        if len(raw) != int(np.prod(shape, dtype=object)):
            raise PickleError(f"byte {self.at} makes an array of shape {shape} from {len(raw)} bytes")
        target.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _skip(count: int) -> Callable[[_Machine], None]:
    def skip(machine: _Machine) -> None:
        machine.take(count)

    return skip


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(min(machine.number("B"), 9)), "little", signed=True))


def _unicode(kind: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(kind)).decode())


def _bytes(kind: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(kind)))


def _integer(kind: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.number(kind))


def _put(kind: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.memo.__setitem__(machine.number(kind), machine.stack[-1])


def _get(kind: str) -> Callable[[_Machine], None]:
    return lambda machine: machine.push(machine.memo[machine.number(kind)])


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(module) is not str or type(name) is not str:
        raise PickleError(f"byte {machine.at} imports a name that is not a string")
    machine.push_global(module[:_MAX_NAME], name[:_MAX_NAME])


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME
    ord("("): lambda machine: machine.push(_MARK),
    ord("}"): lambda machine: machine.push({}),
    ord("]"): lambda machine: machine.push([]),
    ord(")"): lambda machine: machine.push(()),
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("K"): _integer("<B"),
    ord("M"): _integer("<H"),
    ord("J"): _integer("<i"),
    0x8A: _long,
    ord("U"): _bytes("<B"),
    ord("T"): _bytes("<i"),
    ord("C"): _bytes("<B"),
    ord("B"): _bytes("<I"),
    0x8C: _unicode("<B"),
    ord("X"): _unicode("<I"),
    ord("t"): lambda machine: machine.push(tuple(machine.pop_to_mark())),
    0x85: lambda machine: machine.pop_tuple(1),
    0x86: lambda machine: machine.pop_tuple(2),
    0x87: lambda machine: machine.pop_tuple(3),
    ord("a"): lambda machine: machine.extend([machine.stack.pop()]),
    ord("e"): lambda machine: machine.extend(machine.pop_to_mark()),
    ord("s"): lambda machine: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
    ord("q"): _put("<B"),
    ord("r"): _put("<I"),
    0x94: lambda machine: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),  # MEMOIZE
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("c"): lambda machine: machine.push_global(machine.line(), machine.line()),
    0x93: _stack_global,
    ord("R"): lambda machine: machine.reduce(),
    ord("b"): lambda machine: machine.build(),
}
