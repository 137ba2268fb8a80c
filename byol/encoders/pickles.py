"""Pickle files read as plain data: nothing in them is imported, called or built.

Python's own disassembler takes a pickle apart into instructions; those that hold data are followed here and
all others refused. A class or function is a `Name` and never looked up. Long strings stay in the file until
their bytes are wanted: the tree of a checkpoint of gigabytes takes megabytes.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickletools import genops
from typing import Any

from byol.errors import CheckpointError

KEPT = 1024  # bytes; a longer string stays in the file
INSTRUCTIONS = 1_000_000  # a ResNet-200 has 0.2 million; a small file of many could fill the memory
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NUMBERS = ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1")
STRINGS = {  # and how many bytes tell their length
    "BINUNICODE": 4, "SHORT_BINUNICODE": 1, "BINUNICODE8": 8,
    "BINBYTES": 4, "SHORT_BINBYTES": 1, "BINBYTES8": 8, "BYTEARRAY8": 8,
}  # fmt: skip
TAKES = {  # from the stack, by how many parts; None is all since the last mark
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None, "APPEND": 1, "APPENDS": None, "SETITEM": 2,
    "SETITEMS": None, "REDUCE": 2, "NEWOBJ": 2, "BUILD": 1, "STACK_GLOBAL": 2,
}  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """The full name of a class or function."""

    text: str


class _Mapped(mmap.mmap):
    """A file of which no read takes more memory than it has bytes left, and no line more than a kilobyte."""

    def readline(self) -> bytes:
        return self.read(max(0, self.find(b"\n", self.tell(), self.tell() + KEPT) + 1 - self.tell()))


@dataclass(frozen=True, eq=False, slots=True)
class Stretch:
    """A long string that is still in the file."""

    file: _Mapped
    start: int
    end: int
    text: bool  # UTF-8 of characters that stand for bytes (latin-1); else the bytes themselves

    def __bytes__(self) -> bytes:
        raw: bytes = self.file[self.start : self.end]
        return raw.decode().encode("latin-1") if self.text else raw


def read_pickle(path: Path, expected: Callable[[str], bool], made: Callable[[Any, Any], Any]) -> Any:
    """The tree in a pickle: dicts with strings for keys, lists, tuples, strings, numbers, `Name`, `Stretch`.

    `expected` says of a full name, such as "numpy.dtype", whether it may occur. `made` gives what stands for
    a call of something with arguments; what would be handed to the result is set as its `state`. Raises
    CheckpointError for other names and instructions that hold no data. A file that is cut off or damaged
    raises what Python has for it: AttributeError, IndexError, KeyError, TypeError or ValueError.
    """
    stack: list[Any] = []
    marks: list[int] = []  # places in the stack
    memo: dict[int, Any] = {}  # parts that are referred back to by number

    def refused(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path} {what}, which no checkpoint of a network needs: a file like this can run code in "
            "programs that unpickle it. Nothing in it was run, and it is not read further."
        )

    with path.open("rb") as opened:
        file = _Mapped(opened.fileno(), 0, access=mmap.ACCESS_READ)
    operations: Any = genops(file)  # type: ignore[arg-type]  # whose annotation forgets files
    for count, (operation, argument, position) in enumerate(operations):
        code, parts = operation.name, []
        if count == INSTRUCTIONS:
            raise refused(f"has more than {INSTRUCTIONS:,} parts")
        if code in TAKES:
            start = marks.pop() if (taken := TAKES[code]) is None else len(stack) - taken
            if start < 0:
                raise IndexError
            parts = stack[start:]
            del stack[start:]
        if code in STRINGS:
            start, end = position + 1 + STRINGS[code], file.tell()
            kept = end - start <= KEPT
            stack.append(argument if kept else Stretch(file, start, end, isinstance(argument, str)))
        elif code in NUMBERS:
            stack.append(argument)
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if code == "EMPTY_LIST" else {})
        elif code.startswith("TUPLE"):
            stack.append(tuple(parts))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code == "MARK":
            marks.append(len(stack))
        elif code in ("APPEND", "APPENDS"):
            stack[-1].extend(parts)
        elif code in ("SETITEM", "SETITEMS"):
            # Strings only: what a stranger nested a million deep has no hash that the interpreter survives.
            if not all(type(key) is str for key in parts[::2]):
                raise TypeError
            stack[-1].update(zip(parts[::2], parts[1::2], strict=True))
        elif code in ("REDUCE", "NEWOBJ"):
            stack.append(made(*parts))
        elif code == "BUILD":
            stack[-1].state = parts[0]
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ", 1) if code == "GLOBAL" else parts
            text = ".".join(word if type(word) is str else "?" for word in words)
            if not expected(text):
                raise refused(f"calls for {text[:200]!r}")
            stack.append(Name(text))
        elif code == "PROTO" and argument > 5:
            raise CheckpointError(
                f"{path} is a pickle of protocol {argument}; this version of byol reads 2 to 5. Upgrade byol."
            )
        elif code not in ("PROTO", "FRAME", "STOP"):
            raise refused(f"has the pickle instruction {code}")
    return stack.pop()
