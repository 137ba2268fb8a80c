"""Sequences: lists of pictures, torchvision datasets, Hugging Face datasets."""

from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # type: ignore[import-untyped]
import pytest
import torch
from pictures import PHOTOS, arrays, encoded, photo
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from byol.data.decode import BadImage
from byol.data.images import open_images
from byol.errors import DataError

FolderOf = Callable[..., Path]


def test_lists_of_pictures_of_any_kind() -> None:
    pixels = PHOTOS[0]
    forms = [
        Image.fromarray(pixels),
        pixels,
        pixels.transpose(2, 0, 1),
        torch.tensor(pixels).permute(2, 0, 1),
        torch.tensor(pixels).permute(2, 0, 1) / 255,
        encoded(pixels),
    ]
    undecoded = {"image": {"bytes": encoded(pixels), "path": "a.png"}, "label": 1}
    assert np.array_equal(open_images([undecoded]).array(0), pixels)
    for form in forms:
        for item in (form, (form,), (form, 1), {"image": form}, {"img": form, "label": 1}):
            images = open_images([item, item])
            assert np.array_equal(images.array(1), pixels)
            labelled = (isinstance(item, tuple) and len(item) == 2) or (
                isinstance(item, dict) and "label" in item
            )
            assert (images.labels is not None) == labelled
    assert open_images([pixels[..., 0]]).channels == 1
    assert open_images([pixels[..., 0]], channels=3).array(0).shape == (8, 12, 3)
    assert open_images([np.zeros((8, 8, 13), np.uint8)]).channels == 13


def test_lists_of_path_and_label(folder_of: FolderOf) -> None:
    theirs = ImageFolder(str(folder_of("cat/1.png", "dog/2.png", "dog/3.png")))
    for source in (theirs, theirs.samples):
        images = open_images(source)
        assert images.labels is not None
        assert images.labels.tolist() == theirs.targets
        assert np.array_equal(images.array(2), photo(20, 30, 2))
    assert open_images(theirs).classes == ("cat", "dog")
    assert open_images(theirs).description == "3 images in ImageFolder (2 classes)"


def test_torchvision_datasets() -> None:
    theirs = FakeData(size=6, image_size=(3, 10, 14), num_classes=4)
    images = open_images(theirs)
    assert (len(images), images.channels, images.uniform_size()) == (6, 3, (10, 14))
    assert images.labels is not None
    assert images.labels.tolist() == [int(theirs[index][1]) for index in range(6)]
    assert np.array_equal(images.array(4), np.asarray(theirs[4][0]))


class Targets(Dataset[tuple[Image.Image, int]]):
    """As torchvision's CIFAR10: labels in a column, pictures made on request, which labels must not need."""

    classes = ("no", "yes")

    def __init__(self, targets: Any, *, fails: tuple[int, ...] = (), target_transform: Any = None) -> None:
        self.targets, self.fails, self.target_transform = targets, fails, target_transform
        self.read = 0

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.read += 1
        if index in self.fails:
            raise OSError("truncated")
        label = int(self.targets[index])
        return Image.fromarray(photo(8, 12, index)), self.target_transform(
            label
        ) if self.target_transform else label


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_column_of_labels_spares_reading_the_pictures(kind: Callable[[list[int]], Any]) -> None:
    theirs = Targets(kind([0, 1] * 50))
    images = open_images(theirs)
    before = theirs.read
    assert images.labels is not None
    assert (images.labels.tolist(), images.classes, theirs.read) == ([0, 1] * 50, ("no", "yes"), before)
    part = open_images(Subset(theirs, [3, 4, 99]))
    assert part.labels is not None
    assert (part.labels.tolist(), part.classes) == ([1, 0, 1], ("no", "yes"))
    assert np.array_equal(part.array(2), photo(8, 12, 99))


class Pairs(Dataset[tuple[Any, Any]]):
    """A dataset as people write their own: the label comes with the image."""

    def __init__(self, labels: list[Any]) -> None:
        self.pairs, self.read = labels, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read += 1
        return np.full((4, 4, 3), index % 256, np.uint8), self.pairs[index]


def test_labels_that_come_with_the_images_are_read_of_those_that_need_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    theirs = Pairs([number % 7 for number in range(5000)])
    images = open_images(theirs)
    theirs.read = 0
    few = images.subset([0, 4999, 12])
    assert few.labels is not None
    assert few.labels.tolist() == [0, 4999 % 7, 5]
    assert theirs.read < 10
    assert not caplog.records
    assert images.labels is not None  # all of them: it is said what that costs, and how to spare it
    assert images.labels.tolist() == theirs.pairs
    assert theirs.read < 5100
    for part in ("5,000 images", "Pairs", "labels="):
        assert part in caplog.text


def test_words_have_the_same_numbers_in_every_subset() -> None:
    theirs = Pairs(["owl", "ant", "bee", "ant"])
    part = open_images(theirs).subset([0, 2])
    assert part.labels is not None
    assert (part.labels.tolist(), part.classes) == ([2, 1], ("ant", "bee", "owl"))


def test_a_target_transform_is_obeyed() -> None:
    labels = open_images(Targets([0, 1] * 50, target_transform=lambda label: 1 - label)).labels
    assert labels is not None
    assert labels.tolist() == [1, 0] * 50


def test_an_item_that_raises_is_a_bad_image() -> None:
    images = open_images(Targets([0] * 100, fails=(0, 7)))
    assert np.array_equal(images.array(1), photo(8, 12, 1))
    for index in (0, 7):
        with pytest.raises(BadImage, match="OSError: truncated"):
            images.array(index)


@pytest.mark.parametrize("place", [0, 7])
def test_an_item_without_its_label_is_told_since_all_count_as_unlabelled(
    place: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            if index == place:
                raise OSError("truncated")
            return super().__getitem__(index)

    assert open_images(Broken([0, 1] * 10)).labels is None
    assert "1 of 20 images of Broken cannot be read" in caplog.text
    assert open_images(Broken([0, 1] * 10), labels=[0, 1] * 10).labels is not None


class Rows:
    """As a Hugging Face dataset: rows are dicts, columns come by name, class names lie with the features."""

    def __init__(self, image: str, label: str | None) -> None:
        class_label = type("ClassLabel", (), {"names": ["ant", "bee"]})()
        self.features = {image: object()} | ({label: class_label} if label else {})
        self.column_names = list(self.features)
        self.image, self.label = image, label

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: int | str) -> Any:
        if key == self.label:
            return [1, 0, 0, 1]
        assert isinstance(key, int)
        picture = Image.fromarray(photo(8, 12, key))
        return {self.image: picture} | ({self.label: [1, 0, 0, 1][key]} if self.label else {})


@pytest.mark.parametrize("names", [("image", "label"), ("img", "fine_label"), ("image", None)])
def test_hugging_face_datasets(names: tuple[str, str | None]) -> None:
    images = open_images(Rows(*names))
    assert np.array_equal(images.array(3), photo(8, 12, 3))
    if names[1] is None:
        assert (images.labels, images.classes) == (None, None)
    else:
        assert images.labels is not None
        assert (images.labels.tolist(), images.classes) == ([1, 0, 0, 1], ("ant", "bee"))


def test_tensor_datasets() -> None:
    tensor = torch.tensor(PHOTOS).permute(0, 3, 1, 2)
    images = open_images(TensorDataset(tensor, torch.arange(5) % 3))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2, 0, 1]
    assert np.array_equal(arrays(images), PHOTOS)
    assert open_images(TensorDataset(tensor)).labels is None


@pytest.mark.parametrize("targets", [[{"boxes": []}] * 2, [0.5, 1.5], [None, 1], [[1, 2], [3]]])
def test_targets_that_are_not_classes_count_as_none(targets: list[Any]) -> None:
    images = open_images([(PHOTOS[index], targets[index]) for index in range(2)])
    assert (len(images), images.labels) == (2, None)


def test_a_picture_that_is_still_a_file_is_read_from_its_file(folder_of: FolderOf) -> None:
    """Workers share an open file's position: reading through it would mix up their pictures."""
    root = folder_of("1.png", "2.png")
    with Image.open(root / "1.png") as first, Image.open(root / "2.png") as second:
        images = open_images([first, second])
        assert np.array_equal(images.array(1), photo(20, 30, 1))
        assert second.fp is not None
        assert second.fp.tell() < 1000
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(BytesIO(encoded(photo(8, 12), "TIFF", tiffinfo=exif)))
    assert np.array_equal(open_images([turned]).array(0), np.rot90(photo(8, 12), -1))


def test_frames_of_a_stack_that_a_data_set_opens_are_the_frames_that_it_chose(tmp_path: Path) -> None:
    grays = [Image.new("L", (8, 8), 60 * number) for number in range(4)]
    grays[0].save(tmp_path / "stack.tif", save_all=True, append_images=grays[1:])

    class Stack(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Image.Image:
            stack = files.enter_context(Image.open(tmp_path / "stack.tif"))
            stack.seek(index)
            return stack

    with ExitStack() as files:
        images = open_images(Stack())
        assert [images.array(index).mean() for index in range(4)] == [0, 60, 120, 180]


def test_a_column_of_pandas_is_read_in_its_order(folder_of: FolderOf) -> None:
    folder = folder_of("a.png", "b.png", "c.png")
    paths = sorted(map(str, folder.iterdir()))
    table = pandas.DataFrame({"path": paths, "label": [f"{n:02d}" for n in range(len(paths))]})[::-1]
    images = open_images(table["path"], labels=table["label"])
    assert images.classes is not None
    assert images.labels is not None
    told = [images.classes[label] for label in images.labels]
    assert told == table["label"].tolist()
    assert np.array_equal(images.array(0), np.asarray(Image.open(paths[-1]).convert("RGB")))
    with pytest.raises(DataError, match=r'table\["path"\]'):
        open_images(table)
