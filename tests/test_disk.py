import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from full_disk import largest_file
from PIL import Image

from byol.disk import (
    append_text,
    check_writable,
    filling,
    hold,
    in_utf8,
    is_held,
    json_lines,
    left_behind,
    opened_safetensors,
    read_json,
    replacing,
    write_text,
)
from byol.errors import ConfigError, DiskError
from byol.train import checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_as_a_whole_and_alone(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("some")
        assert not path.exists()
        assert temporary.parent == tmp_path  # a rename from another file system would be a copy
    assert path.read_text() == "some"
    assert names(tmp_path) == ["a.txt"]


def test_old_content_stands_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [True, False])
def test_failure_while_writing_leaves_what_was_there_and_no_temporary(tmp_path, failure, existed):
    path = tmp_path / "a.txt"
    if existed:
        write_text(path, "old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise failure("stop")

    with pytest.raises(failure, match="stop"):
        write()
    assert names(tmp_path) == (["a.txt"] if existed else [])
    assert not existed or path.read_text() == "old"


def test_file_that_was_written_by_a_rename_counts_too(tmp_path):
    """As safetensors does it: in a temporary of its own, readable by its owner alone."""
    with replacing(tmp_path / "a.txt") as temporary:
        private = tmp_path / "private"
        private.touch(mode=0o600)
        private.write_text("some")
        private.rename(temporary)
    assert (tmp_path / "a.txt").read_text() == "some"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o027])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)
        write_text(tmp_path / "b.txt", "some")
        (tmp_path / "usual").touch()
        assert os.umask(mask) == mask  # it is never changed, not for a moment: other threads write files too
    finally:
        os.umask(before)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_nothing_written_is_an_empty_file(tmp_path):
    with replacing(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_bytes() == b""


def test_link_is_replaced_and_what_it_points_to_is_left(tmp_path):
    (tmp_path / "elsewhere.txt").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere.txt")
    write_text(tmp_path / "a.txt", "ours")
    assert (tmp_path / "elsewhere.txt").read_text() == "theirs"
    assert not (tmp_path / "a.txt").is_symlink()


def test_name_that_is_taken_by_a_folder_fails_and_leaves_no_temporary(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DiskError, match=r"a\.txt cannot be written"):
        write_text(tmp_path / "a.txt", "some")
    assert names(tmp_path) == ["a.txt"]


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(DiskError, match=r"nowhere/a\.txt cannot be written") as told:
        write_text(tmp_path / "nowhere" / "a.txt", "some")
    assert told.value.exit_code == 2
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["with space", os.fsdecode("ümläut".encode()), "line\nend", os.fsdecode(b"\xff\xfe"), ".hidden", "-x"],
)
def test_names_of_any_kind_are_kept(tmp_path, name):
    write_text(tmp_path / name, "some")
    assert names(tmp_path) == [name]


def test_libraries_that_read_utf_8_only_are_given_such_a_name(tmp_path):
    for name in (b"plain", "ümläut".encode(), b"\xff\xfe\n"):
        path = tmp_path / os.fsdecode(name)
        safetensors.numpy.save_file({"x": np.arange(9)}, path)
        with in_utf8(path) as named:
            assert safetensors.numpy.load_file(named)["x"].tolist() == list(range(9))
        with path.open("wb") as file:
            pq.write_table(pa.table({"x": [1, 2]}), file)
        with in_utf8(path) as named:
            assert pq.ParquetFile(named).read()["x"].to_pylist() == [1, 2]
    with pytest.raises(FileNotFoundError), in_utf8(tmp_path / os.fsdecode(b"\xff")):
        pass


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """What reaches the disk from now on, and when something gets its name."""
    found: list[str] = []
    fsync = os.fsync

    def recorded_fsync(handle: int) -> None:
        found.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def recorded(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: object, target: object) -> None:
            found.append("rename")
            rename(source, target)

        return renamed

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded(os.replace))  # of files
    monkeypatch.setattr(os, "rename", recorded(os.rename))  # of folders
    return found


def test_file_reaches_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, done):
    write_text(tmp_path / "a.txt", "some")
    assert done == [f"fsync .tmp-{os.getpid()}-a.txt", "rename", f"fsync {tmp_path.name}"]


def test_a_folder_s_files_reach_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, done):
    """As checkpoints are written, of which the oldest goes only then."""
    with filling(tmp_path / "a") as folder:
        (folder / "1").write_text("one")
        (folder / "2").write_text("two")
    assert sorted(done[:2]) == ["fsync 1", "fsync 2"]
    assert done[2:] == [f"fsync .tmp-{os.getpid()}-a", "rename", f"fsync {tmp_path.name}"]
    for step in (1, 2):
        done.clear()
        checkpoint.save(tmp_path / "run", step, {"a": torch.ones(2)}, "plan", keep=1)
        assert sorted(done[:2]) == ["fsync manifest.json", "fsync state.safetensors"]
        named = [f"fsync .tmp-{os.getpid()}-step-{step:08d}", "rename", "fsync run"]
        assert done[2:] == named + ["rename"] * (step - 1)


def test_full_disk_leaves_the_old_file_and_no_temporary(tmp_path):
    """In a process whose files may not grow beyond a thousand bytes, which is how a full disk looks to it."""
    write_text(tmp_path / "a.txt", "old")
    script = f"""
import resource, signal
from pathlib import Path
from byol.disk import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_text(Path({str(tmp_path / "a.txt")!r}), "new" * 10_000)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def opened(write):
    """A way to write into a file that is open, which is closed again when it fails."""

    def writer(path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            write(file)

    return writer


WRITERS = {
    "text": lambda path: path.write_text("x" * 10_000),
    "numpy": opened(lambda file: np.save(file, np.zeros(1000))),
    "numpy's archive": opened(lambda file: np.savez(file, np.zeros(1000))),
    "safetensors": lambda path: safetensors.numpy.save_file({"x": np.zeros(1000)}, path),
    "parquet": lambda path: pq.write_table(pa.table({"x": np.random.default_rng(0).random(1000)}), path),
    "Pillow": lambda path: Image.effect_noise((99, 99), 50).save(path, "png"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whichever_library_meets_the_full_disk_the_path_is_named(tmp_path, writer):
    with (
        largest_file(500),
        pytest.raises(DiskError, match=r"a\.bin cannot be written") as told,
        replacing(tmp_path / "a.bin") as path,
    ):
        WRITERS[writer](path)
    assert told.value.exit_code == 70
    with (
        largest_file(500),
        pytest.raises(DiskError, match=r"folder cannot be written"),
        filling(tmp_path / "folder") as folder,
        replacing(folder / "a.bin") as path,
    ):
        WRITERS[writer](path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "failure", [FileNotFoundError(2, "gone", "b.txt"), BrokenPipeError(32, "closed"), KeyError(28)]
)
def test_failures_of_something_else_pass_as_they_are(tmp_path, failure):
    with pytest.raises(type(failure)) as told, replacing(tmp_path / "a.txt"):
        raise failure
    assert told.value is failure


def test_lines_are_added_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    with largest_file(500):
        append_text(path, "a" * 300 + "\n")
        with pytest.raises(DiskError, match=r"a\.jsonl cannot be written"):
            append_text(path, "ü" * 200 + "\n")
        append_text(path, "ü\n")
    assert path.read_text("utf-8") == "a" * 300 + "\nü\n"


def test_an_error_of_the_disk_is_pickled_whole():
    there = pickle.loads(pickle.dumps(DiskError(28, "No space left on device", "a.txt")))
    assert str(there).startswith("a.txt cannot be written: No space left on device. ")
    assert there.exit_code == 70


def test_old_file_has_its_name_until_the_new_one_takes_it(tmp_path):
    script = """
import sys
import time
from pathlib import Path
from byol.disk import write_text
path = Path(sys.argv[1])
write_text(path, "old")
def hook(event, _):
    if event in ("os.rename", "os.remove"):
        print(event, path.exists())
sys.addaudithook(hook)
write_text(path, "new")
"""
    command = [sys.executable, "-c", script, tmp_path / "a.txt"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout == "os.rename True\n"


def test_kill_at_any_moment_leaves_one_whole_content(tmp_path):
    """A process that writes without pause is killed again and again; only whole files are ever found."""
    path = tmp_path / "a.txt"
    script = f"""
from pathlib import Path
from byol.disk import write_text
print("ready", flush=True)
for number in range(10**9):
    write_text(Path({str(path)!r}), str(number % 10) * 200_000)
"""
    for turn in range(12):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not path.exists():
                pass
            try:
                process.wait(timeout=0.002 * turn)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        content = path.read_text()
        assert len(content) == 200_000
        assert len(set(content)) == 1


def test_what_a_dead_process_left_is_told_from_what_a_living_one_writes():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ended.wait()
    try:
        assert left_behind(Path(f".tmp-{ended.pid}-a.npz"))
        assert not left_behind(Path(f".tmp-{living.pid}-a.npz"))
        assert not left_behind(Path(".tmp-1-a.npz"))
        assert left_behind(Path(".tmp-x-a.npz"))
        assert left_behind(Path(f".tmp-{10**30}-a.npz"))
    finally:
        living.kill()
        living.communicate()


def test_folders_that_are_not_there_yet_are_looked_at_too(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    for name in ("x" * 256, "new/" + "x" * 256, "x" * 256 + "/new"):
        with pytest.raises(ConfigError, match=r"x/?(new)?: File name too long"):
            check_writable(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_of_one_process_and_ends_with_it_whatever_that_has_forked(tmp_path):
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    child = fork.Process(target=lambda: (begun.set(), time.sleep(60)))
    with hold(tmp_path / "lock"):
        with pytest.raises(BlockingIOError):
            hold(tmp_path / "lock")
        child.start()
        assert begun.wait(60)
    try:
        hold(tmp_path / "lock").close()
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a pipe", "a link", "a second name of a file", "a folder", "a device"])
def test_a_lock_is_a_file_of_its_own_and_nothing_else_is_waited_for_or_written_to(tmp_path, kind):
    (tmp_path / "theirs").write_text("work")
    path = tmp_path / "lock"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link":
        path.symlink_to(tmp_path / "theirs")
    elif kind == "a second name of a file":
        path.hardlink_to(tmp_path / "theirs")
    elif kind == "a folder":
        path.mkdir()
    else:
        path = Path(os.devnull)
    with pytest.raises(OSError, match=r"take that away|Too many levels|Is a directory"):
        hold(path)
    assert not is_held(path)
    assert (tmp_path / "theirs").read_text() == "work"


def test_whether_a_lock_is_held_is_seen_without_making_it(tmp_path):
    assert not is_held(tmp_path / "lock")
    assert names(tmp_path) == []
    with hold(tmp_path / "lock"):
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")


def test_the_good_lines_of_a_file_are_read_in_turn_and_the_others_passed_over(tmp_path):
    bad = [b'{"a": 1', b"", b"[]", b'["a"]', b'{"b": 3}', b'"a"', b'{"a": "\xff"}', b'{"a": ' + b"[" * 10**5]
    good = [b'{"a": 1}', '{"a": "\u2028\u00e9"}'.encode(), b'{"a": 2}\r', b'{"a": 3}']
    path = tmp_path / "a.jsonl"
    assert [*json_lines(path, "a", lambda one: one["a"])] == []
    path.write_bytes(b"\n".join([good[0], *bad, *good[1:]]))
    assert [*json_lines(path, "a", lambda one: one["a"])] == [1, "\u2028\u00e9", 2, 3]


def test_behind_half_a_million_damaged_lines_no_more_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    for count, found in ((400_000, [1, 2]), (600_000, [1])):
        path.write_bytes(b'{"a": 1}\n' + b"\n" * count + b'{"a": 2}\n')
        assert [*json_lines(path, "a", lambda one: one["a"])] == found


@pytest.mark.parametrize("kind", ["link", "link to nothing", "second name", "pipe", "folder"])
def test_nothing_is_added_to_something_else_that_has_a_file_s_name(tmp_path, kind):
    path, precious = tmp_path / "a.jsonl", tmp_path / "precious"
    if kind != "link to nothing":
        precious.write_text("work")
    {
        "link": lambda: path.symlink_to(precious), "link to nothing": lambda: path.symlink_to(precious),
        "second name": lambda: os.link(precious, path), "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()  # fmt: skip
    with pytest.raises(
        DiskError, match=r"a\.jsonl cannot be written: it is a symbolic link, a hard link"
    ) as told:
        append_text(path, "more")
    assert told.value.exit_code == 2
    assert not precious.exists() if kind == "link to nothing" else precious.read_text() == "work"


def test_a_pipe_that_has_a_file_s_name_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a")
    assert [*json_lines(tmp_path / "a", "a", lambda one: one)] == []
    with pytest.raises(ValueError, match="Expecting value"):
        read_json(tmp_path / "a")
    with pytest.raises(ValueError, match="no file"), opened_safetensors(tmp_path / "a"):
        pass


@pytest.mark.timeout(60)
def test_a_device_that_never_ends_has_no_lines(tmp_path):
    """As metrics.jsonl of a stranger's run that is reported."""
    (tmp_path / "a.jsonl").symlink_to("/dev/zero")
    assert [*json_lines(tmp_path / "a.jsonl", "a", lambda one: one)] == []
