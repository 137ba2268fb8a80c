"""`pack` writes shards that hold every image once with its bytes, equal for equal images, kill or not."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import PHOTOS, encoded, photo

from byol.cli import main
from byol.data.images import open_images
from byol.data.pack import pack
from byol.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A labelled folder with names that are not simple."""
    root = tmp_path / "photos"
    names = [
        "a/1.png",
        "a/1.jpg",
        "a/my.trip.2.png",
        "b/ü.PNG",
        "b/.x/3.png",
        f"b/{'long' * 50}.png",
        "b/4.png",
    ]
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(photo(12, 16, seed), "JPEG" if name.endswith("jpg") else "PNG"))
    return root


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[0-9]*.tar"))}


def test_every_image_is_there_once_with_its_bytes_and_label(photos: Path, tmp_path: Path) -> None:
    loose = open_images(photos)
    done = pack(loose, tmp_path / "s", each=4)
    assert (done.images, done.shards, done.left_out) == (6, 2, [])
    packed = open_images(tmp_path / "s")
    assert packed.classes == loose.classes == ("a", "b")

    def held(images) -> list[tuple[bytes, int]]:
        return [(images.reader.read(row), images.labels[row]) for row in range(len(images))]

    assert sorted(held(packed)) == sorted(held(loose))
    assert held(packed) != held(loose)  # shuffled
    pack(loose, tmp_path / "o", each=4, in_order=True)
    assert held(open_images(tmp_path / "o")) == held(loose)
    names = {open_images(tmp_path / "o").name(row) for row in range(6)}
    assert {"00000.tar:a/1.jpg", "00000.tar:a/my_trip_2.png"} <= names


def test_folders_that_were_packed_apart_keep_the_names_of_their_classes(tmp_path: Path) -> None:
    """Class 0 is another one in each."""
    for name, classes in (("a", ["ant", "bee"]), ("b", ["bee", "cow"])):
        array = np.stack([photo(12, 16, seed) for seed in range(3)])
        images = open_images(array, labels=[classes[seed % 2] for seed in range(3)])
        pack(images, tmp_path / "s" / name, each=2, in_order=True)
    both = open_images(tmp_path / "s")
    assert both.classes == ("ant", "bee", "cow")
    assert both.labels is not None
    assert [both.classes[one] for one in both.labels] == ["ant", "bee", "ant", "bee", "cow", "bee"]
    (tmp_path / "s" / "b" / "byol-pack.json").write_text('{"finished": false}')
    with pytest.raises(DataError, match="b is not finished"):
        open_images(tmp_path / "s")


def test_other_programs_read_the_shards_in_the_webdataset_layout(photos: Path, tmp_path: Path) -> None:
    loose = open_images(photos)
    pack(loose, tmp_path / "s", each=100, in_order=True)
    with tarfile.open(tmp_path / "s" / "00000.tar") as file:
        members = [(one.name, file.extractfile(one).read()) for one in file]
        assert {(one.mtime, one.uid, one.uname, one.mode) for one in file.getmembers()} == {(0, 0, "", 0o644)}
    keys = [name.rpartition("/")[0] + "/" + name.rpartition("/")[2].partition(".")[0] for name, _ in members]
    assert keys[::2] == keys[1::2]  # a picture and its label, side by side
    assert len(set(keys)) == 6
    assert [data for _, data in members[::2]] == [loose.reader.read(row) for row in range(6)]
    assert [name.rpartition(".")[2] for name, _ in members[1::2]] == ["cls"] * 6


def test_equal_images_give_equal_bytes_with_any_number_of_processes(photos: Path, tmp_path: Path) -> None:
    pack(open_images(photos), tmp_path / "one", each=2)
    os.utime(photos / "a" / "1.png", (5, 5))
    pack(open_images(photos), tmp_path / "two", each=2, workers=2)
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    pack(open_images(photos), tmp_path / "three", each=2, seed=1)
    assert shards(tmp_path / "one") != shards(tmp_path / "three")


def test_arrays_are_kept_without_loss_and_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    pack(open_images(PHOTOS), tmp_path / "s", in_order=True)
    packed = open_images(tmp_path / "s")
    assert all(np.array_equal(packed.array(row), PHOTOS[row]) for row in range(len(PHOTOS)))
    (tmp_path / "photos").mkdir()
    for name, data in {"1.png": encoded(PHOTOS[0]), "2.png": b"no", "3.png": encoded(PHOTOS[1])}.items():
        (tmp_path / "photos" / name).write_bytes(data)
    done = pack(open_images(tmp_path / "photos"), tmp_path / "t")
    assert [row for row, _ in done.left_out] == [1]
    assert (done.images, len(open_images(tmp_path / "t"))) == (2, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_which_none_can_be_packed_are_a_sentence_with_the_reason_and_leave_nothing(
    tmp_path: Path, workers: int
) -> None:
    deep = open_images(np.random.default_rng(0).integers(0, 256, (7, 8, 8, 13), np.uint8))

    def stop(done: int, total: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(deep, tmp_path / "s", each=3, workers=workers, progress=stop)
    with pytest.raises(DataError, match=r"None of the 7 .* The first, 0: it has 13 channels, which no pict"):
        pack(deep, tmp_path / "s", each=3, workers=workers)
    assert os.listdir(tmp_path / "s") == [".lock"]
    assert pack(open_images(PHOTOS), tmp_path / "s").images == len(PHOTOS)


def test_a_folder_of_anything_else_is_refused(photos: Path, tmp_path: Path) -> None:
    images = open_images(photos)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "diary.txt").write_text("dear")
    with pytest.raises(ConfigError, match="there already"):
        pack(images, tmp_path / "other")
    pack(images, tmp_path / "s", each=2)
    for changes in ({"each": 3}, {"seed": 1, "each": 2}, {"in_order": True, "each": 2}):
        with pytest.raises(ConfigError, match="packed otherwise"):
            pack(images, tmp_path / "s", **changes)
    with pytest.raises(ConfigError, match="other images"):
        pack(images.subset([0, 1, 2, 3, 4, 4]), tmp_path / "s", each=2)
    assert os.listdir(tmp_path / "other") == ["diary.txt"]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_stopped_is_refused_until_the_same_call_has_finished_it(tmp_path: Path, workers: int) -> None:
    images = open_images(np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8))
    pack(images, tmp_path / "whole", each=10)

    def stop(done: int, total: int) -> None:
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(images, tmp_path / "s", each=10, workers=workers, progress=stop)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("[0-9]*.tar")}
    assert 3 <= len(before) < 7
    with pytest.raises(DataError, match="not finished"):
        open_images(tmp_path / "s")
    assert pack(images, tmp_path / "s", each=10).images == 70
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())  # not written again
    assert shards(tmp_path / "s") == shards(tmp_path / "whole")
    assert not list((tmp_path / "s").glob(".tmp-*"))


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (3000, 24, 24, 3), np.uint8))
    words = ["pack", str(tmp_path / "images.npy"), "--each", "100", "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    for count in (1, 9):
        process = subprocess.Popen([sys.executable, "-m", "byol", *words, str(killed)])
        while len(shards(killed)) < count and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 9 <= len(shards(killed)) < 30
    with pytest.raises(DataError, match="not finished"):
        open_images(killed)
    assert main([*words, str(killed)]) == 0
    assert shards(killed) == shards(tmp_path / "whole")
    assert not list(killed.glob(".tmp-*"))
    assert len(open_images(killed)) == 3000
