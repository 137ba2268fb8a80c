"""Features that are kept: found the next time, and those of large sets stopped, continued and shared out."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow.dataset import dataset
from torch import nn

from byol.data.images import open_images
from byol.data.readers import folder
from byol.errors import CheckpointError, ConfigError, DataError
from byol.features.embed import BATCH, embed, embed_into, store_beside
from byol.features.features import Features
from byol.world import World

ALONE = World(0, 1, torch.device("cpu"))
KINDS = (".npz", ".npy", ".parquet", ".safetensors")
SHARD = 2 * BATCH  # less than usual, so that few images are several


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("byol.features.embed.SHARD", SHARD)


@pytest.fixture
def encoder(encoder_of):
    return encoder_of("convnet", width=4, size=(8, 8))


@pytest.fixture
def counted(encoder):
    """How many images went through the encoder, each time; one alone is a picture to know it by."""
    passes: list[int] = []
    encoder.net.register_forward_pre_hook(
        lambda net, given: passes.append(len(given[0])) if len(given[0]) > 1 else None
    )
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


# The next time


def test_second_time_the_features_come_from_the_folder_and_are_the_same(encoder, tmp_path, counted):
    expected = embed(encoder, pictures(tmp_path / "p"))
    for _ in range(3):
        found = embed(encoder, tmp_path / "p", store=tmp_path / "features")
        np.testing.assert_array_equal(found.x, expected.x)
        np.testing.assert_array_equal(found.y, expected.y)
        assert (found.names, found.classes) == (expected.names, expected.classes)
    assert counted == [6, 6]


def test_labels_are_not_kept_with_the_features(encoder, tmp_path, counted):
    arrays = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    for labels in ([0, 1, 2, 1, 0], ["x", "y", "x", "y", "x"], np.eye(5, dtype=int)):
        images = open_images(arrays, labels=labels)
        found = embed(encoder, images, store=tmp_path / "features")
        np.testing.assert_array_equal(found.y, images.y)
        assert found.classes == images.classes
    assert counted == [5]


def another_weight(encoder, root: Path) -> None:
    next(encoder.net.parameters()).data[0] += 1e-3


def another_buffer(encoder, root: Path) -> None:
    next(encoder.net.buffers()).data[0] += 1e-3


def another_normalisation(encoder, root: Path) -> None:
    object.__setattr__(encoder.info, "mean", (0.1, 0.2, 0.3))


def other_code(encoder, root: Path) -> None:
    encoder.net.register_forward_hook(lambda net, given, x: x.flip(1))


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
    embed(encoder, root, store=tmp_path / "features")
    change(encoder, root)
    found = embed(encoder, root, store=tmp_path / "features")
    assert len(counted) == 2
    np.testing.assert_array_equal(found.x, embed(encoder, root).x)


def test_rows_of_length_one_are_kept_apart(encoder, tmp_path, counted):
    root = pictures(tmp_path / "p")
    for normalize in (False, True, True):
        found = embed(encoder, root, store=tmp_path / "features", normalize=normalize)
        assert np.allclose(np.linalg.norm(found.x, axis=1), 1) == normalize
    assert counted == [6, 6]


def test_subsets_have_features_of_their_own(encoder, tmp_path, counted):
    images = open_images(pictures(tmp_path / "p"))
    whole = embed(encoder, images, store=tmp_path / "features")
    some = embed(encoder, images.subset([4, 0]), store=tmp_path / "features")
    np.testing.assert_allclose(some.x, whole.x[[4, 0]], rtol=1e-4, atol=1e-5)
    assert counted == [6, 2]


def test_a_copy_of_the_images_elsewhere_and_of_another_time_needs_no_second_pass(encoder, tmp_path, counted):
    first = embed(encoder, pictures(tmp_path / "p"), store=tmp_path / "features")
    shutil.copytree(tmp_path / "p", tmp_path / "q", copy_function=shutil.copyfile)
    for file in (tmp_path / "q").rglob("*.png"):
        os.utime(file, (1, 1))
    second = embed(encoder, tmp_path / "q", store=tmp_path / "features")
    np.testing.assert_array_equal(first.x, second.x)
    assert counted == [6]


@pytest.mark.parametrize("kept_time", [False, True])
def test_one_changed_file_among_many_is_noticed_by_its_bytes(
    encoder, tmp_path, counted, kept_time, monkeypatch
):
    """Though opening them reads a sample only, and though rsync -t and cp -p keep size and time."""
    monkeypatch.setattr(folder, "HASHED", 0)  # as of a large set, of which not all is read
    root = pictures(tmp_path / "p", 130)
    file = root / open_images(root).name(3)
    Image.new("L", (24, 20), 7).save(file)
    embed(encoder, root, store=tmp_path / "features")
    sample, state = open_images(root).fingerprint(), file.stat()
    Image.new("L", (24, 20), 9).save(file)
    if kept_time:
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (open_images(root).fingerprint(), file.stat().st_size) == (sample, state.st_size)
    embed(encoder, root, store=tmp_path / "features")
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
        return arrays if kind == "arrays" else tmp_path / f"i.{kind}"

    source = written(arrays)
    for _ in range(2):
        embed(encoder, source, store=tmp_path / "features")
    assert counted == [5]
    embed(encoder, written(255 - arrays), store=tmp_path / "features")
    assert counted == [5, 5]


def test_datasets_of_other_libraries_are_never_kept(encoder, tmp_path, counted):
    """They may draw something random for each item, which no look at a few of them can rule out."""
    items = [(Image.new("RGB", (16, 16), (number, 0, 0)), number % 2) for number in range(4)]
    for _ in range(2):
        assert embed(encoder, items, store=tmp_path / "features").y.tolist() == [0, 1, 0, 1]
    assert counted == [4, 4]
    assert not (tmp_path / "features").exists()


def test_without_a_folder_nothing_is_written(encoder, tmp_path, monkeypatch):
    root = pictures(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    embed(encoder, root)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped", "other shape", "more rows"])
def test_a_damaged_file_is_told_and_written_again(encoder, tmp_path, counted, caplog, damage):
    root = pictures(tmp_path / "p")
    expected = embed(encoder, root, store=tmp_path / "features")
    (file,) = (tmp_path / "features").rglob("*.npz")
    whole = file.read_bytes()
    bad = np.array("[]")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    if damage == "other shape":
        np.savez(file, rows=np.arange(6), x=expected.x[:, :-1], bad=bad)
    elif damage == "more rows":
        np.savez(file, rows=np.arange(7), x=np.concatenate([expected.x, expected.x[:1]]), bad=bad)
    else:
        damaged = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"text", "flipped": bytes(flipped)}
        file.write_bytes(damaged[damage])
    found = embed(encoder, root, store=tmp_path / "features")
    np.testing.assert_array_equal(found.x, expected.x)
    assert counted == [6, 6]
    assert str(file) in caplog.text
    assert file.read_bytes() == whole


def test_an_unreadable_image_is_left_out_and_told_with_its_reason_the_second_time_too(
    encoder, tmp_path, caplog, counted
):
    root = pictures(tmp_path / "p")
    (root / "a" / "3.png").write_bytes(b"")
    told = []
    for _ in range(2):
        found = embed(encoder, root, store=tmp_path / "features")
        assert found.names == ["a/1.png", "a/5.png", "b/0.png", "b/2.png", "b/4.png"]
        assert found.y.tolist() == [0, 0, 1, 1, 1]
        told.append(caplog.messages)
        caplog.clear()
    assert "1 of 6 images" in told[0][0]
    assert "a/3.png (the file is empty)" in told[0][0]
    assert told[0] == told[1]
    assert counted == [5]


def test_what_a_killed_process_left_goes(encoder, tmp_path):
    folder = tmp_path / "features" / "another"
    folder.mkdir(parents=True)
    killed, alive = folder / ".tmp-999999999-x.npz", folder / f".tmp-{os.getpid()}-x.npz"
    killed.touch()
    alive.touch()
    embed(encoder, pictures(tmp_path / "p"), store=tmp_path / "features")
    assert not killed.exists()
    assert alive.exists()


def test_a_folder_that_cannot_be_written_costs_a_warning_and_not_the_features(encoder, tmp_path, caplog):
    (tmp_path / "features").write_text("a file where the folder should be")
    found = embed(encoder, pictures(tmp_path / "p"), store=tmp_path / "features")
    assert np.array_equal(found.x, embed(encoder, tmp_path / "p").x)
    assert str(tmp_path / "features") in caplog.text


def test_features_that_are_not_numbers_are_refused_and_not_kept(encoder, tmp_path):
    next(encoder.net.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match="6 of 6 feature rows hold NaN"):
        embed(encoder, pictures(tmp_path / "p"), store=tmp_path / "features")
    assert not list(tmp_path.rglob("*.npz"))


def test_keeping_features_leaves_the_random_state(encoder, tmp_path):
    state = torch.get_rng_state()
    embed(encoder, pictures(tmp_path / "p"), store=tmp_path / "features")
    assert torch.equal(torch.get_rng_state(), state)


def test_how_images_are_read_is_part_of_their_name(encoder, tmp_path):
    """Of the same files a smaller limit of pixels leaves some out; the channels' axis turns an array."""
    root = pictures(tmp_path / "p")
    Image.new("RGB", (60, 60)).save(root / "a" / "8.png")
    for limit, count in ((2000, 6), (4000, 7)):
        images = open_images(root, max_pixels=limit)
        assert len(embed(encoder, images, store=tmp_path / "features").x) == count
    square = np.random.default_rng(0).integers(0, 256, (4, 3, 9, 3), dtype=np.uint8)
    first, last = (
        embed(encoder, s, store=tmp_path / "features").x for s in (torch.from_numpy(square), square)
    )
    assert not np.allclose(first, last)


def test_a_file_that_is_missing_everywhere_is_no_difference(tmp_path):
    names = []
    for place in ("one", "two"):
        pictures(tmp_path / place)
        (tmp_path / place / "list.txt").write_text("a/1.png\na/none.png\n")
        names.append(open_images(tmp_path / place / "list.txt").checksum())
    assert names[0] == names[1]


# Large jobs: `byol embed`


@pytest.fixture
def tiny(encoder_of):
    """An encoder that costs nearly nothing."""
    torch.manual_seed(0)
    return encoder_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)), size=(8, 8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Pictures in two folders, two shards and a part of them; some are unreadable."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    encoded = []
    for number in range(50):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "one.png")
        encoded.append(b"" if number == 9 else (root / "one.png").read_bytes())
    for number in range(2 * SHARD + 300):
        folder = root / "photos" / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.png").write_bytes(encoded[number * number % 50])
    return root / "photos"


def job(out: Path, encoder, source, stop_after: int | None = None, **options) -> list[int]:
    """As `byol embed`; Ctrl-C comes when so many images are done. Gives how many were done, as told."""
    images, told = open_images(source), []

    def progress(done: int, total: int) -> None:
        assert total == len(images)
        told.append(done)
        if stop_after is not None and done >= stop_after:
            raise KeyboardInterrupt

    with store_beside(out, encoder, images, options.get("normalize", False), ALONE) as store:
        embed(encoder, images, store=store, progress=progress, **options).save(out)
    return told


@pytest.mark.parametrize(("kind", "normalize"), [(kind, False) for kind in KINDS] + [(".npz", True)])
def test_in_parts_is_the_same_as_at_once(tiny, photos, tmp_path, kind, normalize):
    out = tmp_path / f"f{kind}"
    told = job(out, tiny, photos, normalize=normalize)
    whole, loaded = embed(tiny, photos, normalize=normalize), Features.load(out)
    assert np.array_equal(loaded.x, whole.x)
    if kind != ".npy":
        assert loaded.names == whole.names
        assert loaded.y.tolist() == whole.y.tolist()
        assert loaded.classes == ("class 0", "class 1")
        assert loaded.encoder_checksum == tiny.checksum()
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 2 * SHARD + 300)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert not normalize or np.allclose(np.linalg.norm(loaded.x, axis=1), 1, atol=1e-6)


def test_a_name_too_long_for_the_folder_beside_it_is_told_before_the_work(tiny, photos, tmp_path):
    with pytest.raises(ConfigError, match="File name too long"):
        job(tmp_path / ("x" * 235 + ".npz"), tiny, photos)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_call_continues_and_gives_the_same_bytes(tiny, photos, tmp_path, workers):
    job(tmp_path / "whole.npz", tiny, photos)
    out = tmp_path / "f.npz"
    with pytest.raises(KeyboardInterrupt):
        job(out, tiny, photos, stop_after=2 * SHARD + 10)
    assert not out.exists()
    (folder,) = tmp_path.glob("f.npz.partial-*")
    assert sorted(path.name for path in folder.glob("shard-*")) == ["shard-000000.npz", "shard-000001.npz"]
    assert job(out, tiny, photos, workers=workers)[0] == 2 * SHARD
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "whole.npz"]


def test_shards_of_other_images_encoders_or_settings_are_not_used_and_go_in_the_end(tiny, photos, tmp_path):
    out = tmp_path / "f[1].npz"
    with pytest.raises(KeyboardInterrupt):
        job(out, tiny, photos, stop_after=SHARD, normalize=True)
    arrays = np.random.default_rng(0).integers(0, 256, (SHARD + 1, 8, 8, 3), dtype=np.uint8)
    with pytest.raises(KeyboardInterrupt):
        job(out, tiny, arrays, stop_after=SHARD)
    tiny.net[1].weight.data[0] += 1
    assert job(out, tiny, arrays)[0] == 0
    assert np.array_equal(Features.load(out).x, embed(tiny, arrays).x)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_damaged_shard_is_told_and_computed_again(tiny, photos, tmp_path, caplog):
    out = tmp_path / "f.npz"
    with pytest.raises(KeyboardInterrupt):
        job(out, tiny, photos, stop_after=2 * SHARD + 1)
    (shard,) = tmp_path.glob("f.npz.partial-*/shard-000001.npz")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    job(out, tiny, photos)
    assert str(shard) in caplog.text
    assert np.array_equal(Features.load(out).x, embed(tiny, photos).x)


def test_a_stop_before_the_first_shard_leaves_nothing(tiny, photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "f.npz", tiny, photos, stop_after=SHARD - 1)
    assert not list(tmp_path.iterdir())


def test_images_or_encoders_that_cannot_be_used_leave_nothing(tiny, photos, tmp_path):
    (tmp_path / "list.txt").write_text("nothing.png\n" * (SHARD + 1))
    (tmp_path / "nothing.png").write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="No image in"):
        job(tmp_path / "f.npz", tiny, tmp_path / "list.txt")
    tiny.net[1].weight.data[0] = float("nan")
    with pytest.raises(DataError, match="hold NaN"):
        job(tmp_path / "f.npz", tiny, photos)
    assert sorted(tmp_path.iterdir()) == before


def test_a_second_process_at_the_same_work_is_refused(tiny, photos, tmp_path):
    images = open_images(photos)
    with store_beside(tmp_path / "f.npz", tiny, images, False, ALONE):
        with pytest.raises(CheckpointError, match="Another process"):
            job(tmp_path / "f.npz", tiny, photos)
        job(tmp_path / "g.npz", tiny, photos)


def test_a_small_set_is_never_kept_in_parts(tiny, tmp_path):
    images = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    with store_beside(tmp_path / "f.npz", tiny, open_images(images), False, ALONE) as store:
        assert store is None


# In a folder of files, for more images than one should hold


def into(folder: Path, encoder, source, stop_after: int | None = None, **options) -> tuple[int, int]:
    """As `byol embed --out folder/`; Ctrl-C comes when so many images are done."""

    def progress(done: int, total: int) -> None:
        if stop_after is not None and done >= stop_after:
            raise KeyboardInterrupt

    return embed_into(folder, encoder, open_images(source), progress=progress, **options)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("byol.features.embed.PART", SHARD)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.fixture
def labelled():
    """Images of two files, the last one with half as many."""
    pixels = np.random.default_rng(0).integers(0, 256, (SHARD + SHARD // 2 + 2, 8, 8, 3), dtype=np.uint8)
    return open_images(pixels, labels=["cat", "dog"] * (len(pixels) // 2))


def test_a_folder_of_files_holds_the_rows_of_one_file(tiny, labelled, tmp_path, small_parts):
    assert into(tmp_path / "f", tiny, labelled) == (2, len(labelled))
    parts = [Features.load(path) for path in sorted((tmp_path / "f").glob("part-*.parquet"))]
    whole = embed(tiny, labelled)
    assert [len(part) for part in parts] == [SHARD, SHARD // 2 + 2]
    assert np.array_equal(np.concatenate([part.x for part in parts]), whole.x)
    assert np.concatenate([part.y for part in parts]).tolist() == whole.y.tolist()
    assert [name for part in parts for name in part.names] == whole.names
    assert {(part.classes, part.encoder_checksum) for part in parts} == {(whole.classes, tiny.checksum())}
    read = dataset(
        tmp_path / "f", format="parquet"
    ).to_table()  # as other programs read it, all files at once
    assert read["name"].to_pylist() == whole.names
    assert read.schema.field("x").type == pa.list_(pa.float32(), 5)  # a vector for Lance


def test_a_stopped_folder_is_continued_to_the_same_bytes(tiny, labelled, tmp_path, small_parts):
    into(tmp_path / "whole", tiny, labelled)
    with pytest.raises(KeyboardInterrupt):
        into(tmp_path / "f", tiny, labelled, stop_after=SHARD + 10)
    assert sorted(contents(tmp_path / "f")) == ["_features.json", "part-000000.parquet"]
    (tmp_path / "f" / ".tmp-99999999-part-000001.parquet").write_bytes(b"of one that was killed")
    passed: list[int] = []
    tiny.net.register_forward_pre_hook(lambda net, given: passed.append(len(given[0])))
    into(tmp_path / "f", tiny, labelled)
    assert sum(passed) <= SHARD // 2 + 2 + 1  # the first file was not made again
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")


def test_a_damaged_file_of_a_folder_is_told_and_made_again(tiny, tmp_path, caplog):
    arrays = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    into(tmp_path / "f", tiny, arrays)
    before, file = contents(tmp_path / "f"), tmp_path / "f" / "part-000000.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    into(tmp_path / "f", tiny, arrays)
    assert f"{file} is damaged" in caplog.text
    assert contents(tmp_path / "f") == before


def test_a_second_process_at_the_same_folder_is_refused(tiny, tmp_path):
    arrays = np.zeros((6, 8, 8, 3), dtype=np.uint8)

    def another(done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match="Another process writes"):
            into(tmp_path / "f", tiny, arrays)

    embed_into(tmp_path / "f", tiny, open_images(arrays), progress=another)
    into(tmp_path / "f", tiny, arrays)  # the first one has ended


def test_a_process_that_a_job_has_forked_and_that_outlives_it_does_not_hold_its_folder(tiny, tmp_path):
    """As the workers of a job that was killed do for a moment."""
    arrays = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    embed_into(tmp_path / "f", tiny, open_images(arrays), progress=lambda *_: worker.pid or worker.start())
    try:
        into(tmp_path / "f", tiny, arrays)
        assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()


def test_a_folder_of_something_else_is_left_as_it_is(tiny, photos, tmp_path, small_parts):
    arrays = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    into(tmp_path / "f", tiny, open_images(arrays, labels=[0, 1] * 3))
    before = contents(tmp_path / "f")
    for other in (arrays, open_images(arrays, labels=[1, 0] * 3), arrays + 1, photos):
        with pytest.raises(ConfigError, match="features of other images or of another encoder"):
            into(tmp_path / "f", tiny, other)
    with pytest.raises(ConfigError, match="other images or"):
        into(tmp_path / "f", tiny, open_images(arrays, labels=[0, 1] * 3), normalize=True)
    assert contents(tmp_path / "f") == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        into(tmp_path / "notes", tiny, arrays)
    assert contents(tmp_path / "notes") == {"mine.txt": b"mine"}


def test_a_folder_leaves_out_what_cannot_be_read(tiny, tmp_path, caplog):
    pictures(tmp_path / "p")
    (tmp_path / "p" / "a" / "1.png").write_bytes(b"no picture")
    assert into(tmp_path / "f", tiny, tmp_path / "p") == (1, 5)
    assert "a/1.png" in caplog.text
    assert "a/1.png" not in Features.load(tmp_path / "f" / "part-000000.parquet").names


def test_a_file_of_a_folder_without_any_readable_image_is_an_error(tiny, tmp_path, small_parts):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("good.png\n" * SHARD + "bad.png\n" * SHARD)
    with pytest.raises(DataError, match=r"None of 512 of 1,024 images .* can be read"):
        into(tmp_path / "f", tiny, tmp_path / "list.txt")
