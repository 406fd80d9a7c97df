"""Reads pickles of plain data: dicts, lists, strings, numbers, and uint8 arrays. Nothing is imported or called.

A pickle is a program for a stack machine. Python's own `pickle` runs all of it, even if restricted: a single memo index
can allocate gigabytes, and nested values can overflow the interpreter's stack. This machine has only the instructions
that plain data needs, and limits their number and the types of keys. It never traverses nested values, so their depth
costs nothing. `pickletools` reads the operands.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

MAX_INSTRUCTIONS = 100_000  # a CIFAR-10 batch has 10,000 labels with one each and 10,000 names with two each
_MAX_NAME = 80


class PickleError(ValueError):
    """A pickle is damaged, or has more than plain data."""


class _Global(NamedTuple):
    """A name that a pickle imports; never resolved."""

    module: str
    name: str


@dataclass(eq=False)
class Array:
    """A uint8 array, once its state is set."""

    values: np.ndarray | None = None


_RECONSTRUCT = {_Global(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
_DTYPE = _Global("numpy", "dtype")
_GLOBALS = {*_RECONSTRUCT, _DTYPE, _Global("numpy", "ndarray")}
_OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}
_MARK, _UINT8 = object(), object()  # _UINT8: the only supported dtype


def read_plain(data: bytes) -> Any:
    """The value of a pickle. Strings of Python 2 are bytes.

    Raises:
        PickleError: it is damaged, too long, or has more than plain data.
    """
    machine = _Machine(io.BytesIO(data))
    try:
        return machine.run()
    except PickleError:
        raise
    except (ValueError, IndexError, TypeError, KeyError):
        raise PickleError(f"it is damaged at byte {machine.at}") from None


@dataclass(eq=False)
class _Machine:
    data: io.BytesIO
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    @property
    def at(self) -> int:
        return self.data.tell()

    def run(self) -> Any:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.data.read(1)
            operation = _OPERATIONS[code.decode("latin-1")]
            if operation.name == "STOP":
                return self.stack.pop()
            instruction = _INSTRUCTIONS.get(operation.name)
            if instruction is None:
                raise PickleError(f"byte {self.at} is an instruction that plain data does not need: {code!r}")
            instruction(self, operation.arg.reader(self.data) if operation.arg else None)
        raise PickleError(f"it has more than {MAX_INSTRUCTIONS} instructions")

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def pop(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

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

    def push_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise PickleError(f"byte {self.at} imports a name that is not a string")
        found = _Global(module[:_MAX_NAME], name[:_MAX_NAME])
        if found not in _GLOBALS:
            raise PickleError(f"it imports {'.'.join(found)}, which plain data does not need")
        self.push(found)

    def reduce(self) -> None:
        function, arguments = self.pop(2)
        if type(function) is not _Global or type(arguments) is not tuple:
            raise PickleError(f"byte {self.at} calls a {type(function).__name__}")
        if function in _RECONSTRUCT:
            self.push(Array())
        elif function == _DTYPE:
            code = arguments[0] if arguments else b""
            code = code[:_MAX_NAME] if type(code) in (bytes, str) else b"?"
            if code not in (b"u1", b"|u1", b"uint8", "u1", "|u1", "uint8"):
                raise PickleError(f"its array is {code!r}, not uint8")
            self.push(_UINT8)
        else:
            raise PickleError(f"byte {self.at} calls {'.'.join(function)}")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if target is _UINT8:
            return  # byte order, fields and alignment, which uint8 does not have
        if type(target) is not Array or type(state) is not tuple or len(state) != 5:
            raise PickleError(f"byte {self.at} sets the state of a {type(target).__name__}")
        _, shape, dtype, is_fortran, raw = state
        is_array = type(shape) is tuple and len(shape) <= 4 and all(type(n) is int and n >= 0 for n in shape)
        if not is_array or dtype is not _UINT8 or type(is_fortran) is not bool or type(raw) is not bytes:
            raise PickleError(f"byte {self.at} makes an array from something other than a shape, uint8 and bytes")
        if len(raw) != int(np.prod(shape, dtype=object)):
            raise PickleError(f"byte {self.at} makes an array of shape {shape} from {len(raw)} bytes")
        target.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


_Instruction = Callable[[_Machine, Any], None]  # with its operand


def _all(instruction: _Instruction, *names: str) -> dict[str, _Instruction]:
    return dict.fromkeys(names, instruction)


_INSTRUCTIONS: dict[str, _Instruction] = {
    **_all(lambda machine, _: None, "PROTO", "FRAME"),
    **_all(lambda machine, value: machine.push(value), "BININT", "BININT1", "BININT2", "LONG1"),
    **_all(lambda machine, value: machine.push(value), "SHORT_BINBYTES", "BINBYTES", "SHORT_BINUNICODE", "BINUNICODE"),
    **_all(lambda machine, text: machine.push(text.encode("latin-1")), "SHORT_BINSTRING", "BINSTRING"),
    **_all(lambda machine, index: machine.memoize(index), "BINPUT", "LONG_BINPUT"),
    **_all(lambda machine, index: machine.push(machine.memo[index]), "BINGET", "LONG_BINGET"),
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, names: machine.push_global(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.push_global(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
