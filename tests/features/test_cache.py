import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from byol.data.images import open_images
from byol.errors import DataError
from byol.features import embed as cache
from byol.features.embed import cached, embed


@pytest.fixture
def encoder(encoder_of):
    return encoder_of("convnet")


@pytest.fixture
def counted(monkeypatch):
    """How many times images went through an encoder."""
    passes: list[int] = []

    def computed(encoder, images, *, workers):
        passes.append(len(images))
        return original(encoder, images, workers=workers)

    original = cache.computed
    monkeypatch.setattr(cache, "computed", computed)
    return passes


def pictures(root: Path, count: int = 6) -> Path:
    """A folder of two classes."""
    generator = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    return root


def test_second_time_the_features_come_from_the_file_and_are_those_of_embed(encoder, tmp_path, counted):
    images = open_images(pictures(tmp_path / "p"))
    expected = embed(encoder, images)
    for _ in range(3):
        found = cached(encoder, open_images(tmp_path / "p"), tmp_path / "features")
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.y, expected.y)
        assert (found.names, found.classes) == (expected.names, expected.classes)
    assert counted == [6]
    assert len(list((tmp_path / "features").iterdir())) == 1


def test_labels_are_not_kept_with_the_features(encoder, tmp_path, counted):
    arrays = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    for labels in ([0, 1, 2, 1, 0], ["x", "y", "x", "y", "x"], np.eye(5, dtype=int)):
        images = open_images(arrays, labels=labels)
        found = cached(encoder, images, tmp_path / "features")
        np.testing.assert_array_equal(
            found.y, images.label_matrix if images.labels is None else images.labels
        )
        assert found.classes == images.classes
    assert counted == [5]


def another_weight(encoder, root: Path) -> None:
    next(encoder.net.parameters()).data[0] += 1e-3


def another_buffer(encoder, root: Path) -> None:
    next(encoder.net.buffers()).data[0] += 1e-3


def another_normalisation(encoder, root: Path) -> None:
    object.__setattr__(encoder.info, "mean", (0.1, 0.2, 0.3))


def other_code(encoder, root: Path) -> None:
    forward = encoder.network.forward
    encoder.network.forward = lambda view: forward(view).flip(1)


def another_picture(encoder, root: Path) -> None:
    Image.new("RGB", (24, 20)).save(root / "a" / "1.png")


def one_picture_less(encoder, root: Path) -> None:
    (root / "a" / "1.png").unlink()


def another_name(encoder, root: Path) -> None:
    (root / "a" / "1.png").rename(root / "a" / "9.png")


@pytest.mark.parametrize(
    "change",
    [
        another_weight,
        another_buffer,
        another_normalisation,
        other_code,
        another_picture,
        one_picture_less,
        another_name,
    ],
)
def test_whatever_changes_the_features_makes_them_be_computed_again(encoder, tmp_path, counted, change):
    root = pictures(tmp_path / "p")
    cached(encoder, open_images(root), tmp_path / "features")
    change(encoder, root)
    found = cached(encoder, open_images(root), tmp_path / "features")
    assert len(counted) == 2
    np.testing.assert_array_equal(found.x, embed(encoder, open_images(root)).x)


def test_one_changed_file_among_many_is_noticed_though_only_a_sample_is_read(encoder, tmp_path, counted):
    root = pictures(tmp_path / "p", 130)
    cached(encoder, open_images(root), tmp_path / "features")
    images = open_images(root)
    before = images.fingerprint()
    Image.new("RGB", (24, 20)).save(root / images.name(3))
    assert open_images(root).fingerprint() == before
    cached(encoder, open_images(root), tmp_path / "features")
    assert counted == [130, 130]


def test_subsets_have_features_of_their_own(encoder, tmp_path, counted):
    images = open_images(pictures(tmp_path / "p"))
    whole = cached(encoder, images, tmp_path / "features")
    some = cached(encoder, images.subset([4, 0]), tmp_path / "features")
    np.testing.assert_allclose(some.x, whole.x[[4, 0]], rtol=1e-4, atol=1e-5)
    assert counted == [6, 2]


def test_a_copy_of_the_images_elsewhere_and_of_another_time_needs_no_second_pass(encoder, tmp_path, counted):
    first = cached(encoder, open_images(pictures(tmp_path / "p")), tmp_path / "features")
    shutil.copytree(tmp_path / "p", tmp_path / "q", copy_function=shutil.copyfile)
    for file in (tmp_path / "q").rglob("*.png"):
        os.utime(file, (1, 1))
    second = cached(encoder, open_images(tmp_path / "q"), tmp_path / "features")
    np.testing.assert_array_equal(first.x, second.x)
    assert counted == [6]


def test_a_change_that_size_and_time_do_not_tell_is_noticed(encoder, tmp_path, counted):
    """As rsync -t and cp -p make it."""
    root = pictures(tmp_path / "p", 130)
    for name in ("a/1.png", "b/2.png"):
        Image.new("L", (24, 20), 7).save(root / name)
    cached(encoder, open_images(root), tmp_path / "features")
    file, state = root / "b/2.png", (root / "b/2.png").stat()
    Image.new("L", (24, 20), 9).save(file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    cached(encoder, open_images(root), tmp_path / "features")
    assert counted == [130, 130]


@pytest.mark.parametrize("kind", ["arrays", "npy", "npz", "parquet"])
def test_every_kind_of_file_is_kept_and_noticed_when_it_changes(encoder, tmp_path, counted, kind):
    arrays = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)

    def written(arrays: np.ndarray):
        if kind == "npy":
            np.save(tmp_path / "i.npy", arrays)
        elif kind == "npz":
            np.savez(tmp_path / "i.npz", x=arrays)
        elif kind == "parquet":
            pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            encoded = []
            for number, array in enumerate(arrays):
                Image.fromarray(array).save(tmp_path / f"{number}.png")
                encoded.append({"bytes": (tmp_path / f"{number}.png").read_bytes(), "path": None})
            pq.write_table(pa.table({"image": encoded}), tmp_path / "i.parquet")
        return open_images(arrays if kind == "arrays" else tmp_path / f"i.{kind}")

    for _ in range(2):
        cached(
            encoder,
            written(arrays) if not counted else open_again(kind, tmp_path, arrays),
            tmp_path / "features",
        )
    assert counted == [5]
    cached(encoder, written(255 - arrays), tmp_path / "features")
    assert counted == [5, 5]


def open_again(kind: str, folder: Path, arrays: np.ndarray):
    return open_images(arrays if kind == "arrays" else folder / f"i.{kind}")


def test_datasets_of_other_libraries_are_never_kept(encoder, tmp_path, counted):
    """They may draw something random for each item, which no look at a few of them can rule out."""
    items = [(Image.new("RGB", (16, 16), (number, 0, 0)), number % 2) for number in range(4)]
    for _ in range(2):
        assert cached(encoder, open_images(items), tmp_path / "features").y.tolist() == [0, 1, 0, 1]
    assert counted == [4, 4]
    assert not (tmp_path / "features").exists()


def test_without_a_folder_nothing_is_written(encoder, tmp_path, counted, monkeypatch):
    root = pictures(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        cached(encoder, open_images(root), None)
    assert counted == [6, 6]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "other shape", "more rows"])
def test_a_damaged_file_is_told_and_written_again(encoder, tmp_path, counted, caplog, damage):
    images = open_images(pictures(tmp_path / "p"))
    expected = cached(encoder, images, tmp_path / "features")
    [file] = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    if damage == "other shape":
        np.savez(file, rows=np.arange(6), x=expected.x[:, :-1])
    elif damage == "more rows":
        np.savez(file, rows=np.arange(7), x=np.concatenate([expected.x, expected.x[:1]]))
    else:
        flipped = bytearray(whole)
        flipped[-len(whole) // 3] ^= 1
        file.write_bytes(
            {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"text", "flipped": bytes(flipped)}[
                damage
            ]
        )
    found = cached(encoder, images, tmp_path / "features")
    np.testing.assert_array_equal(found.x, expected.x)
    assert counted == [6, 6]
    assert "computed again" in caplog.text
    assert file.read_bytes() == whole


def test_an_unreadable_image_is_left_out_the_second_time_too(encoder, tmp_path, counted):
    root = pictures(tmp_path / "p")
    (root / "a" / "3.png").write_bytes(b"no picture")
    first, second = (cached(encoder, open_images(root), tmp_path / "features") for _ in range(2))
    assert len(counted) == 1
    assert first.names == second.names
    assert "a/3.png" not in second.names
    np.testing.assert_array_equal(first.y, second.y)


def test_an_interrupted_write_leaves_no_file_and_what_a_killed_process_left_goes(
    encoder, tmp_path, monkeypatch
):
    images = open_images(pictures(tmp_path / "p"))
    folder = tmp_path / "features"

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached(encoder, images, folder)
    assert list(folder.iterdir()) == []
    killed, alive = folder / ".tmp-999999999-x.npz", folder / f".tmp-{os.getpid()}-x.npz"
    killed.touch()
    alive.touch()
    cached(encoder, images, folder)
    assert not killed.exists()
    assert alive.exists()


def test_a_folder_that_cannot_be_written_costs_a_warning_and_not_the_features(encoder, tmp_path, caplog):
    images = open_images(pictures(tmp_path / "p"))
    (tmp_path / "features").write_text("a file where the folder should be")
    assert cached(encoder, images, tmp_path / "features").x.shape == (6, encoder.info.features)
    assert "could not be kept" in caplog.text


def test_features_that_are_no_numbers_are_refused_and_not_kept(encoder, tmp_path):
    next(encoder.net.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match="6 of 6 feature rows hold NaN"):
        cached(encoder, open_images(pictures(tmp_path / "p")), tmp_path / "features")
    assert not (tmp_path / "features").exists()


def test_keeping_features_leaves_the_random_state(encoder, tmp_path):
    images, state = open_images(pictures(tmp_path / "p")), torch.get_rng_state()
    cached(encoder, images, tmp_path / "features")
    assert torch.equal(torch.get_rng_state(), state)


def test_how_images_are_read_is_part_of_their_name(encoder, tmp_path, counted):
    """Of the same files a smaller limit of pixels leaves some out, and the axis of the channels turns an array round."""
    root = pictures(tmp_path / "p")
    Image.new("RGB", (60, 60)).save(root / "a" / "8.png")
    for limit, count in ((2000, 6), (4000, 7)):
        assert len(cached(encoder, open_images(root, max_pixels=limit), tmp_path / "features").x) == count
    square = np.random.default_rng(0).integers(0, 256, (4, 3, 9, 3), dtype=np.uint8)
    first, last = (
        cached(encoder, open_images(source), tmp_path / "features").x
        for source in (torch.from_numpy(square), square)
    )
    assert not np.allclose(first, last)


def test_unreadable_images_are_told_of_kept_features_too(encoder, tmp_path, caplog, counted):
    root = pictures(tmp_path / "p")
    (root / "a" / "3.png").write_bytes(b"no picture")
    for _ in range(2):
        caplog.clear()
        cached(encoder, open_images(root), tmp_path / "features")
        assert f"Left out, because unreadable: 1 of 6 images in {root}/ (2 classes): a/3.png" in caplog.text
    assert counted == [6]


def test_a_file_that_is_missing_everywhere_is_no_difference(tmp_path):
    names = []
    for place in ("one", "two"):
        pictures(tmp_path / place)
        (tmp_path / place / "list.txt").write_text("a/1.png\na/none.png\n")
        names.append(open_images(tmp_path / place / "list.txt").checksum())
    assert names[0] == names[1]
