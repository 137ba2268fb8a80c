"""Pickle files read as plain data: nothing in them is imported, called or built.

A pickle is a program for a small stack machine. This one runs the instructions that hold data (protocols 2 to 5) and no
other. A class or function is a `Name` and never looked up, a call is a `Made` and never made, a name that was not expected
is refused. Long strings stay in the file until their bytes are asked for, so that reading the tree of a checkpoint of
gigabytes takes megabytes.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from byol.errors import CheckpointError

KEPT = 1024  # bytes; a longer string stays in the file
INSTRUCTIONS = 1_000_000  # a ResNet-200 has 0.2 million; a small file of many could fill the memory
CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
NUMBERS = {b"J": "<i", b"K": "<B", b"M": "<H", b"G": ">d"}
STRINGS = {b"X": "<I", b"\x8c": "<B", b"\x8d": "<Q"}
BYTES = {b"B": "<I", b"C": "<B", b"\x8e": "<Q", b"\x96": "<Q"}
TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
PUTS = {b"q": "<B", b"r": "<I"}
GETS = {b"h": "<B", b"j": "<I"}


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """The full name of a class or function."""

    text: str


@dataclass(eq=False, slots=True)
class Made:
    """What calling something with arguments would give."""

    what: "Name | Made"
    arguments: tuple[Any, ...]
    state: Any = None  # what would be set on it afterwards
    items: dict[str, Any] | None = None  # what would be put into it afterwards


@dataclass(frozen=True, eq=False, slots=True)
class Stretch:
    """A long string that is still in the file."""

    start: int
    length: int  # bytes
    text: bool  # UTF-8 of characters that stand for bytes (latin-1); else the bytes themselves


def is_pickle(head: bytes) -> bool:
    """Whether a file's first bytes (nine or more) are those of a pickle of protocol 2 or newer."""
    return (
        head[:1] == b"\x80" and head[1:2] > b"\x01" and head[8:9] != b"{"
    )  # which opens a safetensors header


def read_pickle(path: Path, expected: Callable[[str], bool]) -> Any:
    """The tree in a pickle: dicts, lists, tuples, strings, numbers, and Name, Made and Stretch for the rest.

    `expected` says of a full name, such as "numpy.dtype", whether it may occur. Raises CheckpointError for any other name,
    for instructions that hold no data, and for files that are cut off or damaged.
    """
    with path.open("rb") as file:
        machine = _Machine(file, path, expected)
        try:
            return machine.run()
        except (IndexError, KeyError, TypeError, ValueError) as failure:
            raise CheckpointError(
                f"{path} is damaged: up to byte {machine.position:,} it makes no sense as a pickle. Take another copy."
            ) from failure


def bytes_in(value: Any, file: BinaryIO) -> bytes:
    """The bytes that a value of the tree stands for, read from the pickle it came from. Raises ValueError for others."""
    if (
        isinstance(value, Made)
        and isinstance(value.what, Name)
        and value.what.text == "_codecs.encode"
        and value.arguments
    ):
        value = value.arguments[
            0
        ]  # protocol 2 has no bytes: they are written as text, a character for a byte
    if isinstance(value, Stretch):
        file.seek(value.start)
        raw = file.read(value.length)
        return raw.decode().encode("latin-1") if value.text else raw
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a {type(value).__name__} where bytes should be")


class _Machine:
    """The stack, the marks in it, and the numbered parts that a pickle refers back to."""

    def __init__(self, file: BinaryIO, path: Path, expected: Callable[[str], bool]) -> None:
        self.file, self.path, self.expected = file, path, expected
        self.size = path.stat().st_size
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(INSTRUCTIONS):
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            self.obey(code)
        raise CheckpointError(
            f"{self.path} has more than {INSTRUCTIONS:,} parts, far more than any network needs; it is not read further."
        )

    def obey(self, code: bytes) -> None:
        """The instructions that are mostly data."""
        if code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in NUMBERS:
            self.stack.append(self.number(NUMBERS[code]))
        elif code in STRINGS:
            self.stack.append(self.string(self.number(STRINGS[code]), text=True))
        elif code in BYTES:
            self.stack.append(self.string(self.number(BYTES[code]), text=False))
        elif code in PUTS:
            self.memo[self.number(PUTS[code])] = self.stack[-1]
        elif code in GETS:
            self.stack.append(self.memo[self.number(GETS[code])])
        elif code in TUPLES:
            self.stack.append(tuple(self.stack.pop() for _ in range(TUPLES[code]))[::-1])
        else:
            self.arrange(code)

    def arrange(self, code: bytes) -> None:
        """The instructions that put parts together."""
        match code:
            case b"(":
                self.below.append(self.stack)
                self.stack = []
            case b"t":
                parts = self.marked()  # which changes the stack
                self.stack.append(tuple(parts))
            case b"]" | b"}":
                self.stack.append([] if code == b"]" else {})
            case b"a" | b"e":
                parts = [self.stack.pop()] if code == b"a" else self.marked()
                if type(self.stack[-1]) is not list:
                    raise TypeError
                self.stack[-1].extend(parts)
            case b"s" | b"u":
                parts = [self.stack.pop(), self.stack.pop()][::-1] if code == b"s" else self.marked()
                self.put(self.stack[-1], parts)
            case b"R" | b"\x81":
                arguments, what = self.stack.pop(), self.stack.pop()
                if type(arguments) is not tuple or not isinstance(what, Name | Made):
                    raise TypeError
                self.stack.append(Made(what, arguments))
            case b"b":
                state = self.stack.pop()
                if not isinstance(self.stack[-1], Made):
                    raise TypeError
                self.stack[-1].state = state
            case b"c":
                self.stack.append(self.name(self.line(), self.line()))
            case b"\x93":
                name, module = self.stack.pop(), self.stack.pop()
                self.stack.append(self.name(module, name))
            case b"\x94":
                self.memo[len(self.memo)] = self.stack[-1]
            case b"\x8a":
                self.stack.append(int.from_bytes(self.take(self.number("<B")), "little", signed=True))
            case b"\x80":
                self.check_protocol(self.number("<B"))
            case b"\x95":
                self.take(8)  # how long the next stretch of instructions is: for readers that buffer
            case _:
                raise CheckpointError(
                    f"{self.path} has the pickle instruction {code!r} at byte {self.position - 1:,}, which holds no data of a "
                    "network. Nothing in the file was run, and it is not read further."
                )

    def put(self, target: Any, parts: list[Any]) -> None:
        """Keys and values in turn into a dict, or beside something that would be one."""
        if isinstance(target, Made):
            target.items = {} if target.items is None else target.items
            target = target.items
        # Strings only: what a stranger nested a million deep has no hash that the interpreter survives.
        if type(target) is not dict or len(parts) % 2 or not all(type(key) is str for key in parts[::2]):
            raise TypeError
        target.update(zip(parts[::2], parts[1::2], strict=True))

    def name(self, module: Any, name: Any) -> Name:
        text = f"{module}.{name}" if type(module) is type(name) is str else "something without a name"
        if self.expected(text):
            return Name(text)
        raise CheckpointError(
            f"{self.path} calls for {text[:200]!r}, which no checkpoint of a network needs: a file like this can run code in "
            "programs that unpickle it. Nothing in it was run, and it is not read further."
        )

    def check_protocol(self, protocol: int) -> None:
        if protocol > 5:
            raise CheckpointError(
                f"{self.path} is a pickle of protocol {protocol}; this version of byol reads 2 to 5. Upgrade byol to read it."
            )

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        parts, self.stack = self.stack, self.below.pop()
        return parts

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self, length: int, *, text: bool) -> str | bytes | Stretch:
        if length > KEPT:
            self.check_left(length)
            stretch = Stretch(self.position, length, text)
            self.position += length
            self.file.seek(self.position)
            return stretch
        raw = self.take(length)
        return raw.decode() if text else raw

    def line(self) -> str:
        raw = self.file.readline(KEPT)
        self.position += len(raw)
        if not raw.endswith(b"\n"):
            raise ValueError
        return raw[:-1].decode()

    def take(self, count: int) -> bytes:
        self.check_left(count)
        self.position += count
        return self.file.read(count)

    def check_left(self, count: int) -> None:
        """Before anything is read, so that a length that lies allocates nothing."""
        if count > self.size - self.position:
            raise CheckpointError(
                f"{self.path} is cut off or damaged: {count:,} bytes should follow byte {self.position:,}, and the file has "
                f"{self.size:,}. Take another copy."
            )
