"""Parquet in a shuffled order: the same batches as from a folder, and every row group read once."""

import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batching import plan_for, same, streamed
from pictures import encoded, photo

from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.readers.gathered import Gathered, temporary_folder
from byol.data.readers.parquet import ParquetReader

COUNT, GROUP = 24, 4


@pytest.fixture
def both(tmp_path: Path) -> tuple[Images, Images]:
    """The same pictures, as files and as rows of two parquet files of several row groups."""
    data = [encoded(photo(20, 24, seed)) for seed in range(COUNT)]
    for folder in ("files", "rows"):
        (tmp_path / folder).mkdir()
    for number, picture in enumerate(data):
        (tmp_path / "files" / f"{number:02}.png").write_bytes(picture)
    for part, rows in enumerate((data[:10], data[10:])):
        pq.write_table(
            pa.table({"image": pa.array(rows, pa.binary())}),
            tmp_path / "rows" / f"{part}.parquet",
            row_group_size=GROUP,
        )
    return open_images(tmp_path / "files"), open_images(tmp_path / "rows")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each row group is read in this process."""
    counted: Counter[tuple[str, int]] = Counter()
    read = pq.ParquetFile.read_row_group

    def count(file: Any, group: int, **options: Any) -> Any:
        counted[str(file), group] += 1
        return read(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    return counted


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_order_gives_what_a_folder_gives_and_reads_each_row_group_once(
    workers, both, reads, monkeypatch
) -> None:
    monkeypatch.setattr("byol.data.readers.parquet.CACHE_BYTES", 0)  # as if the pictures were many more
    files, parquet = both
    rows = torch.arange(1, COUNT)
    plan = plan_for(COUNT - 1, batch_size=6)
    expected = list(streamed(files.subset(rows), plan, range(8), workers))
    assert same(list(streamed(parquet.subset(rows), plan, range(8), workers)), expected)
    assert len(reads) == 7
    assert set(reads.values()) == {1}


def test_the_temporary_file_has_no_name_and_goes_with_its_last_user(both) -> None:
    _, parquet = both

    def temporary() -> list[str]:
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return [
            target for link in links if os.path.lexists(link) and "(deleted)" in (target := os.readlink(link))
        ]

    before, listed = temporary(), set(os.listdir(temporary_folder()))
    with parquet.gathered():
        assert len(temporary()) == len(before) + 1
        parquet.release()  # the evaluation's, in the midst of training
        assert np.array_equal(parquet.array(23), photo(20, 24, 23))
        assert not [name for name in set(os.listdir(temporary_folder())) - listed if name.startswith("byol")]
    assert temporary() == before
    assert np.array_equal(parquet.array(7), photo(20, 24, 7))


def test_only_the_rows_that_are_used_are_written(both) -> None:
    reader = both[1]._source.reader
    with reader.gathered(np.array([1, 9, 22])):
        assert [row for row in range(COUNT) if reader._gathered.read(row) is not None] == [1, 9, 22]
        assert np.array_equal(both[1].array(12), photo(20, 24, 12))


def test_damage_is_told_of_when_a_row_is_read(tmp_path: Path) -> None:
    rows = [encoded(photo(20, 24, seed)) for seed in range(9)]
    rows[1] = None
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), path, row_group_size=3)
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    images = open_images(path)
    with images.gathered():
        for index in range(9):
            if index == 1 or index // 3 == 1:
                with pytest.raises(BadImage, match="holds no bytes" if index == 1 else "cannot be read"):
                    images.picture(index)
            else:
                assert np.array_equal(images.array(index), photo(20, 24, index))


@pytest.mark.parametrize("trouble", ["little room", "a full disk"])
def test_without_room_the_rows_are_read_as_before_and_it_is_said(trouble, both, monkeypatch, caplog) -> None:
    if trouble == "little room":
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    else:

        def full(self: Gathered, count: int, pictures: Any) -> None:
            next(iter(pictures))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Gathered, "__init__", full)
    reader: ParquetReader = both[1]._source.reader
    with both[1].gathered():
        assert reader._gathered is None
        assert np.array_equal(both[1].array(11), photo(20, 24, 11))
    assert "slow" in caplog.text
    assert ("TMPDIR" in caplog.text) == (trouble == "little room")


def test_a_full_disk_leaves_no_file_behind() -> None:
    def pictures() -> Any:
        yield 0, b"abc"
        raise OSError(28, "No space left on device")

    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="No space"):
        Gathered(2, pictures())
    assert len(os.listdir("/proc/self/fd")) == len(before)
