"""Where every picture of a tar or zip file lies: found once, kept in a file, and checked against the archive.

Members of the same name up to its first dot are one sample, as in WebDataset: `0001.jpg` and `0001.cls`.
"""

import json
import os
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from byol.data.labels import LONGEST
from byol.data.readers.folder import SUFFIXES, regular_file
from byol.disk import parse_json, replacing
from byol.errors import DataError, complaint, printable

SUFFIX = ".byol-index"  # behind the archive's own name
MAGIC = b"byol-index 1\n"
BLOCK = 512  # of a tar file
LONGEST_NAME = 4096
FARTHEST = 2**62  # bytes from the start of an archive: more the operating system does not take
LONGEST_HEADER = 2**20  # bytes of a tar member's further header, which holds names
GROWTH = 2**27  # bytes that a member may unpack to beyond eight times its size: pictures hardly shrink
SAMPLED = 4096  # bytes that tell archives apart, at three places
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<i4"), ("name_end", "<u4"), ("packed", "u1")])
FILES, FURTHER, LONG_NAME, LONG_LINK = b"0\0" + b"7", b"xg", b"L", b"K"  # kinds of tar members
FOLDER, OTHERS = b"5", {b"1": "links", b"2": "links", b"S": "sparse files"}
DAMAGE = (ValueError, OverflowError, struct.error, zipfile.BadZipFile, NotImplementedError, EOFError)
Read = Callable[[int, int], bytes]  # so many bytes of an archive from an offset
_ZIP_LOCAL = struct.Struct("<26xHH")  # lengths of a name and of what follows it


class Member(NamedTuple):
    """A file in an archive."""

    name: bytes
    offset: int
    size: int  # bytes in the archive
    packed: bool = False  # by deflate


@dataclass(frozen=True)
class Index:
    """What is known of one archive. Numbers in arrays and names in one buffer: some 20 bytes and its name a
    sample."""

    rows: np.ndarray[Any, Any]  # (n,) of ROW
    names: bytes
    classes: tuple[str, ...]  # that labels are places in; -1 is none
    passed_over: dict[str, int] = field(default_factory=dict)  # what is not an image, by kind

    def name(self, place: int) -> bytes:
        return self.names[self.rows["name_end"][place - 1] if place else 0 : self.rows["name_end"][place]]


def index_of(path: Path) -> tuple[Index, str]:
    """An archive's index; and why there was one that is not good any more, else "".

    It is kept beside the archive or, where nothing can be written there, in the user's cache folder. Raises
    DataError for an archive that is damaged or made to do harm.
    """
    try:
        with regular_file(path) as file:
            identity = identity_of(file)
            why = ""
            for place in (beside(path), in_cache(os.path.abspath(path))):
                with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
                    try:
                        return read_index(place, identity), ""
                    except ValueError as failure:
                        why = str(failure)
            index = build(file, path)
    except DataError:
        raise
    except OSError as failure:
        raise DataError(f"{printable(str(path))} cannot be read: {failure.strerror}.") from failure
    keep(index, identity, beside(path), in_cache(os.path.abspath(path)))
    return index, why


def keep(index: Index, identity: dict[str, Any], *places: Path) -> None:
    """Write an index to the first place where that is possible; without one it is made again next time."""
    for place in places:
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_index(place, index, identity)
            return


def beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def in_cache(name: str) -> Path:
    """Where the index of an archive of a path or URL lies in the user's cache folder."""
    home = os.path.expanduser("~")  # "~" of a user without one: then nothing is kept, as below a device
    folder = os.environ.get("XDG_CACHE_HOME") or (os.devnull if home == "~" else f"{home}/.cache")
    return Path(folder) / "byol" / f"{blake2b(os.fsencode(name), digest_size=16).hexdigest()}{SUFFIX}"


def read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    """Some bytes of a file; the position of a local one, which processes may share, stays where it is."""
    if isinstance(file, FileIO | BufferedReader):
        return os.pread(file.fileno(), size, offset)
    file.seek(offset)
    return file.read(size)


def length_of(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def identity_of(file: BinaryIO) -> dict[str, Any]:
    """What an archive is told from others by: its length, when it was written, and some of its bytes."""
    state = os.fstat(file.fileno())
    digest = sampled(partial(read_at, file), state.st_size)
    return {"bytes": state.st_size, "written": state.st_mtime_ns, "digest": digest}


def sampled(read: Read, length: int) -> str:
    """A digest of some of an archive's bytes."""
    digest = blake2b(digest_size=16)
    for start in (0, length // 2, max(0, length - SAMPLED)):
        digest.update(read(min(SAMPLED, length - start), start))
    return digest.hexdigest()


def write_index(place: Path, index: Index, identity: dict[str, Any]) -> None:
    """Replace an index file as a whole. Raises OSError."""
    told = {"identity": identity, "samples": len(index.rows), "classes": index.classes}
    head = json.dumps(told | {"passed_over": index.passed_over}).encode()
    content = b"".join((MAGIC, head, b"\n", index.rows.tobytes(), index.names))
    with replacing(place) as temporary:
        temporary.write_bytes(content + blake2b(content, digest_size=16).digest())


def read_index(place: Path, identity: dict[str, Any]) -> Index:
    """An index as it was written of this archive. Raises OSError, and ValueError, which says why not."""
    with regular_file(place) as file:
        index, found = parsed(file.read())
    if found != identity:
        raise ValueError("has changed since it was indexed")
    return index


def parsed(content: bytes) -> tuple[Index, dict[str, Any]]:
    """What the bytes of an index file tell, and of which archive. Raises ValueError, which says why not."""
    content, digest = content[:-16], content[-16:]
    if not content.startswith(MAGIC) or blake2b(content, digest_size=16).digest() != digest:
        raise ValueError("had a damaged index")
    head, _, rest = content[len(MAGIC) :].partition(b"\n")
    try:
        told = parse_json(head)
        found, end = dict(told["identity"]), told["samples"] * ROW.itemsize
        classes = tuple(map(str, told["classes"]))
        passed_over = {str(kind): int(count) for kind, count in told["passed_over"].items()}
        rows, names = np.frombuffer(rest[:end], ROW), rest[end:]
        in_bounds = (rows["label"] < len(classes)).all() and (rows["name_end"] <= len(names)).all()
        in_bounds &= (rows["offset"] < FARTHEST).all()
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as failure:
        raise ValueError("had a damaged index") from failure
    if not in_bounds or len(rows) != told["samples"]:  # somebody else's
        raise ValueError("had a damaged index")
    return Index(rows, names, classes, passed_over), found


def build(file: BinaryIO, path: Path | str) -> Index:
    """The index of an archive, from a pass over its members. Raises DataError."""
    rows, names, classes = array("q"), bytearray(), dict[str, int]()
    passed_over = Counter[str]()
    pictures: list[
        tuple[Member, bool]
    ] = []  # of the sample that is read, and whether nothing but .jpg follows
    key, label = None, -1

    def finish() -> None:
        """Take the sample's picture: of several the first; names of many dots are pictures of their own."""
        plain = [member for member, simple in pictures if simple]
        for member in plain[:1] or [member for member, _ in pictures]:
            names.extend(member.name)
            rows.extend((member.offset, min(member.size, 2**32 - 1), label, len(names), member.packed))
        if len(plain) and len(pictures) > 1:
            passed_over["further pictures of a sample"] += len(pictures) - 1

    try:
        for member in members(file, passed_over):
            folder, _, last = member.name.rpartition(b"/")
            stem, _, kind = last.partition(b".")
            if last.startswith(b".") or folder.split(b"/")[0] == b"__MACOSX":
                continue
            if (folder, stem) != key:
                finish()
                key, label, pictures = (folder, stem), -1, []
            kind = kind.lower()
            suffix = f".{kind.rpartition(b'.')[2].decode('latin-1')}"
            if suffix in SUFFIXES:
                pictures.append((member, b"." not in kind))
            elif kind == b"cls":
                text = content(partial(read_at, file), member, 4 * LONGEST).decode("utf-8", "replace").strip()
                label = classes.setdefault(text, len(classes)) if text else -1
            elif kind not in (b"json", b"txt"):
                passed_over[f"other files ({printable(suffix)})"] += 1
        finish()
        if len(names) >= 2**32:
            raise ValueError(f"holds names of {len(names):,} letters")
    except DAMAGE as failure:
        said = failure if isinstance(failure, ValueError) else f"is damaged ({complaint(failure)})"
        raise DataError(f"{printable(str(path))} {said}. Copy it again, or leave it out.") from failure
    columns = ROW.names or ()
    values = np.frombuffer(rows, dtype=np.int64).reshape(-1, len(columns))
    table = np.zeros(len(values), dtype=ROW)
    for column, name in enumerate(columns):
        table[name] = values[:, column]
    return Index(table, bytes(names), tuple(classes), dict(passed_over))


def members(file: BinaryIO, passed_over: Counter[str]) -> Iterator[Member]:
    """The files in an archive, in its order; `passed_over` counts what is none, by kind.

    Raises ValueError, which says what is wrong with it behind its name.
    """
    start = read_at(file, BLOCK, 0)
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return zip_members(file, passed_over)
    if start[257:262] != b"ustar" and start.startswith(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    ):
        raise ValueError("is compressed as a whole, so no picture can be read by itself; unpack it to .tar")
    return tar_members(file, passed_over)


def tar_members(file: BinaryIO, passed_over: Counter[str]) -> Iterator[Member]:
    """Those of a tar file of any dialect. Nothing is ever written to where a member's name leads."""
    end, at = length_of(file), 0
    name, size, sparse = b"", -1, False  # what a further header says of the next member
    while at < end:
        header = read_at(file, BLOCK, at)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise ValueError("ends too soon, inside a header")
        told = header[148:156].strip(b" \0")
        if not told or sum(header) - sum(header[148:156]) + 8 * 32 != number(told, "a checksum"):
            raise ValueError(f"is damaged at byte {at:,}" if at else "is not a tar or zip file")
        kind, length = header[156:157], number(header[124:136], "a length")
        if kind in FURTHER + LONG_NAME + LONG_LINK:
            if length > LONGEST_HEADER or at + BLOCK + length > end:
                raise ValueError(f"has a header of {length:,} bytes at byte {at:,}")
            data = read_at(file, length, at + BLOCK)
            if kind == b"L":
                name = data.split(b"\0")[0]
            elif kind == b"x":
                further = pax(data)
                name = further.get(b"path", name)
                size = number(further[b"size"], "a length", 10) if b"size" in further else size
                sparse = any(key.startswith(b"GNU.sparse") for key in further)
            at += BLOCK + -(-length // BLOCK) * BLOCK
            continue
        own, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
        if prefix and header[257:263] == b"ustar\0":
            own = prefix + b"/" + own
        name, length = (name or own).removeprefix(b"./").lstrip(b"/"), length if size < 0 else size
        if len(name) > LONGEST_NAME:
            raise ValueError(f"has a name of {len(name):,} letters at byte {at:,}")
        at += BLOCK
        folder = kind == FOLDER or (kind in FILES and name.endswith(b"/"))
        if kind == b"S":
            more = header[482]
            while more and at < end:  # further blocks of its map
                more, at = read_at(file, BLOCK, at)[504], at + BLOCK
        if kind not in b"123456":  # these have no content, whatever length they tell
            if at + length > end:
                short = f"it needs {at + length:,} bytes and has {end:,}"
                raise ValueError(f"ends inside its member {printable(os.fsdecode(name))}: {short}")
            if kind in FILES and not folder and not sparse:
                yield Member(name, at, length)
            at += -(-length // BLOCK) * BLOCK
        if not folder and (sparse or kind not in FILES):
            passed_over["sparse files" if sparse else OTHERS.get(kind, "members that are no files")] += 1
        name, size, sparse = b"", -1, False


def zip_members(file: BinaryIO, passed_over: Counter[str]) -> Iterator[Member]:
    """Those of a zip file: stored as they are, or packed by deflate."""
    end = length_of(file)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            link = (info.external_attr >> 16) & 0o170000 == 0o120000
            if info.is_dir():
                continue
            if link or info.flag_bits & 1 or info.compress_type not in (0, 8):
                passed_over["links" if link else "members that are encrypted or packed by no deflate"] += 1
                continue
            header = read_at(file, _ZIP_LOCAL.size, info.header_offset)
            offset = info.header_offset + _ZIP_LOCAL.size + sum(_ZIP_LOCAL.unpack(header))
            if not header.startswith(b"PK\3\4") or offset + info.compress_size > end:
                raise ValueError(f"is damaged at its member {printable(info.filename)}")
            name = info.filename.encode("utf-8", "surrogateescape").removeprefix(b"./").lstrip(b"/")
            yield Member(name[:LONGEST_NAME], offset, info.compress_size, info.compress_type == 8)


def number(text: bytes, what: str, base: int = 8) -> int:
    """A number of a tar header: octal, or of base 256 where its first bit is set. Raises ValueError."""
    if text[:1] == b"\x80":
        return int.from_bytes(text[1:])
    words = text.strip(b" \0")
    if not words.isdigit() and words:
        raise ValueError(f"has {what} that is not a number ({printable(words[:20].decode('latin-1'))})")
    return int(words or b"0", base)


def pax(data: bytes) -> dict[bytes, bytes]:
    """The records of a further header, each "length key=value" and a line end. Raises ValueError."""
    found, at = {}, 0
    while at < len(data) and data[at : at + 1] != b"\0":
        length = number(data[at : at + 12].partition(b" ")[0], "a length", 10)
        key, equals, value = data[at : at + length].partition(b" ")[2].partition(b"=")
        if not equals or length < 5 or at + length > len(data):
            raise ValueError("has a damaged further header")
        found[key], at = value[:-1], at + length
    return found


def content(read: Read, member: Member, most: int) -> bytes:
    """The bytes of a member. Raises ValueError when they are more than so many, or damaged."""
    if member.size > most:
        raise ValueError(f"its {member.size:,} bytes are more than the limit of {most:,}")
    data = read(member.size, member.offset)
    if len(data) < member.size:
        raise ValueError("its archive ends before it does")
    if member.packed:
        most = min(most, GROWTH + 8 * member.size)
        unpacking = zlib.decompressobj(-15)
        try:
            data = unpacking.decompress(data, most)
        except zlib.error as failure:
            raise ValueError(f"it is damaged ({failure})") from failure
        if unpacking.unconsumed_tail or not unpacking.eof:
            raise ValueError(f"it is damaged, or unpacks to more than {most:,} bytes")
    return data
