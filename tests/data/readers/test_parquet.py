"""Parquet as Hugging Face, CIFAR's distributors and plain pyarrow write it, read back and compared."""

import json
import os
import pickle
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import decode, encoded, gathered, photo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from byol.data.decode import BadImage
from byol.data.images import open_images
from byol.data.readers.parquet import ParquetReader, shards
from byol.errors import DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def row(seed: int) -> dict[str, Any]:
    return {"bytes": encoded(photo(12, 16, seed)), "path": f"{seed}.png"}


def write(path: Path, columns: dict[str, Any], *, names: list[str] | None = None, groups: int = 3) -> Path:
    """A parquet file of several row groups; `names` adds the class names as Hugging Face stores them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: pa.array(values, STRUCT if isinstance(values[0], dict) else None)
        for name, values in columns.items()
    }
    table = pa.table(arrays)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=groups)
    return path


def test_hugging_face_layout_with_labels(tmp_path: Path) -> None:
    labels = [2, 0, 1, 1, 0, 2, 2]
    path = write(
        tmp_path / "a.parquet",
        {"image": [row(i) for i in range(7)], "label": labels},
        names=["cat", "dog", "emu"],
    )
    images = open_images(path)
    assert (len(images), images.classes) == (7, ("cat", "dog", "emu"))
    assert images.labels is not None
    assert (images.labels.tolist(), images.labels.dtype) == (labels, np.int64)
    for index in (6, 0, 3, 2):
        assert np.array_equal(images.array(index), photo(12, 16, index))
    assert images.name(5) == "a.parquet:5"
    assert images.uniform_size() == (12, 16)
    assert images.description == f"7 images in {path} (3 classes)"


def test_files_that_number_their_classes_differently_are_united_by_names(tmp_path: Path) -> None:
    for name, names in (("a", ["cat", "dog"]), ("b", ["dog", "owl", "cat"])):
        columns = {"image": [row(i) for i in range(3)], "label": [0, 1, 0]}
        write(tmp_path / f"{name}.parquet", columns, names=names)
    images = open_images(tmp_path)
    assert images.classes == ("cat", "dog", "owl")
    assert images.labels is not None
    assert [images.classes[one] for one in images.labels] == ["cat", "dog", "cat", "dog", "owl", "dog"]


def test_hugging_face_layout_without_labels(tmp_path: Path) -> None:
    images = open_images(write(tmp_path / "a.parquet", {"image": [row(i) for i in range(4)]}))
    assert (images.labels, images.classes) == (None, None)
    assert np.array_equal(images.array(3), photo(12, 16, 3))


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("img", "fine_label"), ("image", "labels")])
def test_cifar_and_other_column_names(image: str, label: str, tmp_path: Path) -> None:
    images = open_images(
        write(tmp_path / "a.parquet", {image: [row(i) for i in range(4)], label: [0, 11, 3, 0]})
    )
    assert images.labels is not None
    assert images.labels.tolist() == [0, 11, 3, 0]
    assert images.classes == tuple(str(number) for number in range(12))  # numbers name themselves
    assert np.array_equal(images.array(1), photo(12, 16, 1))


def test_plain_bytes_columns_and_words_as_labels(tmp_path: Path) -> None:
    data = [encoded(photo(12, 16, i)) for i in range(4)]
    for kind in (pa.binary(), pa.large_binary()):
        table = pa.table({"image": pa.array(data, kind), "label": ["owl", "ant", "owl", "bee"]})
        pq.write_table(table, tmp_path / "a.parquet")
        images = open_images(tmp_path / "a.parquet")
        assert images.labels is not None
        assert (images.labels.tolist(), images.classes) == ([2, 0, 2, 1], ("ant", "bee", "owl"))
        assert np.array_equal(images.array(2), photo(12, 16, 2))


@pytest.mark.parametrize("labels", [[0.5, 1.5], [-1, -1], [[1, 2], [3]]])
def test_labels_that_are_not_classes_count_as_none(labels: list[Any], tmp_path: Path) -> None:
    images = open_images(write(tmp_path / "a.parquet", {"image": [row(0), row(1)], "label": labels}))
    assert images.labels is None
    assert np.array_equal(images.array(1), photo(12, 16, 1))


def test_several_files_are_one_set(tmp_path: Path) -> None:
    seeds = iter(range(100))
    for part, count in enumerate((4, 1, 5)):
        rows = [row(next(seeds)) for _ in range(count)]
        write(tmp_path / f"train-0000{part}-of-00003.parquet", {"image": rows, "label": [part] * count})
    images = open_images(tmp_path)
    assert images.labels is not None
    assert images.labels.tolist() == [0] * 4 + [1] + [2] * 5
    assert images.name(4) == "train-00001-of-00003.parquet:0"
    order = np.random.default_rng(0).permutation(10)
    assert all(np.array_equal(images.array(int(i)), photo(12, 16, int(i))) for i in order)
    paths = sorted(tmp_path.glob("*.parquet"))
    for source in (paths, [str(path) for path in paths], str(tmp_path / "train-*.parquet")):
        assert open_images(source).fingerprint() == images.fingerprint()


def test_files_of_which_some_lack_the_label_column_are_unlabelled_and_people_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "0.parquet", {"image": [row(0)], "label": [1]})
    write(tmp_path / "1.parquet", {"image": [row(1)]})
    assert open_images(tmp_path).labels is None
    told = f"2 files have no label column, {tmp_path / '1.parquet'} the first"
    assert f"The images in {tmp_path}/ count as unlabelled: 1 of {told}." in caplog.text
    write(tmp_path / "1.parquet", {"image": [row(1)], "fine_label": [0]})
    assert open_images(tmp_path).labels is None
    assert "count as unlabelled: their label columns are called fine_label, label." in caplog.text
    caplog.clear()
    for name in ("0", "1"):
        write(tmp_path / f"{name}.parquet", {"image": [row(0)]})
    assert open_images(tmp_path).labels is None
    assert not caplog.records


def test_shards_lie_at_any_depth_and_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("data/train-0.parquet", "data/train-1.parquet", ".cache/train-0.parquet"):
        write(tmp_path / name, {"image": [row(0)]})
    assert [path.name for path in shards(tmp_path)] == ["train-0.parquet", "train-1.parquet"]
    write(tmp_path / "data/test-0.parquet", {"image": [row(1)]})
    with pytest.raises(DataError, match=r"holds the splits test, train\. Give the files of one"):
        open_images(tmp_path)
    assert len(open_images(tmp_path / "data" / "train*.parquet")) == 2


@pytest.mark.parametrize(
    "names",
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("Train-0.parquet", "test-0.parquet"),
        ("of [2024]/cifar-train-0.parquet", "of [2024]/cifar-test-0.parquet"),
        ("more/train/0.parquet", "more/test/0.parquet"),
    ],
)
def test_of_several_splits_the_one_to_train_on_is_proposed_and_the_proposal_works(
    names: tuple[str, str], tmp_path: Path
) -> None:
    for seed, name in enumerate(names):
        write(tmp_path / name, {"image": [row(seed)]})
    with pytest.raises(DataError, match=r"holds the splits test, train\. Give the files of one") as refused:
        open_images(tmp_path)
    (proposed,) = shlex.split(str(refused.value).removesuffix(".").partition("such as ")[2])
    images = open_images(proposed)
    assert len(images) == 1
    assert np.array_equal(images.array(0), photo(12, 16, 0))


def test_damaged_rows_are_bad_images(tmp_path: Path) -> None:
    rows = [row(0), None, {"bytes": None, "path": "1.png"}, {"bytes": b"", "path": "2.png"}, row(4)]
    images = open_images(write(tmp_path / "a.parquet", {"image": rows}))
    for index, reason in ((1, "holds no bytes"), (2, "No such file"), (3, "file is empty")):
        with pytest.raises(BadImage, match=reason):
            images.picture(index)
    assert np.array_equal(images.array(4), photo(12, 16, 4))


def test_a_damaged_row_group_costs_its_rows_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [row(i) for i in range(9)]})
    reader = pq.ParquetFile(path)
    place = reader.metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    images = open_images(path)
    for index in range(9):
        if index // 3 == 1:
            with pytest.raises(BadImage, match="its part of the file cannot be read"):
                images.picture(index)
        else:
            assert np.array_equal(images.array(index), photo(12, 16, index))


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_file_is_a_sentence(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [row(i) for i in range(9)]})
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>404</html>", "truncated": data[: len(data) // 2]}[damage])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        open_images(path)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a", "b"]},
        {"image": ["1.png", "2.png"]},
        {"image": [1, 2]},
        {"image": [{"path": "1.png"}, {"path": "2.png"}]},
    ],
)
def test_columns_without_pictures_are_named(columns: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"has the columns (text|image) \(.*; expected `image` or `img`"):
        open_images(tmp_path / "a.parquet")


def test_a_file_without_rows_is_a_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([], STRUCT)}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="There is no image in"):
        open_images(tmp_path / "a.parquet")


def test_the_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    def fingerprint(seeds: list[int]) -> str:
        return open_images(
            write(tmp_path / "a.parquet", {"image": [row(seed) for seed in seeds]})
        ).fingerprint()

    first = fingerprint([0, 1, 2])
    assert fingerprint([0, 1, 2]) == first
    assert fingerprint([0, 1, 3]) != first
    assert fingerprint([0, 2, 1]) != first


def test_the_fingerprint_of_a_small_file_follows_every_byte(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(2**20)
    path = write(tmp_path / "a.parquet", {"image": [row(0), {"bytes": noise, "path": None}]})
    data = bytearray(path.read_bytes())
    first, seen = open_images(path).fingerprint(), set[str]()
    for place in range(len(data) // 2, len(data) // 2 + 12_000, 4_000):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        seen.add(open_images(path).fingerprint())
    assert len(seen) == 3
    assert first not in seen


class Decoded(Dataset[Tensor]):
    def __init__(self, reader: ParquetReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(decode(self.reader.read(index)))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_open_the_files_themselves(start: str, tmp_path: Path) -> None:
    reader = ParquetReader([write(tmp_path / "a.parquet", {"image": [row(i) for i in range(6)]})])
    reader.read(0)  # the parent has the file open, and a row group cached
    assert len(pickle.dumps(reader)) < 2000
    if start == "spawn":
        copy = pickle.loads(pickle.dumps(reader))  # what spawn hands to a worker; starting one takes seconds
        assert np.array_equal(decode(copy.read(5)), photo(12, 16, 5))
        return
    loader = DataLoader(Decoded(reader), batch_size=None, num_workers=1, multiprocessing_context=start)
    for index, pixels in enumerate(loader):
        assert np.array_equal(pixels, photo(12, 16, index))


def test_release_closes_the_files(tmp_path: Path) -> None:
    images = open_images(write(tmp_path / "a.parquet", {"image": [row(i) for i in range(6)]}))

    def open_files() -> list[str]:
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return [
            target
            for link in links
            if os.path.exists(link) and (target := os.readlink(link)).startswith(str(tmp_path))
        ]

    images.picture(0)
    assert open_files()
    images.release()
    assert open_files() == []
    assert np.array_equal(images.array(5), photo(12, 16, 5))


def test_a_row_without_bytes_is_read_from_its_path(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "1.png").write_bytes(encoded(photo(12, 16, 1)))
    (tmp_path / "2.png").write_bytes(encoded(photo(12, 16, 2)))
    rows = [row(0), {"bytes": None, "path": "1.png"}, {"bytes": None, "path": str(tmp_path / "2.png")}]
    images = open_images(write(tmp_path / "there" / "a.parquet", {"image": rows}, groups=1))
    with gathered(images):
        for index in range(3):
            assert np.array_equal(images.array(index), photo(12, 16, index))


def test_many_files_do_not_exhaust_the_handles(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"{number:02}.parquet", {"image": [row(number)], "label": [number % 2]})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 15, hard))
    try:
        images = open_images(tmp_path)
        assert images.labels is not None
        assert all(np.array_equal(images.array(index), photo(12, 16, index)) for index in range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def bomb(path: Path, kind: str) -> Path:
    """A small file that holds, or claims to hold, gigabytes."""
    options: dict[str, Any] = {"compression": "zstd", "row_group_size": 4000, "use_dictionary": False}
    if kind == "one picture repeated":  # the same megabyte 4,000 times is stored once, in a dictionary
        picture = np.random.default_rng(0).bytes(2**20)
        column = pa.DictionaryArray.from_arrays(np.zeros(4000, np.int32), pa.array([picture], pa.binary()))
        options["use_dictionary"] = True
        options["store_schema"] = False
    elif kind == "rows of nothing in many row groups":  # each of which the file has bytes enough for
        column = pa.nulls(4 * 10**6, pa.binary())
        options["row_group_size"] = 20_000
    elif kind == "zeros":
        column = pa.array([bytes(2**20)] * 1000, pa.binary())
    else:
        column = pa.array([None] * 10**7, pa.binary())
        options["row_group_size"] = 10**7
    pq.write_table(pa.table({"image": column}), path, **options)
    assert path.stat().st_size < 2 * 2**20
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "one picture repeated",
        pytest.param("zeros", marks=pytest.mark.slow),
        "ten million rows of nothing",
        "rows of nothing in many row groups",
    ],
)
def test_a_small_file_of_huge_content_is_a_sentence(kind: str, tmp_path: Path) -> None:
    path = bomb(tmp_path / "a.parquet", kind)
    script = """
import resource, sys
from byol import ByolError, open_images
import pyarrow.parquet, torch
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
try:
    images = open_images(sys.argv[1])
    images.picture(0)
except ByolError as failure:
    print(failure)
print(peak() - before < 600)
"""
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "a.parquet" in done.stdout
    assert "cannot be read" in done.stdout
    assert done.stdout.endswith("True\n")


def test_a_label_as_long_as_a_book_is_not_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = [*"ab" * 500, "c" * 10**6]  # as an array of words that would be 4 GB
    images = open_images(write(tmp_path / "a.parquet", {"image": [row(0)] * 1001, "label": labels}))
    assert images.labels is None
    assert "1,000 letters" in caplog.text


def test_labels_that_cannot_be_read_are_a_sentence(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", {"image": [row(i) for i in range(9)], "label": list(range(9))}, groups=9
    )
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.path_in_schema == "label"
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset : column.dictionary_page_offset + 30] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"labels in .*a\.parquet cannot be read"):
        open_images(path).labels  # noqa: B018
