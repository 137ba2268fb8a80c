"""What can go wrong while batches are made: images that cannot be read, processes that die."""

import gc
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batching import COUNT, Reports, plan_for, same, streamed
from pictures import encoded, photo

from byol.data.batches import load_resident, resident_batches, substitutes
from byol.data.images import open_images
from byol.data.workers import in_workers, part_done
from byol.errors import ByolError, DataError


@pytest.fixture(scope="module")
def with_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one size; 4 and 11 are not pictures, 17 is cut off."""
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


def squares(task: int) -> tuple[torch.Tensor, str]:
    return torch.full((3, 4), task * task, dtype=torch.float32), f"of {task}"


def started(work: Callable[[int], Any], workers: int, **options: Any) -> tuple[Iterator[Any], list[Any]]:
    """Endless results, two of each worker taken, so that all are up; and their processes, in order."""
    others = multiprocessing.active_children()
    results = in_workers(work, range(10**9), workers=workers, room=48, **options)
    for _ in range(2 * workers):
        next(results)
    own = [worker for worker in multiprocessing.active_children() if worker not in others]
    return results, sorted(own, key=lambda one: int(one.name.rpartition("-")[2]))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_tasks_whoever_makes_them(workers: int, count: int) -> None:
    results = in_workers(squares, range(count), workers=workers, room=48)
    found = [(pixels.clone(), rest) for pixels, rest in results]
    assert [rest for _, rest in found] == [f"of {task}" for task in range(count)]
    assert all(torch.equal(pixels, squares(task)[0]) for task, (pixels, _) in enumerate(found))


def test_datasets_that_draw_draw_other_numbers_in_every_worker_and_again_the_same() -> None:
    def drawn(task: int) -> tuple[torch.Tensor, None]:
        numbers = random.random(), np.random.random(), torch.rand(()).item()
        return torch.tensor(numbers, dtype=torch.float64), None

    first, second = (
        torch.stack([p.clone() for p, _ in in_workers(drawn, range(6), workers=3, room=24)]) for _ in "ab"
    )
    assert all(len(column.unique()) == 6 for column in first.T)
    assert torch.equal(first, second)


def test_results_of_several_shapes_and_none_fit() -> None:
    def work(task: int) -> tuple[torch.Tensor, int]:
        return torch.arange(12, dtype=torch.uint8)[: 4 * task].view(task, 4)[:, ::2], task

    for task, (pixels, _) in enumerate(in_workers(work, range(4), workers=2, room=12)):
        assert torch.equal(pixels, work(task)[0])


def test_no_worker_outlives_the_batches(files: Path) -> None:
    others = multiprocessing.active_children()
    batches = streamed(open_images(files), plan_for(), range(1000), workers=2)
    next(batches)
    workers = [worker for worker in multiprocessing.active_children() if worker not in others]
    assert len(workers) == 2
    del batches
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]
)
def test_a_signal_to_stop_is_left_to_the_run(number: signal.Signals) -> None:
    """A batch system sends it to every process; a worker that obeyed would kill the run before it saves."""
    results, workers = started(squares, 2)
    for worker in workers:
        os.kill(worker.pid, number)
    assert [next(results)[1] for _ in range(50)] == [f"of {task}" for task in range(4, 54)]


def test_a_dead_worker_is_one_sentence() -> None:
    results, workers = started(squares, 2)
    workers[0].kill()
    workers[0].join(10)
    deadline = time.monotonic() + 0.2
    while time.monotonic() < deadline:  # the run is busy with its step: nothing may be raised here
        sum(range(1000))
    told = rf"orker 0 \(pid {workers[0].pid}\) .*SIGKILL.* memory.*--workers"
    with pytest.raises(ByolError, match=told) as caught:
        for _ in results:
            pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 70
    assert not workers[1].is_alive()


def test_a_worker_that_died_is_told_though_a_process_that_it_has_started_lives() -> None:
    """Which has the worker's end of the pipe, as a process that a dataset starts may have."""

    def starting(task: int) -> tuple[torch.Tensor, int]:
        own = os.fork() if task == 0 else 0
        if task == 0 and own == 0:
            time.sleep(60)
            os._exit(0)
        return torch.zeros(1), own

    others = multiprocessing.active_children()
    results = in_workers(starting, range(10**9), workers=1, room=4, patience=20)
    own = next(results)[1]
    (worker,) = (worker for worker in multiprocessing.active_children() if worker not in others)
    try:
        worker.kill()
        with pytest.raises(ByolError, match=r"orker 0 \(pid \d+\) died \(SIGKILL\)"):
            for _ in results:
                pass
    finally:
        os.kill(own, signal.SIGKILL)


def test_a_worker_that_leaves_is_one_sentence() -> None:
    """As a dataset that calls sys.exit makes it."""

    def leaving(task: int) -> tuple[torch.Tensor, int]:
        return (torch.zeros(1), task) if task < 3 else sys.exit(3)

    with pytest.raises(ByolError, match=r"orker 0 \(pid \d+\) died \(exit 3\).*--workers") as caught:
        list(in_workers(leaving, range(9), workers=1, room=4))
    assert caught.value.exit_code == 70
    assert "memory" not in str(caught.value)  # which has nothing to do with it


def test_a_worker_that_stands_still_is_one_sentence() -> None:
    results, workers = started(squares, 2, patience=0.5)
    os.kill(workers[1].pid, signal.SIGSTOP)
    told = rf"orker 1 \(pid {workers[1].pid}\) .*0\.5 seconds.* stopped.*--workers"
    with pytest.raises(ByolError, match=told) as caught:
        for _ in results:
            pass
    assert caught.value.exit_code == 70
    assert not any(worker.is_alive() for worker in workers)


def test_a_slow_worker_whose_images_go_on_is_waited_for() -> None:
    def slow(task: int) -> tuple[torch.Tensor, int]:
        for _ in range(20):
            time.sleep(0.2)
            part_done()
        return torch.zeros(1), task

    assert [said for _, said in in_workers(slow, range(2), workers=2, room=4, patience=2)] == [0, 1]


def test_waiting_for_a_worker_that_stands_still_answers_signals() -> None:
    class StopNow(Exception):
        """What a poll raises once a signal has come."""

    heard: list[int] = []

    def poll() -> None:
        if heard:
            raise StopNow

    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        results, workers = started(squares, 1, poll=poll, patience=20)  # not for ever where it is deaf
        os.kill(workers[0].pid, signal.SIGSTOP)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(StopNow):
            for _ in results:
                pass
    finally:
        signal.signal(signal.SIGALRM, before)


def test_nothing_travels_through_dev_shm_or_open_files() -> None:
    """Containers have 64 MB there, and the handles of a process are few: a run hung when either ran out."""

    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    def shared() -> set[str]:
        """What is mapped of /dev/shm; tqdm keeps a lock there, once torch has exported a graph."""
        return {line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line}

    gc.collect()  # what other tests left open is not counted
    before, shared_before = handles(), shared()
    results, _ = started(squares, 2)
    up = handles()
    kept = [next(results) for _ in range(20)]
    assert handles() == up <= before + 10
    assert shared() == shared_before
    assert len(kept) == 20


def test_workers_that_cannot_be_started_are_one_sentence() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, before[1]))
    try:
        with pytest.raises(ByolError, match=r"Too many open files.*--workers"):
            next(in_workers(squares, range(10), workers=20, room=48))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert multiprocessing.active_children() == []


IN_A_PROGRAM = """
import multiprocessing, os, signal, sys, time
import torch
from byol.data.workers import in_workers

def work(task):
    time.sleep(0 if task < 1 else 600)
    return torch.zeros(3), None

results = in_workers(work, range(100), workers=1, room=12)
next(results)
time.sleep(0.3)
sys.stdout.write(str(multiprocessing.active_children()[0].pid))
sys.stdout.flush()
{ending}
"""


@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "kill -9"])
def test_workers_end_with_their_program_at_once_and_leave_nothing(ending: str, tmp_path: Path) -> None:
    """In the midst of their work: of a task that takes ten minutes."""
    code = IN_A_PROGRAM.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 10
    while Path(f"/proc/{done.stdout}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


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
        list(streamed(images, plan_for(8, channels=5), range(1), workers))
    assert not isinstance(caught.value, ByolError)


class Unpicklable(Exception):
    """Made of two arguments and known by one, as foreign exceptions often are."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


def test_a_fault_that_cannot_travel_still_tells_what_it_was() -> None:
    def work(task: int) -> Any:
        raise Unpicklable("shelf", 7)

    with pytest.raises(RuntimeError, match="Unpicklable: shelf 7"):
        next(in_workers(work, range(3), workers=1, room=48))
