"""Which files of a folder are images, in which order and of which class; against torchvision."""

import errno
import os
import pickle
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from pictures import decode, encoded, photo
from torchvision.datasets import ImageFolder

from byol.data.decode import BadImage
from byol.data.images import open_images
from byol.data.readers import folder
from byol.data.readers.folder import FileReader, further_names, listed, read_file, scan as scan_and_count
from byol.errors import DataError

FolderOf = Callable[..., Path]


def scan(root: Path) -> FileReader:
    return scan_and_count(root)[0]


def names(reader: FileReader) -> list[str]:
    return [reader.name(index) for index in range(len(reader))]


def test_files_and_classes_are_those_of_torchvision(folder_of: FolderOf) -> None:
    # "a-b" sorts before "a/": the order of files is not the order of folders
    root = folder_of("dogs/1.png", "a/2.png", "a-b/x/3.png", "a b/4.png", "a/sub/deep/5.png", "ünïcode/6.png")
    reader, theirs = scan(root), ImageFolder(str(root))
    found = reader.labels(np.arange(len(reader)))
    assert found is not None
    labels = found.values
    assert found.classes == tuple(theirs.classes)
    ours = {name: int(label) for name, label in zip(names(reader), labels, strict=True)}
    assert ours == {os.path.relpath(path, root): label for path, label in theirs.samples}
    assert labels.dtype == np.int64


def test_the_order_does_not_depend_on_the_disk(folder_of: FolderOf) -> None:
    given = ["b/2.png", "a/10.png", "c.png", "a/9.png", "b/1.png"]
    assert (
        names(scan(folder_of(*given, root="one")))
        == names(scan(folder_of(*reversed(given), root="two")))
        == sorted(given)
    )


@pytest.mark.parametrize(
    "files", [("1.png", "2.png"), ("a/1.png", "a/2.png"), ("a/1.png", "b/2.png", "3.png")]
)
def test_one_folder_or_files_beside_folders_mean_no_classes(
    files: tuple[str, ...], folder_of: FolderOf
) -> None:
    images = open_images(folder_of(*files))
    assert (images.labels, images.classes) == (None, None)


def test_hidden_files_and_foreign_files_are_passed_over(folder_of: FolderOf) -> None:
    root = folder_of(
        "a/1.png", ".hidden.png", ".git/2.png", "a/._1.png", "__MACOSX/a/1.png", "notes.txt", "a/Thumbs.db"
    )
    assert names(scan(root)) == ["a/1.png"]


def test_suffixes_count_in_any_case(folder_of: FolderOf) -> None:
    given = ["1.PNG", "2.JPEG", "3.jpg", "4.Jpg", "5.tif", "6.TIFF", "7.webp", "8.bmp", "9.gif"]
    assert names(scan(folder_of(*given))) == given


def test_odd_names_work_end_to_end(folder_of: FolderOf) -> None:
    odd = [
        b"with space.png",
        b"new\nline.png",
        b"\xff\xfe invalid.png",
        "\u732b/\U0001f408.png".encode(),
        b"-rf.png",
        b"a'\"$.png",
    ]
    root = folder_of(*odd)
    reader = scan(root)
    assert sorted(reader.raw_name(index) for index in range(len(reader))) == sorted(odd)
    for index in range(len(reader)):
        seed = odd.index(reader.raw_name(index))
        assert os.fsencode(reader.name(index)) == odd[seed]
        assert np.array_equal(decode(reader.read(index)), photo(20, 30, seed))


def test_links_count_once_and_loops_end(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of("a/1.png", "b/2.png")
    outside = folder_of("3.png", "4.png", root="outside")
    (root / "a" / "loop").symlink_to(root)
    (root / "0-again").symlink_to(root / "a")  # sorts before the real folder
    (root / "0-again.png").symlink_to(root / "a" / "1.png")
    (root / "linked").symlink_to(outside)
    (root / "one.png").symlink_to(outside / "3.png")
    (root / "twice").symlink_to(outside)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "self.png").symlink_to(root / "self.png")
    assert names(scan(root)) == ["a/1.png", "b/2.png", "linked/3.png", "linked/4.png"]


def test_links_that_are_passed_over_are_told(
    folder_of: FolderOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of("a/1.png", "b/2.png")
    open_images(root)
    assert not caplog.records
    (root / "a" / "loop\x1b").symlink_to(root)
    (root / "b" / "1.png").symlink_to(root / "a" / "1.png")
    os.link(root / "a" / "1.png", root / "a" / "3.png")
    assert names(open_images(root).reader) == ["a/1.png", "b/2.png"]
    (record,) = caplog.records
    assert record.getMessage().endswith(": 3 links to what counts already, such as a/loop\\x1b.")


def test_a_file_of_several_names_counts_once_in_every_class(folder_of: FolderOf, tmp_path: Path) -> None:
    """A hard link is no less a name than the first; in another class it is a label of its own."""
    root, outside = folder_of("cats/1.png", "cats/2.png", "dogs/3.png"), folder_of("4.png", root="outside")
    for other in ("cats/0.png", "cats/deep/1.png", "dogs/1.png", "dogs/9.png"):
        (root / other).parent.mkdir(exist_ok=True)
        os.link(root / "cats" / "1.png", root / other)
    os.link(outside / "4.png", root / "dogs" / "4.png")
    os.link(outside / "4.png", outside / "5.png")
    (root / "dogs" / "linked.png").symlink_to(outside / "5.png")
    images = open_images(root)
    assert names(images.reader) == ["cats/0.png", "cats/2.png", "dogs/1.png", "dogs/3.png", "dogs/4.png"]
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1, 1]
    # Where folders are no classes, the file has nothing to say twice.
    os.link(root / "cats" / "1.png", root / "0.png")
    assert names(scan(root)) == ["0.png", "cats/2.png", "dogs/3.png", "dogs/4.png"]


def test_files_of_one_number_are_files_of_their_own_where_it_means_nothing(folder_of: FolderOf) -> None:
    """As on another disk, or in file systems that tell one number for all files."""
    root = folder_of("1.png", "2.png", "3.png")
    os.link(root / "1.png", root / "4.png")
    every = [b"1.png", b"2.png", b"3.png", b"4.png"]
    assert further_names(os.fsencode(root), every, array("Q", [7] * 4)) == [b"4.png"]


def test_a_linked_file_is_found_when_its_target_is_elsewhere(folder_of: FolderOf) -> None:
    root, outside = folder_of("a/1.png"), folder_of("2.png", root="outside")
    (root / "b.png").symlink_to(outside / "2.png")
    (root / "c.png").symlink_to(outside / "2.png")
    assert names(scan(root)) == ["a/1.png", "b.png"]


def test_pipes_sockets_and_folders_named_like_pictures_are_not_images(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder_of("1.png", "folder.png/2.png")
    os.mkfifo(root / "pipe.png")
    (root / "piped.png").symlink_to(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(root)  # a socket's path must be short
        listener.bind("socket.png")
        assert names(scan(root)) == ["1.png", "folder.png/2.png"]


@pytest.mark.timeout(10)
def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="not a regular file"):
        read_file(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.png", "No such file"), ("folder", "not a regular file"), ("a\0b.png", "null character")],
)
def test_what_cannot_be_read_says_why(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadImage, match=reason):
        FileReader(tmp_path, [os.fsencode(name)]).read(0)


def test_an_absurdly_large_file_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(BadImage, match="bytes are more than the limit"):
        read_file(tmp_path / "large.png")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no other system has a file that fails so")
def test_a_disk_that_fails_while_it_is_read_is_a_bad_image(tmp_path: Path) -> None:
    """By the memory of this process, whose first page nobody may read: a real EIO, of a regular file."""
    (tmp_path / "a.png").symlink_to("/proc/self/mem")
    (tmp_path / "b.png").write_bytes(encoded(photo()))
    images = open_images(tmp_path)
    with pytest.raises(BadImage, match=os.strerror(errno.EIO)):
        images.array(0)
    assert images.array(1).ndim == 3


def test_permissions_are_obeyed() -> None:
    """An unreadable file is one bad image; an unreadable folder stops, since nobody knows what it holds."""
    script = """
import os, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from byol.data.readers.folder import scan
from byol.errors import DataError
root = Path(sys.argv[1])
if os.getuid() == 0:
    os.chown(root / "a", 65534, -1)
    os.chown(root / "a" / "1.png", 65534, -1)
    os.setuid(65534)  # root may read everything
def seen():
    try:
        print(scan(root)[0].read(0)[1:4])
    except DataError as failure:
        print(type(failure).__name__, failure)
seen()
(root / "a" / "1.png").chmod(0)
seen()
(root / "a").chmod(0)
seen()
(root / "a").chmod(0o755)
"""
    with TemporaryDirectory() as name:  # tmp_path lies in a folder that other users may not enter
        root = Path(name)
        root.chmod(0o755)
        (root / "a").mkdir()
        (root / "a" / "1.png").write_bytes(encoded(photo()))
        command = [sys.executable, "-c", script, str(root)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.splitlines() == [
        "b'PNG'",
        "BadImage Permission denied",
        f"DataError The folder {root}/a cannot be listed: Permission denied.",
    ]


def test_a_list_names_files_relative_to_itself(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of("a/1.png", "with space.png", "2.png")
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(encoded(photo()))
    lines = ["# train", "with space.png", "", "  a/1.png", str(elsewhere), "2.png"]
    for text in ("\n".join(lines), "\ufeff" + "\r\n".join(lines) + "\r\n"):
        (root / "train.txt").write_text(text, newline="")
        reader = listed(root / "train.txt")
        assert names(reader) == ["with space.png", "a/1.png", str(elsewhere), "2.png"]
        assert np.array_equal(decode(reader.read(2)), photo())
        assert np.array_equal(decode(reader.read(1)), photo(20, 30, 0))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_says_so(encoding: str, folder_of: FolderOf) -> None:
    """As PowerShell writes what is redirected into a file."""
    root = folder_of("1.png")
    (root / "list.txt").write_bytes("1.png\r\n".encode(encoding))
    with pytest.raises(DataError, match=r"list\.txt is UTF-16.*UTF-8"):
        listed(root / "list.txt")


def test_a_list_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The list .*gone\.txt cannot be read: No such file"):
        listed(tmp_path / "gone.txt")


def test_a_million_files_take_little_memory() -> None:
    name = b"n01440764/n01440764_%08d.JPEG"
    reader = FileReader(Path("/data"), (name % number for number in range(100_000)))
    assert len(pickle.dumps(reader)) / len(reader) < len(name % 0) + 12  # bytes a file
    assert reader.raw_name(99_999) == name % 99_999


def test_the_identity_follows_names_and_contents(folder_of: FolderOf) -> None:
    root = folder_of("a/1.png", "b/2.png")
    before = scan(root).digest(everything=False)
    assert scan(root).digest(everything=False) == before
    (root / "b" / "2.png").write_bytes(encoded(photo(seed=9)))
    changed = scan(root).digest(everything=False)
    assert changed != before
    (root / "b" / "2.png").rename(root / "b" / "3.png")
    assert scan(root).digest(everything=False) not in (before, changed)
    (root / "b" / "3.png").write_bytes(b"")  # an unreadable picture is no reason to stop
    scan(root).digest(everything=False)


def test_the_identity_of_a_small_set_follows_every_byte(folder_of: FolderOf) -> None:
    """Of a large one every byte of some files, and the length of more."""
    root = folder_of(*(f"{number:03}.png" for number in range(100)))
    seen = {scan(root).digest(everything=False)}
    for name in ("001.png", "050.png", "098.png"):
        data = bytearray((root / name).read_bytes())
        data[-20] ^= 1
        (root / name).write_bytes(data)
        seen.add(scan(root).digest(everything=False))
    assert len(seen) == 4


def test_the_identity_follows_the_length_of_every_file(
    folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "HASHED", 0)
    root = folder_of(*(f"{number:03}.png" for number in range(300)))
    seen = {scan(root).digest(everything=False)}
    for name in ("001.png", "150.png", "298.png"):
        with (root / name).open("ab") as file:
            file.write(b".")
        seen.add(scan(root).digest(everything=False))
    assert len(seen) == 4
