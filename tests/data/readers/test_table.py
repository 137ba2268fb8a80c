"""Labels in CSV and TSV files, against Python's own csv module."""

import csv
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from byol.data.images import Images, open_images
from byol.errors import DataError

FolderOf = Callable[..., Path]
FILES = ("a/1.png", "a/2.png", "b, c/3.png", 'q"t/4.png', "ünïcode/5.png")
WORDS = ("dog", "cat", "cat, small", 'the "owl"', "été")


@pytest.fixture
def photos(folder_of: FolderOf) -> Path:
    return folder_of(*FILES)


def held(images: Images) -> dict[str, str]:
    """What the labels say of every image."""
    assert images.labels is not None
    assert images.classes is not None
    return {images.name(row): images.classes[label] for row, label in enumerate(images.labels)}


@pytest.mark.parametrize("dialect", ["excel", "excel-tab", "unix"])
@pytest.mark.parametrize("header", [(), ("path", "label"), ("Label", "FILENAME"), ("id", "image", "class")])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_a_table_is_read_as_pythons_own_module_wrote_it(
    photos: Path, dialect: str, header: tuple[str, ...], begin: str
) -> None:
    """With and without a header, in any order of its columns, quoted or not; Excel begins with a mark."""
    path = photos / ("labels.tsv" if dialect == "excel-tab" else "LABELS.CSV")
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(begin)
        writer = csv.writer(file, dialect=dialect)
        if header:
            writer.writerow(header)
        for number, (name, word) in enumerate(zip(FILES, WORDS, strict=True)):
            writer.writerow(
                {0: (name, word), 2: (name, word), 3: (number, name, word)}[len(header)]
                if header[:1] != ("Label",)
                else (word, name)
            )
    images = open_images(path)
    assert held(images) == dict(zip(FILES, WORDS, strict=True))
    assert [images.name(row) for row in range(5)] == list(FILES)  # in the order of the table
    assert images.classes == tuple(sorted(WORDS))
    assert np.array_equal(images.array(2), open_images([str(photos / FILES[2])]).array(0))
    assert held(pickle.loads(pickle.dumps(images))) == held(images)


def test_paths_are_relative_to_the_table_wherever_one_works(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text(f"../photos/a/1.png,x\n{photos / 'a' / '2.png'},y\n")
    monkeypatch.chdir(photos)
    assert held(open_images("../lists/a.csv")) == {"../photos/a/1.png": "x", str(photos / "a" / "2.png"): "y"}


def test_a_table_may_lie_in_a_folder_whose_name_is_not_utf_8(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(photos, folder)
    (folder / "labels.csv").write_text("a/1.png,x\na/2.png,y\n")
    assert open_images(folder / "labels.csv").classes == ("x", "y")
    (folder / "labels.csv").write_text("a/1.png,x\na/none.png,y\n")
    with pytest.raises(DataError, match=r"'a/none\.png', which is not a file in .*caf\\udce9"):
        open_images(folder / "labels.csv")


def test_where_an_image_has_no_label_none_has_and_people_are_told(photos: Path, caplog) -> None:
    """As in folders and archives: training needs none."""
    (photos / "a.csv").write_text("path,label\na/1.png,x\na/2.png,\nünïcode/5.png,\n")
    images = open_images(photos / "a.csv")
    assert (len(images), images.labels, images.classes) == (3, None, None)
    assert "count as unlabelled: 2 have no label, line 3 the first." in caplog.text


def test_separators_without_a_label_behind_them_make_no_set_multi_label(photos: Path, caplog) -> None:
    (photos / "a.csv").write_text("a/1.png,x;\na/2.png, | y\n")
    assert held(open_images(photos / "a.csv")) == {"a/1.png": "x", "a/2.png": "y"}
    (photos / "a.csv").write_text("a/1.png,x;\na/2.png,;\n")
    assert open_images(photos / "a.csv").classes is None
    assert "1 have no label, line 2 the first" in caplog.text


def test_numbers_are_classes_in_their_own_order(photos: Path) -> None:
    (photos / "a.csv").write_text("a/1.png,10\na/2.png,9\n")
    images = open_images(photos / "a.csv")
    assert images.classes == ("9", "10")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "a/1.png,cat;dog\na/2.png,\nünïcode/5.png,dog",
        "a/1.png,dog | cat\na/2.png,\nünïcode/5.png,dog",
        "a/1.png,cat\na/2.png,\na/1.png,dog\n\nünïcode/5.png,dog\na/1.png,cat\n",
    ],
)
def test_several_labels_of_an_image_make_the_set_multi_label(photos: Path, text: str) -> None:
    (photos / "a.csv").write_text(text, encoding="utf-8")
    images = open_images(photos / "a.csv")
    assert images.labels is None
    assert images.label_matrix is not None
    assert images.classes == ("cat", "dog")
    assert images.label_matrix.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_a_small_table_cannot_have_a_large_matrix_made(photos: Path) -> None:
    """One file by 8,192 names, and as many labels: for a table of 0.4 MB."""
    names = (f"{number:013b}".replace("0", "./").replace("1", ".//") + "a/1.png" for number in range(8192))
    lines = [f"{name},{number}|x" for number, name in enumerate(names)]
    (photos / "a.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"a\.csv has 16,384 labels, .* 8,193 classes take 0\.5 GiB"):
        open_images(photos / "a.csv")


def test_the_same_row_twice_is_one_image_of_one_label(photos: Path) -> None:
    (photos / "a.csv").write_text("a/1.png,cat\na/1.png,cat\na/2.png,dog\n")
    assert held(open_images(photos / "a.csv")) == {"a/1.png": "cat", "a/2.png": "dog"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("path,label\na/1.png,x\n".encode("utf-16"), ["Line 1 ", "UTF-16", "save .* UTF-8"]),
        ("path,label\na/1.png,x\n".encode("utf-16-be"), ["Line 1 ", "UTF-16"]),
        ("a/1.png,x\na/2.png,\xe9t\xe9\n".encode("latin-1"), ["Line 2 ", "0xe9", "Latin-1", "UTF-8"]),
        (b"a/1.png,x\na/2.png,\0y\n", ["Line 2 ", "not text"]),
        (b"", ["no image", "path,label"]),
        (b"\n \n", ["no image"]),
        (b"path,label\n", ["no image"]),
        (b"a/1.png\na/2.png\n", ["Line 1 ", "a/1.png", "path,label"]),
        (b"a/1.png;x\na/2.png;y\n", ["Line 1 ", "a/1.png;x", "path,label"]),
        (b"path,split\na/1.png,train\n", ["Line 1 ", "path split", "path,label"]),
        (b"1,a/1.png,x\n", ["Line 1 ", "header", "path,label"]),
        (b"path,label\na/1.png,x\na/2.png\n", ["Line 3 ", r"\(1\)", "path,label"]),
        (b"path,label\n,x\n", ["Line 2 ", "no path"]),
        (b"path,label\n\na/1.png,x\na/9.png,x\n", ["Line 4 ", "'a/9.png'", "not a file", "relative"]),
        (b"photo,kind\na/1.png,x\n", ["Line 1 ", "'photo'", "columns, path and label"]),
        (b"a/1.png,x\na,x\n", ["Line 2 ", "'a'", "not a file"]),
        (b'a/1.png,x\na/2.png,"y\n', ["Line 2 "]),
        (b"a/1.png," + b"x" * 1001, ["Line 1 ", "1,000"]),
        (b"a/1.png," + b"x" * 200_000, ["Line 1 "]),
        (b"a/1.png,x\n\x1b[31m.png,y\n", ["Line 2 ", r"x1b\[31m"]),
    ],
)
def test_what_is_not_a_table_of_labels_is_refused_with_its_line(
    photos: Path, content: bytes, says: list[str]
) -> None:
    (photos / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=".*".join(says)) as told:
        open_images(photos / "labels.csv")
    assert "labels.csv" in str(told.value)
    assert str(told.value).isprintable()
