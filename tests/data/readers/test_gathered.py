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
from full_disk import largest_file
from pictures import encoded, gathered, photo

from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.errors import Stopped

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
    read = pq.ParquetFile.iter_batches

    def count(file: Any, *arguments: Any, row_groups: list[int], **options: Any) -> Any:
        counted.update((str(file.metadata), group) for group in row_groups)
        return read(file, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
    return counted


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shuffled_order_gives_what_a_folder_gives_and_reads_each_row_group_once(
    workers, both, reads
) -> None:
    files, parquet = both
    rows = torch.arange(1, COUNT)
    plan = plan_for(COUNT - 1, batch_size=6)
    expected = list(streamed(files.subset(rows), plan, range(8), workers))
    assert same(list(streamed(parquet.subset(rows), plan, range(8), workers)), expected)
    assert len(reads) == 7
    assert set(reads.values()) == {1}


def temporary() -> list[int]:
    """The sizes of the files without a name that this process holds open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [
        os.stat(link).st_size for link in links if os.path.lexists(link) and "(deleted)" in os.readlink(link)
    ]


def test_the_temporary_file_has_no_name_and_goes_with_its_last_user(both, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    _, parquet = both
    before, listed = temporary(), os.listdir(tmp_path)
    with gathered(parquet):
        assert len(temporary()) == len(before) + 1
        parquet.release()  # the evaluation's, in the midst of training
        assert np.array_equal(parquet.array(23), photo(20, 24, 23))
        assert os.listdir(tmp_path) == listed
    assert temporary() == before
    assert np.array_equal(parquet.array(7), photo(20, 24, 7))


def test_only_the_rows_that_are_used_are_written(both) -> None:
    before, rows = temporary(), [1, 9, 22]
    with gathered(both[1].subset(rows)):
        written = set(temporary()) - set(before)
        assert written == {sum(len(encoded(photo(20, 24, row))) for row in rows)}
        assert np.array_equal(both[1].array(12), photo(20, 24, 12))


def test_laying_rows_out_can_be_stopped_between_two_of_them(both) -> None:
    """A signal that came then was heard when all was written, which for a large set takes minutes."""
    before, calls = temporary(), []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 5:
            raise Stopped("stop", exit_code=75)

    batches = streamed(both[1], plan_for(COUNT, batch_size=6), range(8), poll=poll)
    with pytest.raises(Stopped):
        next(batches)
    assert len(calls) == 5
    assert temporary() == before
    assert np.array_equal(both[1].array(7), photo(20, 24, 7))


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
    with gathered(images):
        for index in range(9):
            if index == 1 or index // 3 == 1:
                with pytest.raises(BadImage, match="holds no bytes" if index == 1 else "cannot be read"):
                    images.picture(index)
            else:
                assert np.array_equal(images.array(index), photo(20, 24, index))


def test_without_room_the_rows_are_read_as_before_and_it_is_said(both, monkeypatch, caplog) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    before = temporary()
    with gathered(both[1]):
        assert temporary() == before
        assert np.array_equal(both[1].array(11), photo(20, 24, 11))
    assert "slow" in caplog.text
    assert "TMPDIR" in caplog.text


def test_a_full_disk_leaves_nothing_behind_and_it_is_said(both, caplog) -> None:
    before = temporary()
    with largest_file(10_000), gathered(both[1]):
        assert sum(temporary()) == sum(before)
        assert np.array_equal(both[1].array(11), photo(20, 24, 11))
    assert temporary() == before
    assert "slow" in caplog.text
