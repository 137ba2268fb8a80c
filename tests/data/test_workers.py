"""What can go wrong while batches are made: images that cannot be read, processes that die."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batching import COUNT, CPU, Reports, plan_for, same, streamed
from pictures import encoded, photo

from byol.data.batches import load_resident, resident_batches, streamed_batches, substitutes
from byol.data.images import open_images
from byol.errors import ByolError, DataError


@pytest.fixture(scope="module")
def with_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one size; 4 and 11 are no pictures, 17 is cut off."""
    root = tmp_path_factory.mktemp("with_bad")
    for index in range(COUNT):
        (root / f"{index:02}.png").write_bytes(encoded(photo(24, 36, index)))
    (root / "04.png").write_bytes(b"")
    (root / "11.png").write_bytes(b"<html>404</html>")
    (root / "17.png").write_bytes((root / "17.png").read_bytes()[:200])
    return root


def test_bad_images_are_replaced_and_reported_the_same_with_any_workers(with_bad: Path) -> None:
    images, plan = open_images(with_bad), plan_for()
    outcomes = []
    for workers in (0, 1, 2):
        reports = Reports()
        outcomes.append((list(streamed(images, plan, range(5), workers, reports)), reports))
    (alone, told), *others = outcomes
    assert {index for index, _ in told} == {4, 11, 17}
    assert {(index, reason) for index, reason in told if index != 17} == {
        (4, "the file is empty"),
        (11, "it is a web page or XML, not a picture"),
    }
    for batches, reports in others:
        assert same(batches, alone)
        assert reports == told


def test_both_routes_replace_a_bad_image_by_the_same_other(with_bad: Path) -> None:
    reports, images, plan = Reports(), open_images(with_bad), plan_for()
    resident = load_resident(images, reports)
    assert [index for index, _ in reports] == [4, 11, 17]
    for theirs, ours in zip(streamed(images, plan, range(5)), resident_batches(resident, plan), strict=False):
        assert (ours.crops * 255 - theirs.crops.float()).abs().mean() < 0.5
    for index in (4, 11, 17):
        other = next(i for i in substitutes(index, COUNT) if i not in (4, 11, 17))
        assert np.array_equal(resident[index].permute(1, 2, 0).numpy(), photo(24, 36, other))
    assert len({next(iter(substitutes(index, 10**6))) for index in range(100)}) == 100  # not all the same one


def test_substitutes_try_every_other_image() -> None:
    for count in (1, 2, 7, 100):
        assert set(substitutes(0, count)) | {0} == set(range(count))
        assert list(substitutes(count - 1, count)) == list(substitutes(count - 1, count))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_at_all_is_one_sentence(workers: int, tmp_path: Path) -> None:
    paths = [tmp_path / "1.png", tmp_path / "2.png"]
    for path in paths:
        path.write_bytes(encoded(photo()))
    images, reports = open_images(tmp_path), Reports()
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="None of the 2 images can be read"):
        next(streamed(images, plan_for(2), range(1), workers, reports))
    assert {index for index, _ in reports} == {0, 1}
    with pytest.raises(DataError, match="None of the 2 images can be read"):
        load_resident(images, Reports())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_report_may_stop_the_run(workers: int, with_bad: Path) -> None:
    def stop(index: int, reason: str) -> None:
        raise DataError(f"image {index} is too many")

    with pytest.raises(DataError, match=r"image \d+ is too many"):
        list(streamed(open_images(with_bad), plan_for(), range(3), workers, stop))


# Workers


def test_no_worker_outlives_the_batches(files: Path) -> None:
    others = multiprocessing.active_children()
    batches = streamed(open_images(files), plan_for(), range(1000), workers=2)
    next(batches)
    workers = [worker for worker in multiprocessing.active_children() if worker not in others]
    assert len(workers) == 2
    del batches
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_stop_is_left_to_the_run(number: signal.Signals, files: Path) -> None:
    """A terminal or a batch system sends it to every process; a worker that obeyed would kill the run before it has saved."""
    images, plan = open_images(files), plan_for()
    batches = streamed(images, plan, range(40), workers=2)
    seen = [next(batches), next(batches)]  # one from each worker: both are up
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, number)
    seen += list(batches)
    assert same(seen, list(streamed(images, plan, range(40))))


@pytest.mark.slow
def test_a_dead_worker_is_one_sentence(files: Path) -> None:
    others = multiprocessing.active_children()
    batches = streamed(open_images(files), plan_for(), range(10_000), workers=2)
    assert len([next(batches), next(batches)]) == 2  # one from each worker: both are up
    victim = next(worker for worker in multiprocessing.active_children() if worker not in others)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:  # the run is busy with its step: nothing may be raised here
        sum(range(1000))
    with pytest.raises(ByolError, match=r"A process that decodes images died .* Lower --workers") as caught:
        for _ in batches:
            pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 70


LEFT_OPEN = """
import sys
import numpy as np
from byol.data.workers import arriving, loader

class Slow:
    def __len__(self): return 100
    def __getitem__(self, index): return np.zeros(3)

batches = arriving(loader(Slow(), workers=1))
next(batches)
sys.stdout.write(str(__import__("multiprocessing").active_children()[0].pid))
sys.stdout.flush()
{ending}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending", ["", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "kill -9"]
)
def test_no_worker_outlives_a_program_that_left_its_batches_open(ending: str) -> None:
    code = LEFT_OPEN.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    deadline = time.monotonic() + 30
    while Path(f"/proc/{done.stdout}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Broken:
    """A sequence with a fault of its own, which is not a dead worker and not a bad image."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_the_code_keeps_its_own_name(workers: int) -> None:
    images = open_images(Broken())
    with pytest.raises(RuntimeError) as caught:  # crops of 3 channels do not fit a tensor of 5
        list(
            streamed_batches(
                images, plan_for(8), channels=5, device=CPU, workers=workers, steps=range(1), report=Reports()
            )
        )
    assert not isinstance(caught.value, ByolError)
