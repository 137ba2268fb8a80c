"""`open_images` with paths: what folders, lists and files become; what cannot work ends in one sentence."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import PHOTOS, arrays, encoded, photo
from PIL import Image, features
from torch.utils.data import DataLoader
from torchvision.datasets import FakeData

from byol.data.decode import BadImage
from byol.data.images import open_images
from byol.errors import ByolError, DataError
from byol.evaluation.inputs import opened

FolderOf = Callable[..., Path]


def test_a_folder_with_classes(folder_of: FolderOf) -> None:
    root = folder_of("cat/1.png", "dog/2.png", "dog/more/3.png")
    images = open_images(root)
    assert (len(images), images.channels, images.classes) == (3, 3, ("cat", "dog"))
    assert images.labels is not None
    assert (images.labels.tolist(), images.labels.dtype) == ([0, 1, 1], np.int64)
    assert [images.name(index) for index in range(3)] == ["cat/1.png", "dog/2.png", "dog/more/3.png"]
    assert np.array_equal(images.array(2), photo(20, 30, 2))
    assert images.description == f"3 images in {root}/ (2 classes)"
    assert images.uniform_size() == (20, 30)


def test_a_folder_without_classes(folder_of: FolderOf) -> None:
    images = open_images(str(folder_of("1.png", "more/2.png")))
    assert (len(images), images.labels, images.classes) == (2, None, None)


def test_gray_is_what_pillow_calls_gray(folder_of: FolderOf) -> None:
    images = open_images(folder_of("1.png"), channels=1)
    picture = images.picture(0)
    assert isinstance(picture, Image.Image)
    assert picture.mode == "L"
    assert np.array_equal(images.array(0)[..., 0], np.asarray(Image.fromarray(photo(20, 30, 0)).convert("L")))


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "1 is a png.jpg").write_bytes(encoded(photo()))
    (tmp_path / "2 is a webp.png").write_bytes(encoded(photo(), "WEBP", lossless=True))
    (tmp_path / "3 is a jpeg.png").write_bytes(encoded(photo(), "JPEG"))
    jpeg = np.asarray(Image.open(tmp_path / "3 is a jpeg.png", formats=["JPEG"]))
    assert np.array_equal(arrays(open_images(tmp_path)), np.stack([photo(), photo(), jpeg]))


def test_lists_of_files(folder_of: FolderOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = folder_of("b/1.png", "a/2.png", "3.png")
    (root / "list.txt").write_text("b/1.png\n3.png\n")
    expected = np.stack([photo(20, 30, 0), photo(20, 30, 2)])
    assert np.array_equal(arrays(open_images(root / "list.txt")), expected)
    assert np.array_equal(arrays(open_images([root / "b/1.png", root / "3.png"])), expected)
    assert np.array_equal(arrays(open_images((str(root / "b/1.png"), str(root / "3.png")))), expected)
    monkeypatch.chdir(root)
    images, pattern = open_images(["b/1.png", "3.png"]), open_images("[ab]/*.png")
    monkeypatch.chdir(tmp_path)  # names keep meaning what they meant
    assert np.array_equal(arrays(images), expected)
    assert [images.name(index) for index in range(2)] == ["b/1.png", "3.png"]
    assert [pattern.name(index) for index in range(len(pattern))] == ["a/2.png", "b/1.png"]
    assert images.labels is None


def test_an_array_of_paths_is_a_list_of_them(folder_of: FolderOf) -> None:
    """As scikit-learn hands on a list of paths, cut by an index."""
    root = folder_of("a.png", "b.png")
    paths = [str(root / "b.png"), str(root / "a.png")]
    for cut in (np.array(paths), np.array([Path(path) for path in paths], dtype=object)):
        assert [open_images(cut).name(index) for index in range(2)] == [
            open_images(paths).name(index) for index in range(2)
        ]


def test_a_folder_whose_name_looks_like_a_pattern(folder_of: FolderOf) -> None:
    assert len(open_images(folder_of("1.png", root="photos [2024]*"))) == 1


def test_a_pattern_without_a_suffix_takes_what_a_folder_would_and_counts_the_rest(
    folder_of: FolderOf, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of("a/1.png", "a/deep/2.JPG", "a/notes.txt", "b/3.png", "b.csv")
    for pattern, count in (("**", 3), ("*/*", 2), ("a/**/*.*", 2), ("a/*.txt", 1), ("?/*.[pt]*", 3)):
        caplog.clear()
        assert len(open_images(root / pattern)) == count
        assert ("1 with .txt" in caplog.text) == (pattern[-1] == "*" and "[" not in pattern)
    with pytest.raises(DataError, match=r"/\? matches only folders, such as .*/a; expected files\. Give the"):
        open_images(root / "?")
    bare = folder_of("1", "2", root="bare")
    assert len(open_images(bare / "*")) == 2


def test_a_tilde_is_a_home_only_where_no_such_name_is_there(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of("1.png", root="~backup")
    folder_of("1.png", "2.png", root="~root")
    folder_of("1.png", "2.png", "3.png", root="home/photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path, count in (("~backup", 1), ("./~backup", 1), ("~root", 2), ("./~root", 2), ("~/photos", 3)):
        assert len(open_images(path)) == count
    with pytest.raises(DataError, match=rf"There is no ~nouser/photos: {tmp_path} holds no '~nouser'"):
        open_images("~nouser/photos")
    with pytest.raises(ByolError, match=r"~nouser/features\.npz"):
        opened("~nouser/features.npz", "train", None)


def test_images_pass_through(folder_of: FolderOf) -> None:
    images = open_images(folder_of("1.png", "2.png"))
    assert open_images(images) is images
    labelled = open_images(images, labels=[1, 0])
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [1, 0]


def test_what_is_requested_of_open_images_counts(folder_of: FolderOf) -> None:
    """No argument beside images that are open already is passed over in silence."""
    root = folder_of("1.png", "2.png")
    images = open_images(root, labels=[0, 1])
    gray = open_images(images.subset([1]), channels=1)
    assert np.array_equal(gray.array(0), open_images(root, channels=1).array(1))
    assert gray.labels is not None
    assert gray.labels.tolist() == [1]
    with pytest.raises(DataError, match="more than the limit of 599"):
        open_images(images, max_pixels=599)
    with pytest.raises(DataError, match="3 channels, and 13 were requested"):
        open_images(open_images(PHOTOS), channels=13)
    part = open_images(images.subset([1]), labels=[7])
    assert part.labels is not None
    assert part.labels.tolist() == [7]


def test_large_pictures_are_bad_images(folder_of: FolderOf) -> None:
    root = folder_of("1.png")
    assert open_images(root, max_pixels=600).array(0).shape == (20, 30, 3)
    with pytest.raises(DataError, match="more than the limit of 599"):
        open_images(root, max_pixels=599)
    (root / "2.png").write_bytes(encoded(photo(8, 8)))
    with pytest.raises(BadImage, match="more than the limit of 599"):
        open_images(root, max_pixels=599).array(0)
    with pytest.raises(DataError, match="more than the limit of 599"):
        open_images([Image.new("RGB", (20, 30))], max_pixels=599)


def test_a_missing_path_names_what_is_near(folder_of: FolderOf) -> None:
    root = folder_of("kittens/1.png", "dogs/1.png")
    with pytest.raises(
        DataError, match=f"There is no {root}/kitens: {root} holds no 'kitens'. Did you mean 'kittens'"
    ):
        open_images(root / "kitens")
    with pytest.raises(DataError, match=rf"{root.parent} holds no 'fotos'\. Did you mean 'photos'"):
        open_images(root.parent / "fotos" / "kittens" / "more")
    with pytest.raises(DataError, match=r"There is no .*nothing\*\.png"):
        open_images(root / "nothing*.png")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: None, r"empty/ holds no files; expected pictures"),
        (lambda root: (root / "deep" / "er").mkdir(parents=True), r"holds no files"),
        (
            lambda root: [(root / name).touch() for name in ("a.heic", "b.heic", "c.mov", "README")],
            r"holds no pictures.* \(2 with \.heic, 1 with \.mov, 1 with no suffix; .*pillow-heif\)",
        ),
        (lambda root: np.save(root / "a.npy", PHOTOS), r"1 with \.npy\).* Give the array's file itself"),
    ],
)
def test_folders_without_pictures_say_what_they_hold(
    make: Callable[[Path], Any], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    with pytest.raises(DataError, match=sentence):
        open_images(tmp_path / "empty")


def test_files_that_are_passed_over_are_counted(
    folder_of: FolderOf, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["1.png", "a/2.png", "a/3.heic", "a/4.HEIC", "5.jxl", "notes.txt", ".hidden.txt", "b/README"]
    assert len(open_images(folder_of(*names))) == 2
    (line,) = (record.message for record in caplog.records)
    for part in ("2 with .heic", "1 with .jxl", "1 with .txt", "1 with no suffix", "pip install pillow-heif"):
        assert part in line
    caplog.clear()
    open_images(folder_of("1.png", ".hidden.txt", root="others"))
    assert not caplog.records


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow is built without AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "1.avif", quality=100)
    Image.fromarray(photo()).save(tmp_path / "2.jpg", quality=100)
    images = open_images(tmp_path)
    assert [images.name(index) for index in range(len(images))] == ["1.avif", "2.jpg"]
    assert np.abs(images.array(0).astype(int) - photo()).mean() < 3


@pytest.mark.parametrize(("module", "suffix"), [("pillow_heif", ".heic"), ("pillow_jxl", ".jxl")])
def test_formats_of_plugins_are_read_where_they_are_installed(
    module: str, suffix: str, tmp_path: Path
) -> None:
    plugin = pytest.importorskip(module, reason="an optional plugin of Pillow's")
    getattr(plugin, "register_heif_opener", lambda: None)()
    Image.fromarray(photo()).save(tmp_path / f"1{suffix}", quality=95)
    assert np.abs(open_images(tmp_path).array(0).astype(int) - photo()).mean() < 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC.*pip install pillow-heif"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL.*pip install pillow-jxl-plugin"),
    ],
)
def test_a_picture_that_needs_a_plugin_says_so(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(data)
    with pytest.raises(DataError, match=reason if find_spec("pillow_heif") is None else "1.jpg"):
        open_images(tmp_path)


def test_a_stray_picture_beside_class_folders_is_named(
    folder_of: FolderOf, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{kind}/{number}.png" for kind in ("cats", "dogs") for number in range(6)]
    assert open_images(folder_of(*names, "stray.png")).labels is None
    for part in ("stray.png", "2 folders", "unlabelled"):
        assert part in caplog.text
    caplog.clear()
    assert open_images(folder_of(*names, *(f"{n}.png" for n in range(9)), root="mixed")).labels is None
    assert not caplog.records  # so many are no oversight


def test_splits_are_not_classes(folder_of: FolderOf) -> None:
    root = folder_of("train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    with pytest.raises(
        DataError, match=rf"holds the splits train, val, not classes. Give one, such as {root}/train"
    ):
        open_images(root)
    assert open_images(root / "train").classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"the splits test, train, .* such as .*/train\."):
        open_images(folder_of("test/cat/1.png", "train/cat/2.png", root="others"))


@pytest.mark.timeout(20)
def test_files_that_are_not_a_set_of_images(folder_of: FolderOf, tmp_path: Path) -> None:
    root = folder_of("1.png", "photos.rar", "no suffix")
    os.mkfifo(tmp_path / "pipe.npy")
    for name, sentence in (
        ("1.png", "is a single picture; expected many. Give its folder"),
        ("photos.rar", "is not of a kind that is read here; .* Unpack other archives first"),
        ("no suffix", "is not of a kind that is read here"),
    ):
        with pytest.raises(DataError, match=sentence):
            open_images(root / name)
    for name in ("pipe", "pipe.npy", "pipe.txt", "pipe.parquet", "pipe.jpg"):
        if not (tmp_path / name).exists():
            os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="not a regular file"):
            open_images(tmp_path / name)


def test_lists_that_lead_nowhere(folder_of: FolderOf) -> None:
    root = folder_of("1.png")
    (root / "list.txt").write_text("photos/1.png\nphotos/2.png\n")
    with pytest.raises(
        DataError,
        match=rf"No image in .*list\.txt can be read. The first, {root}/photos/1\.png: No such file",
    ):
        open_images(root / "list.txt")
    (root / "list.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match="There is no image in"):
        open_images(root / "list.txt")
    with pytest.raises(DataError, match=f"The first, {Path.cwd()}/no/such.png: No such file"):
        open_images(["no/such.png"])
    with pytest.raises(DataError, match="mixes parquet files and pictures"):
        open_images([root / "1.png", "a.parquet"])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "type NoneType is not a set of images"),
        (7, "type int is not a set of images"),
        (b"photos", "type bytes is not a set of images"),
        (iter([1]), "is not a set of images; expected a path"),
        ([], "There is no image in the list"),
        ((), "There is no image in the tuple"),
        ([1, 2], "No image in the list can be read. The first, 0: it is of type int"),
        ([None], "The first, 0: it is of type NoneType"),
        ([{"text": "a"}], "it has the keys text; expected `image`"),
        ([np.zeros(7)], r"it has the shape \(7,\)"),
        (["a.png", 3], "No image in the list can be read. The first, 0: No such file"),
        (
            {"train": [1], "test": [2]},
            r"A mapping \(keys: train, test\) is not a set of images. Give one of its values",
        ),
        ("gs://bucket/photos", r"gs://bucket/photos needs more .* pip install"),
        ("https://example.org/a.parquet", "is not a tar or zip file, which alone are read from addresses"),
        ("nowhere://example.org/a.zip", "is no address that fsspec knows"),
        ("x" * 5000, "There is no xxx"),
        ("a\0b", "There is no"),
    ],
)
def test_what_is_not_a_set_of_images(source: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        open_images(source)
    assert "\n" not in str(caught.value)


def test_of_a_data_loader_the_dataset_is_requested() -> None:
    with pytest.raises(DataError, match="Of a data loader, give its dataset"):
        open_images(DataLoader(FakeData(size=4)))


def test_files_are_colour_or_gray(folder_of: FolderOf) -> None:
    with pytest.raises(
        DataError, match=r"pictures have 3 channels \(colour\) or 1 \(gray\), and 4 were requested"
    ):
        open_images(folder_of("1.png"), channels=4)
    with pytest.raises(DataError, match="and 4 were requested"):
        open_images([Image.new("RGB", (4, 4))], channels=4)


def test_sentences_can_be_printed_whatever_the_name(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\nodd"
    os.mkdir(path)
    for source in (path.decode("utf-8", "surrogateescape"), Path(os.fsdecode(path)) / "more"):
        with pytest.raises(ByolError) as caught:
            open_images(source)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()
