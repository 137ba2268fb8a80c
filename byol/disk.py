"""Write files so that a crash leaves the old content or the new; read them only up to a size and a depth."""

import errno
import fcntl
import io
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from byol.errors import DISK_TROUBLE, ConfigError, DiskError, complaint

MOST_JSON, MOST_YAML = 2**25, 2**18  # bytes: more than any file has, and still read in seconds
MOST_VALUES = 2**21  # in JSON: some of 3 bytes take 80 in memory
MOST_OF_A_RUN = 2**20  # bytes of JSON that describes a run: hundreds of times as many as it takes
MOST_DAMAGED = 2**19  # lines of a JSON lines file that are read in vain
MOST_HEADER, MOST_TENSORS = 10**8, 2**16  # of safetensors: bytes that its library reads; names
DEEPEST, NO_BRACKETS = 100, bytes({*range(256)} - {*b"[]{}"})  # levels of JSON
DEEPEST_YAML, LONGEST_YAML = 20, 3000  # levels; characters of a value, of which a number would not be printed
Item = TypeVar("Item")
NOT_OWN = "it is a symbolic link, a hard link, or not a regular file. Remove it"
_locks = ExitStack()  # files that this process holds
# Forked workers live on for a moment when their process is killed; what it held is then free all the same.
os.register_at_fork(after_in_child=_locks.close)


def hold(path: Path) -> FileIO:
    """Hold a lock file, made where it is missing, until it is closed or this process ends.

    Raises BlockingIOError when another process holds it, another OSError when it cannot be made, or when
    something else has its name: a link, a pipe, a device, a file that has a second name elsewhere.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    file = _locks.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
    if not _has_one_name(os.fstat(descriptor)):
        file.close()
        raise OSError(errno.EINVAL, f"its {path.name} is something else, take that away", os.fspath(path))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file now. Nothing is made, changed or waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # it was never held, or this process may not look
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as failure:
        return isinstance(failure, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def can_be_added_to(path: Path) -> bool:
    """Whether a file is not there yet, or is one that has no other name."""
    try:
        state = os.lstat(path)
    except OSError:  # that is told where it is written to
        return True
    return _has_one_name(state)


def _has_one_name(state: os.stat_result) -> bool:
    return stat.S_ISREG(state.st_mode) and state.st_nlink <= 1


def at_once(path: str, flags: int) -> int:
    """An `opener` for files that somebody else may have put there: a pipe is never waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextmanager
def writing(path: Path, *also: Path) -> Iterator[None]:
    """Raise DiskError where a file cannot be written, whichever library says so.

    `also` are other names that it has meanwhile.
    """
    try:
        yield
    except Exception as failure:
        number, named = getattr(failure, "errno", None), getattr(failure, "filename", None)
        if found := re.search(r"\(os error (\d+)\)", str(failure)):  # SafetensorError
            number = int(found[1])
        elif re.fullmatch(r"\d+ requested and \d+ written", str(failure)):  # what numpy says of a full disk
            number = errno.ENOSPC
        if number is None or (named is None and number not in DISK_TROUBLE):
            raise
        place = Path(os.fsdecode(path if named is None else named))
        if not any(own in (place, *place.parents) for own in (path, *also)):
            raise
        raise DiskError(number, os.strerror(number), os.fspath(path)) from failure


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the file's place when the block ends well, else it is removed.

    Raises DiskError when it cannot be written.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with writing(path, temporary):
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask has it: safetensors lets only the owner read
            yield temporary
            temporary.chmod(mode)
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A temporary folder; it becomes `folder` (empty or not there) when the block ends well, else it is gone.

    Raises DiskError when it cannot be written.
    """
    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    with writing(folder, temporary):
        shutil.rmtree(temporary, ignore_errors=True)  # a container's processes may all have the same number
        temporary.mkdir()
        try:
            yield temporary
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a small file as a whole. Raises DiskError when it cannot be written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str) -> None:
    """Add to the end of a file, all or none, in one write that lines of another process do not fall between.

    Raises DiskError when it cannot be written, and for a link, a pipe or a file of several names, as a
    stranger's folder may hold: what is added would be elsewhere too.
    """
    content = text.encode()
    if not can_be_added_to(path):
        raise DiskError(errno.EINVAL, NOT_OWN, os.fspath(path))
    with writing(path), open(path, "ab", buffering=0, opener=at_once) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, "")


@contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """A name of a file or folder in UTF-8, for libraries that read no other: safetensors, pyarrow, torch."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield Path(f"/dev/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:
        yield path


@contextmanager
def opened_safetensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """A safetensors file, as its own library opens it.

    Raises OSError and SafetensorError, and ValueError for one that names millions of tensors.
    """
    from safetensors import safe_open

    with open(path, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        header = file.read(min(int.from_bytes(file.read(8), "little"), MOST_HEADER))
    if header.count(b"{") > MOST_TENSORS:
        raise ValueError(f"it names more than {MOST_TENSORS:,} tensors")
    with in_utf8(path) as named, safe_open(named, framework) as opened:
        yield opened


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The torch tensors in a safetensors file by name, and its metadata. Raises as `opened_safetensors`."""
    with opened_safetensors(path) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, opened.metadata() or {}


def parse_json(text: str | bytes, most: int = MOST_JSON) -> Any:
    """The plain values in JSON text. Raises ValueError when it is damaged, too long or nested too deeply."""
    if len(text) > most:
        raise ValueError(f"{len(text):,} characters; expected at most {most:,}")
    marks: Any = ("[", "{", ",") if isinstance(text, str) else (b"[", b"{", b",")
    if len(text) > MOST_VALUES and sum(map(text.count, marks)) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if sum(map(text.count, marks[:2])) > DEEPEST and _is_deeper(text, DEEPEST):
        raise ValueError("it is nested too deeply")  # whatever goes through it level by level could fail
    return value


def _is_deeper(text: str | bytes, levels: int) -> bool:
    """Whether JSON has more levels, by its brackets alone: each round takes away those that hold nothing."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    brackets = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content).translate(None, NO_BRACKETS)
    for _ in range(levels):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def read_json(path: Path, most: int = MOST_JSON) -> Any:
    """The plain values in a JSON file. Raises OSError, and ValueError as `parse_json` does."""
    with open(path, "rb", opener=at_once) as file:
        return parse_json(file.read(most + 1), most)


@contextmanager
def by_way_of_memory(path: Path) -> Iterator[io.BytesIO]:
    """Give a file in memory, which becomes the file at `path` in the end.

    For torch's own writing, which on a full disk ends the process or raises no OSError.
    """
    held = io.BytesIO()
    yield held
    # Not write_bytes: it takes a view of its own, and Python 3.12.1 crashes after a failed write.
    with held.getbuffer() as written, path.open("wb") as stream:
        stream.write(written)


def json_lines(path: Path, word: str, read: Callable[[Any], Item | None]) -> Iterator[Item]:
    """What `read` makes of the lines of a JSON lines file, one after the other; nothing where it is missing.

    Lines are passed over that are damaged or of which `read` makes None, or fails; behind half a million of
    them no more is read. Those without `word`, which every good line holds in quotes, are not even parsed.
    A pipe or a device, which might never end, is as good as missing.
    """
    if not path.is_file():
        return
    key, vain = f'"{word}"'.encode(), 0
    with open(path, "rb", opener=at_once) as file:
        for line in iter(partial(file.readline, MOST_JSON + 1), b""):
            try:
                item = read(parse_json(line)) if key in line else None
            # Not JSON, not a dictionary, no such key, an absurd number.
            except (ValueError, TypeError, KeyError, OverflowError):
                item = None
            if item is not None:
                yield item
            elif (vain := vain + 1) > MOST_DAMAGED:
                return


def read_yaml(path: Path, what: str) -> Any:
    """The plain values in a YAML file; `what` names it in the ConfigError raised when it cannot be read.

    A long one, a deep one, long values and aliases (`*name`: a few lines can stand for a billion values) are
    refused.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            self.depth += 1
            problem = "values nested too deeply" if self.depth > DEEPEST_YAML else ""
            if isinstance(event, yaml.AliasEvent):
                problem = "an alias"
            elif isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_YAML:
                problem = f"a value of more than {LONGEST_YAML:,} letters or digits"
            if problem:
                raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    try:
        with path.open("rb") as file:
            content = file.read(MOST_YAML + 1)
        if len(content) > MOST_YAML:
            raise ValueError(f"it is longer than {MOST_YAML:,} bytes")
        return yaml.load(content.decode("utf-8-sig"), Loader)
    except FileNotFoundError as failure:
        raise ConfigError(f"There is no {what} at {path}; expected a YAML file.") from failure
    except (OSError, ValueError, yaml.YAMLError) as failure:
        place = getattr(failure, "problem_mark", None)
        reason = f"line {place.line + 1}: {getattr(failure, 'problem', '')}" if place else complaint(failure)
        raise ConfigError(f"The {what} {path} cannot be read: {reason}. Expected a YAML file.") from failure


def check_writable(folder: Path, advice: str = "Choose another place.", name: str = "") -> None:
    """Raise ConfigError, before any work, when no file can be made in a folder, or where it would be made.

    With `name`, also when `replacing` could not make a file of that name.
    """
    place, names = folder, [f".tmp-{os.getpid()}-{name}" if name else "."]
    while not os.path.exists(place):  # unlike Path.exists, it is False where one may not look
        names.append(place.name)
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        for one in names:
            with suppress(FileNotFoundError):
                os.lstat(place / one)
    except OSError as failure:
        said = f"Nothing can be written to {folder / name}: {failure.strerror}. {advice}"
        raise ConfigError(said) from failure


def from_home(text: str | Path) -> Path:
    """A path that people gave: as it is where something is there, else with ~ for the home of a user."""
    return Path(text if os.path.exists(text) else os.path.expanduser(text))


def left_behind(path: Path) -> bool:
    """Whether something temporary, made by `replacing` or `filling`, is of a process that has ended."""
    try:
        os.kill(int(path.name.split("-")[1]), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # somebody else's
        return False
    return False


def sync(path: Path) -> None:
    """Have the operating system write a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
