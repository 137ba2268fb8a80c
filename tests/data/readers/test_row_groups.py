"""Parquet trained on where it lies: row groups are read once an epoch, a few at a time, and never copied."""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from batching import plan_for, same, streamed
from pictures import encoded, photo

from byol.data.images import Images, open_images
from byol.data.readers import parquet

COUNT, GROUP = 60, 4


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Images, Images]:
    """The same pictures, as files and as rows of two parquet files, of which four row groups are kept."""
    data = [encoded(photo(20, 24, seed)) for seed in range(COUNT)]
    for folder in ("files", "rows"):
        (tmp_path / folder).mkdir()
    for number, picture in enumerate(data):
        (tmp_path / "files" / f"{number:02}.png").write_bytes(picture)
    for part, rows in enumerate((data[:30], data[30:])):
        table = pa.table({"image": pa.array(rows, pa.binary())})
        pq.write_table(table, tmp_path / "rows" / f"{part}.parquet", row_group_size=GROUP)
    largest = max(group.size for group in parquet.ParquetReader([*(tmp_path / "rows").iterdir()]).groups)
    monkeypatch.setattr(parquet, "HELD", 5 * largest - 1)
    return open_images(tmp_path / "files"), open_images(tmp_path / "rows")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Path, int]]:
    """How often each row group is read in this process."""
    counted: Counter[tuple[Path, int]] = Counter()
    read = parquet.ParquetReader._read

    def count(self: Any, path: Path, groups: list[int], *more: Any) -> Any:
        counted.update((path, group) for group in groups)
        return read(self, path, groups, *more)

    monkeypatch.setattr(parquet.ParquetReader, "_read", count)
    return counted


def no_copy(**options: Any) -> None:
    raise AssertionError("pictures are copied to a temporary file")


@pytest.mark.parametrize("workers", [0, 2])
def test_no_row_group_is_read_twice_in_an_epoch_and_they_give_the_crops_of_loose_files(
    workers: int, both: tuple[Images, Images], reads: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", no_copy)
    files, rows = (images.subset(range(1, COUNT)) for images in both)  # one is held out
    plan = plan_for(COUNT - 1, batch_size=COUNT - 1, windows=rows.windows())
    assert rows.reader.together == 4
    batches = list(streamed(rows, plan, range(2), workers))
    if workers == 0:
        assert len(reads) == 16
        assert max(reads.values()) <= 2
    theirs = list(streamed(files, plan_for(COUNT - 1, batch_size=COUNT - 1), range(2)))
    for mine, expected in zip(batches, theirs, strict=True):
        assert sorted(mine.indices.tolist()) == [*range(COUNT - 1)]
        assert torch.equal(mine.crops[mine.indices.argsort()], expected.crops[expected.indices.argsort()])
    assert batches[0].indices.tolist() != batches[1].indices.tolist()


def test_a_resumed_run_by_other_workers_goes_on_with_the_same_batches(both: tuple[Images, Images]) -> None:
    rows = both[1]
    plan = plan_for(COUNT, batch_size=7, windows=rows.windows())
    whole = list(streamed(rows, plan, range(12)))
    again = open_images([file.path for file in rows.reader.files])  # of another process
    plan = plan_for(COUNT, batch_size=7, windows=again.windows())
    assert same(list(streamed(again, plan, range(5, 12), workers=2)), whole[5:])


def test_row_groups_of_which_few_fit_are_laid_out_and_any_order_of_rows_is_the_plain_one(
    both: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = both[1]
    assert rows.windows() is not None
    assert rows.subset([9, 1, 30]).windows() is None
    monkeypatch.setattr(parquet, "HELD", max(group.size for group in rows.reader.groups) * 4 - 1)
    assert open_images([file.path for file in rows.reader.files]).windows() is None


def test_images_that_are_more_than_may_be_held_are_trained_on_from_the_file(tmp_path: Path) -> None:
    """200 MB in row groups of 3, of which 32 MB are held: a program of its own, whose memory is measured."""
    noise = np.random.default_rng(0).integers(0, 256, (580, 580, 3), dtype=np.uint8)
    rows = pa.array([encoded(noise, "BMP")] * 198, pa.binary())
    options: dict[str, Any] = {"row_group_size": 3, "compression": "none", "use_dictionary": False}
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", **options)
    assert (tmp_path / "a.parquet").stat().st_size > 199e6
    script = """
import sys, tempfile
from pathlib import Path
import torch
from byol.data.batches import BatchPlan, streamed_batches
from byol.data.images import open_images
from byol.data.readers import parquet
from byol.method.views import Views

parquet.HELD = 2**25
tempfile.TemporaryFile = None
images = open_images(sys.argv[1])
plan = BatchPlan(0, len(images), 33, 1, Views(16), windows=images.windows())
found = streamed_batches(images, plan, device=torch.device("cpu"), workers=0, steps=range(6), report=print)
next(found)
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak of importing torch is forgotten
before = peak()
assert len(list(found)) == 5
print(peak() - before)
"""
    words = [sys.executable, "-c", script, str(tmp_path / "a.parquet")]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=280)
    assert int(done.stdout) < 60
