"""Archives in object storage or on a web server, by their URLs: read by ranges of bytes, through fsspec."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from byol.data.decode import BadImage
from byol.data.readers.archive_index import (
    SUFFIX,
    Index,
    Member,
    build,
    content,
    in_cache,
    keep,
    parsed,
    read_index,
    sampled,
)
from byol.data.readers.folder import MAX_BYTES
from byol.data.readers.reader import names_of
from byol.disk import parse_json
from byol.errors import DataError, complaint, printable

VERSIONS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "updated", "last_modified")
BLOCK = 2**22  # bytes that are read at a time while an archive is indexed
COMING = 512  # pictures that are on their way or wait for being requested
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between attempts: networks stumble
Result = TypeVar("Result")
# File systems that were used. A forked process that let go of its parent's would close their connections in
# the event loop that both share: the parent would wait for an answer for ever.
KEPT: dict[int, Any] = {}


class Remote:
    """Archives by their URLs. Each index is made once and kept in the user's cache folder."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.places = list(urls)
        self.names = names_of(list(map(plain, urls)))
        self.identities: list[dict[str, Any]] = [{} for _ in urls]
        # Connections and threads are a process's own: a forked one makes others.
        self._owner = -1
        self._threads: ThreadPoolExecutor
        self._systems: dict[int, tuple[Any, str]]  # file systems, and the paths of archives in them
        self._coming: OrderedDict[tuple[int, int], tuple[Future[list[Any]], int]]

    def index(self, place: int) -> tuple[Index, str]:
        """From the cache folder; as it lies beside the archive, where `byol pack` made it; or made now.

        And why there was one that is not good any more, else "". Raises DataError.
        """
        url, why = self.places[place], ""
        system, path = located(url)
        told = patiently(partial(system.info, path), url)
        length = told.get("size")
        if length is None or told.get("partial") is False:
            raise DataError(
                f"{printable(url)} cannot be read in parts: its server tells no length, or refuses requests "
                "of ranges. Copy it, or serve it by another."
            )
        version = next((str(told[name]) for name in VERSIONS if told.get(name)), "")
        identity = {"bytes": length, "written": version}
        some = partial(sampled, partial(self._read, place), length)
        if not version:
            identity["digest"] = some()
        self.identities[place] = identity
        with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
            try:
                return read_index(in_cache(url), identity), ""
            except ValueError as failure:
                why = str(failure)
        index = None
        with suppress(ValueError):  # somebody else's, or of what was there before
            index, of = parsed(patiently(partial(system.cat_file, plain(path) + SUFFIX), url, absent=b""))
            if of.get("bytes") != length or of.get("digest") != some():
                index = None
        if index is None:
            with patiently(partial(system.open, path, "rb", block_size=BLOCK), url) as file:
                index = patiently(partial(build, file, url), url)
        keep(index, identity, in_cache(url))
        return index, why

    def beside(self, place: int, name: str) -> Any:
        """What a JSON file beside an archive holds. Raises OSError without one, and ValueError."""
        system, path = located(self.places[place])
        url = f"{plain(path).rpartition('/')[0]}/{name}"
        if not (text := patiently(partial(system.cat_file, url), url, absent=b"")):
            raise FileNotFoundError(url)
        return parse_json(text)

    def read(self, place: int, member: Member) -> bytes:
        """A picture: waited for where it is expected, else requested now. Raises BadImage and DataError."""
        try:
            return content(partial(self._read, place), member, MAX_BYTES)
        except ValueError as failure:
            raise BadImage(str(failure)) from failure

    def expect(self, wanted: list[tuple[int, Member]]) -> None:
        """Request pictures, all at the same time, while others are worked on."""
        self._own()
        new = [
            (place, member.offset, member.size)
            for place, member in wanted
            if 0 < member.size <= MAX_BYTES and (place, member.offset) not in self._coming
        ]
        if not new:
            return
        first = self._located(new[0][0])[0]
        together = [one for one in new if self._located(one[0])[0] is first]  # of one file system, as usual
        paths = [self._located(place)[1] for place, _, _ in together]
        starts = [offset for _, offset, _ in together]
        ends = [offset + size for _, offset, size in together]
        parts = self._threads.submit(first.cat_ranges, paths, starts, ends, on_error="return")
        for number, (place, offset, _) in enumerate(together):
            self._coming[place, offset] = parts, number
        while len(self._coming) > COMING:  # an image that nobody has asked for
            self._coming.popitem(last=False)

    def version(self, place: int) -> dict[str, Any]:
        """What tells an archive from others, wherever it lies."""
        return {"bytes": self.identities[place]["bytes"]}

    def checksum(self, everything: bool) -> bytes | None:
        """Of every byte, as far as the server tells when they change."""
        if not everything:
            return b""
        told = [(name, one["written"]) for name, one in zip(self.names, self.identities, strict=True)]
        return repr(told).encode() if all(version for _, version in told) else None

    def release(self) -> None:
        """Let go of what is on its way."""
        if self._owner == os.getpid():
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._owner = -1

    def _own(self) -> None:
        if self._owner != os.getpid():
            self._coming, self._systems, self._threads = OrderedDict(), {}, ThreadPoolExecutor(2)
            self._owner = os.getpid()  # last: other threads look at it

    def _located(self, place: int) -> tuple[Any, str]:
        if place not in self._systems:
            self._systems[place] = located(self.places[place])
        return self._systems[place]

    def _read(self, place: int, size: int, offset: int) -> bytes:
        self._own()
        url, data = self.places[place], None
        if (place, offset) in self._coming:
            parts, number = self._coming.pop((place, offset))
            with suppress(Exception):  # which requesting it again will tell
                data = parts.result()[number]
        if not isinstance(data, bytes):
            system, path = self._located(place)
            data = patiently(partial(system.cat_file, path, start=offset, end=offset + size), url)
        if len(data) > size:
            raise DataError(
                f"The server of {printable(url)} sends all of it where a part was requested. Copy the "
                "archives."
            )
        return data


def located(url: str) -> tuple[Any, str]:
    """The file system of a URL, which each process has its own of, and the path in it. Raises DataError."""
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(url)
        KEPT.setdefault(id(found[0]), found[0])
        return found
    except ImportError as failure:
        raise DataError(
            f"Reading {printable(url)} needs more ({failure}). Run: pip install 'byol[remote]' for https://, "
            "pip install s3fs for s3://, gcsfs for gs://, adlfs for abfs://."
        ) from failure
    except ValueError as failure:
        raise DataError(f"{printable(url)} is no address that fsspec knows ({failure}).") from failure


def patiently(call: Callable[[], Result], url: str, absent: Result | None = None) -> Result:
    """What a call gives that asks a server, repeated when it fails; `absent` where there is nothing.

    Raises DataError, which names the URL.
    """
    for wait in (*WAITS, None):
        try:
            return call()
        except DataError:
            raise
        except (FileNotFoundError, PermissionError) as failure:
            if absent is not None:
                return absent
            how = "there is no such thing" if isinstance(failure, FileNotFoundError) else "it is not allowed"
            raise DataError(f"{printable(url)} cannot be read: {how}. Check the address.") from failure
        except Exception as failure:  # each file system has exceptions of its own
            if absent is not None and getattr(failure, "status", 0) in (401, 403):
                return absent  # as servers say that list nothing, and of addresses that are signed
            if wait is None:
                raise DataError(
                    f"{printable(url)} cannot be read ({complaint(failure)}), {len(WAITS) + 1} times. The "
                    "same command continues when its server answers again."
                ) from failure
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def plain(url: str) -> str:
    """A URL without what stands behind its path, such as ?download=true or a signature."""
    return url.partition("?")[0]


def archives_at(url: str, endings: tuple[str, ...]) -> list[str]:
    """The archives that a URL means: itself, those of a pattern, or those in a folder. Raises DataError."""
    suffix = os.path.splitext(plain(url))[1].lower()
    if suffix in endings and "*" not in url:
        return [url]
    if suffix and "*" not in url and "/" not in suffix:
        raise DataError(
            f"{printable(url)} is not a tar or zip file, which alone are read from addresses. Download it, "
            "or pack the images (byol pack)."
        )
    system, path = located(url)
    find = system.glob if "*" in url else system.find
    found = sorted(
        name for name in patiently(partial(find, path), url) if str(name).lower().endswith(endings)
    )
    if not found:
        raise DataError(
            f"Nothing at {printable(url)} is a tar or zip file. Where a server lists no files, name them, as "
            "in https://host/shards/{00000..00127}.tar."
        )
    return [system.unstrip_protocol(name) for name in found]
