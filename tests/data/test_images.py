"""What `Images` does whatever it was made from: labels, subsets, sizes, fingerprints."""

import pickle
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import PHOTOS, arrays, encoded, photo
from PIL import Image
from torchvision.datasets import FakeData

from byol.data.images import open_images
from byol.errors import DataError

FolderOf = Callable[..., Path]


@pytest.mark.parametrize(
    ("labels", "values", "classes"),
    [
        ([2, 0, 0, 1, 2], [2, 0, 0, 1, 2], ("0", "1", "2")),
        (torch.tensor([1, 0, 0, 1, 1]), [1, 0, 0, 1, 1], ("0", "1")),
        (np.array([[3], [0], [0], [1], [1]], np.uint8), [3, 0, 0, 1, 1], ("0", "1", "2", "3")),
        (["owl", "ant", "bee", "owl", "ant"], [2, 0, 1, 2, 0], ("ant", "bee", "owl")),
        (np.array([True, False, True, True, False]), [1, 0, 1, 1, 0], ("0", "1")),
        (
            np.array([2, np.int64(0), 0, 1, 2], object),
            [2, 0, 0, 1, 2],
            ("0", "1", "2"),
        ),  # as pandas may have them
        (np.array([b"b", b"a", b"\xc3\xa4", b"\xff", b"a"]), [2, 1, 3, 0, 1], ("\\xff", "a", "b", "ä")),
    ],
)
def test_labels_can_be_given(labels: Any, values: list[int], classes: tuple[str, ...]) -> None:
    images = open_images(PHOTOS, labels=labels)
    assert images.labels is not None
    assert (images.labels.tolist(), images.labels.dtype, images.classes) == (values, np.int64, classes)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1], r"labels have the shape \(2,\); expected one label for each of the 5 images"),
        (2 * np.eye(5), r"labels have the shape \(5, 5\)"),
        ([0.5] * 5, "labels are float64; expected whole numbers from 0, or words"),
        ([0, 1, 2, -1, 0], "negative numbers"),
        (np.array([0, "1", 2, 3, 4], object), "labels are object; expected whole numbers from 0, or words"),
        ([0, 1, None, 1, None], "2 of 5 images have no label"),
        ([0.0, 1.0, np.nan, 1.0, 0.0], "1 of 5 images have no label"),
        ([10**12] * 5, "go up to 1000000000000"),
        ([[1], [1, 2], [], [], []], "labels"),
        (dict(enumerate("abcde")).values(), "labels are a dict_values; .* as a list"),
    ],
)
def test_unusable_labels_are_sentences(labels: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_images(PHOTOS, labels=labels)


TAGS = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize("kind", [np.int64, np.uint8, bool, np.float32])
def test_multi_label_images_have_rows_of_0_and_1(kind: type) -> None:
    for values in (TAGS.astype(kind), torch.from_numpy(TAGS.astype(kind)), TAGS.astype(kind).tolist()):
        images = open_images(PHOTOS, labels=values)
        assert images.labels is None  # which trains and holds out as if there were none
        assert images.label_matrix is not None
        assert (images.label_matrix.tolist(), images.label_matrix.dtype) == (TAGS.tolist(), np.int64)
        assert images.classes == ("0", "1", "2")
        part = images.subset([3, 1]).label_matrix
        assert part is not None
        assert part.tolist() == TAGS[[3, 1]].tolist()


def test_multi_label_images_come_from_files_and_items(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    np.savez(tmp_path / "i.npz", images=PHOTOS, y=TAGS)
    rows = [{"bytes": encoded(Image.fromarray(pixels)), "path": None} for pixels in PHOTOS]
    pq.write_table(pa.table({"image": rows, "labels": TAGS.tolist()}), tmp_path / "i.parquet")
    pairs = list(zip(PHOTOS, map(torch.from_numpy, TAGS.astype(np.float32)), strict=True))
    for source in (
        tmp_path / "i.npz",
        tmp_path / "i.parquet",
        pairs,
        list(zip(PHOTOS, TAGS.tolist(), strict=True)),
    ):
        found = open_images(source).label_matrix
        assert found is not None
        assert found.tolist() == TAGS.tolist()


def test_items_with_other_numbers_beside_the_image_stay_unlabelled() -> None:
    for beside in (np.array([0.5, 0.2]), [3, 4, 10, 12], np.zeros((2, 2)), [{"box": 1}], [[1], [1, 2]], []):
        images = open_images([(pixels, beside) for pixels in PHOTOS])
        assert images.labels is None
        assert images.label_matrix is None


def test_labels_can_be_numbered_by_other_names() -> None:
    words = open_images(PHOTOS, labels=["owl", "ant", "bee", "owl", "ant"])
    single = words.subset([0, 1, 4]).with_classes(("bee", "cat", "owl", "ant"))
    assert single.labels is not None
    assert (single.labels.tolist(), single.classes) == ([2, 3, 3], ("bee", "cat", "owl", "ant"))
    several = open_images(PHOTOS, labels=TAGS).with_classes(("2", "x", "0", "1"))
    assert several.label_matrix is not None
    assert several.label_matrix.tolist() == [[row[2], 0, row[0], row[1]] for row in TAGS.tolist()]


def test_subsets_are_views(folder_of: FolderOf) -> None:
    images = open_images(PHOTOS, labels=[0, 1, 0, 1, 1])
    for rows in ([3, 1], np.array([3, 1]), torch.tensor([3, 1]), torch.tensor([3, 1], dtype=torch.int32)):
        part = images.subset(rows)
        assert (len(part), part.name(0), part.channels, part.classes) == (2, "3", 3, ("0", "1"))
        assert np.array_equal(arrays(part), PHOTOS[[3, 1]])
        assert part.labels is not None
        assert part.labels.tolist() == [1, 1]
    assert np.array_equal(
        arrays(images.subset(np.array([False, True, False, True, True]))), PHOTOS[[1, 3, 4]]
    )
    again = images.subset([4, 3, 2]).subset([2, 0])
    assert np.array_equal(arrays(again), PHOTOS[[2, 4]])
    assert again.description == "2 of 5 images in the array (2 classes)"
    assert len(images.subset([])) == 0
    for wrong in ([5], [-1], np.array([True])):
        with pytest.raises(IndexError):
            images.subset(wrong)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            again.array(index)


def test_uniform_size_is_none_when_sizes_differ(folder_of: FolderOf) -> None:
    same = [photo(8, 12, seed) for seed in range(3)]
    assert open_images(same).uniform_size() == (8, 12)
    assert open_images([*same, photo(12, 8)]).uniform_size() is None
    root = folder_of("1.png", "2.png")
    (root / "0.png").write_bytes(b"no picture")  # which has no say
    assert open_images(root).uniform_size() == (20, 30)
    (root / "3.png").write_bytes(encoded(photo(20, 31)))
    assert open_images(root).uniform_size() is None


def test_uniform_size_sees_upright_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "1.jpg").write_bytes(encoded(photo(8, 12), "JPEG", exif=exif))
    (tmp_path / "2.jpg").write_bytes(encoded(photo(12, 8), "JPEG"))
    assert open_images(tmp_path).uniform_size() == (12, 8)


def test_fingerprints_follow_the_images(folder_of: FolderOf, tmp_path: Path) -> None:
    changed = PHOTOS.copy()
    changed[2, 3, 4, 1] ^= 1
    np.save(tmp_path / "a.npy", PHOTOS)
    theirs = [list(PHOTOS), list(changed), list(PHOTOS[:4])]
    sources = [
        PHOTOS,
        changed,
        PHOTOS[:4],
        PHOTOS[..., 0],
        (PHOTOS / 255),
        *theirs,
        folder_of("1.png", "2.png"),
    ]
    prints = [open_images(source).fingerprint() for source in sources]
    assert len(set(prints)) == len(prints)
    assert prints == [open_images(source).fingerprint() for source in sources]
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in prints)
    assert open_images(tmp_path / "a.npy").fingerprint() == prints[0]
    images = open_images(PHOTOS)
    assert images.subset([0, 1]).fingerprint() != images.subset([1, 0]).fingerprint()


def test_a_random_transform_does_not_change_the_fingerprint() -> None:
    generator = np.random.default_rng(0)

    def noise(_: Any) -> np.ndarray:
        return generator.integers(0, 256, size=(8, 12, 3), dtype=np.uint8)

    first, second = (open_images(FakeData(size=20, transform=noise)) for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint() != open_images(FakeData(size=21, transform=noise)).fingerprint()


def test_images_travel_to_workers(folder_of: FolderOf) -> None:
    for source in (folder_of("a/1.png", "b/2.png"), PHOTOS, list(PHOTOS)):
        images = open_images(source).subset([1, 0])
        copy = pickle.loads(pickle.dumps(images))
        assert np.array_equal(arrays(copy), arrays(images))
        assert (copy.description, copy.fingerprint()) == (images.description, images.fingerprint())
        copy.release()
        assert np.array_equal(copy.array(0), images.array(0))


def test_many_classes_are_renumbered_without_comparing_all_with_all() -> None:
    compared = 0

    class Name(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    count = 2000
    images = open_images(
        np.zeros((count, 8, 8), np.uint8), labels=[f"{number:05}" for number in range(count)]
    )
    others = images.with_classes(tuple(Name(f"{number:05}") for number in reversed(range(count))))
    assert others.labels is not None
    assert others.labels.tolist() == list(reversed(range(count)))
    assert compared < 20 * count


@pytest.mark.parametrize("highest", [999_999, 40_000])
def test_a_number_that_is_not_a_class_is_a_sentence(
    highest: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """So many classes would take gigabytes in every protocol."""
    labels = [0, 1, 0, 1, highest]
    with pytest.raises(DataError, match=f"labels of 5 images go up to {highest}"):
        open_images(PHOTOS, labels=labels)
    np.savez(tmp_path / "a.npz", images=PHOTOS, y=labels)
    assert open_images(tmp_path / "a.npz").labels is None
    assert "unlabelled" in caplog.text


def test_an_image_can_be_looked_at() -> None:
    images = open_images(PHOTOS, labels=[0, 1, 0, 1, 1])
    assert repr(images) == "<5 images in the array (2 classes)>"
    assert np.array_equal(np.asarray(images[3]), PHOTOS[3])
    assert np.array_equal(np.asarray(images[-1]), PHOTOS[4])
    assert isinstance(images[0], Image.Image)
    assert np.array_equal(arrays(images[1:4:2]), PHOTOS[[1, 3]])
    assert len(list(images)) == 5
    with pytest.raises(IndexError):
        images[5]
    for channels in (1, 2, 4, 13):
        shown = open_images(np.full((3, 8, 8, channels), 90, np.uint8))[0]
        assert np.asarray(shown).shape == ((8, 8, 3) if channels >= 3 else (8, 8))


def test_a_notebook_shows_some_of_the_images(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (20, 30), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")  # an unreadable one leaves its place empty
    with Image.open(BytesIO(open_images(tmp_path)._repr_png_())) as page:
        shown = {colour for _, colour in page.convert("RGB").getcolors() or ()}
    assert shown == {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)}


def test_to_show_images_reads_no_labels_that_need_decoding() -> None:
    class Pairs:
        read = 0

        def __len__(self) -> int:
            return 3000

        def __getitem__(self, index: int) -> Any:
            self.read += 1
            return np.full((4, 4, 3), index % 256, np.uint8), index % 3

    pairs = Pairs()
    assert repr(open_images(pairs)) == "<3,000 images in Pairs>"
    assert pairs.read < 100


def test_gray_pictures_are_told_from_coloured_ones_though_all_have_three_channels(tmp_path):
    gray = photo(channels=1)
    for number in range(3):
        Image.fromarray(np.repeat(gray, 3, axis=2)).save(tmp_path / f"gray{number}.jpg")
    Image.fromarray(photo()).save(tmp_path / "coloured.jpg")
    assert open_images(tmp_path, channels=3).gray_share() == 0.75
    (tmp_path / "gray2.jpg").write_bytes(b"damaged")
    assert open_images(tmp_path, channels=3).gray_share() == pytest.approx(2 / 3)
    assert open_images(tmp_path, channels=1).gray_share() == 1
    assert open_images(np.zeros((4, 8, 8, 5), dtype=np.uint8)).gray_share() == 0
