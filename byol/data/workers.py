"""Processes that decode images beside the main one."""

import atexit
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from byol.errors import ByolError

T = TypeVar("T")
# A terminal or a batch system sends them to every process of a run; the run alone answers them, and then ends its workers.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@contextmanager
def as_many_as_asked() -> Iterator[None]:
    """No warning of torch's about more workers than cores: that is the user's choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


def loader(dataset: Dataset[T], *, workers: int, **options: Any) -> "DataLoader[T]":
    """torch's DataLoader with `workers` forked processes; with 0 the work is done in this process."""
    if workers and "fork" in torch.multiprocessing.get_all_start_methods():  # everywhere but on Windows
        options["multiprocessing_context"] = "fork"
    with as_many_as_asked():
        return DataLoader(dataset, num_workers=workers, **options)


def arriving(samples: "DataLoader[T]") -> Iterator[T]:
    """What a loader gives; a worker that died becomes one sentence instead of torch's many kinds of error."""
    iterator = _started(samples)
    workers = iterator._workers if samples.num_workers else []
    at_exit = atexit.register(partial(_kill, workers))  # before Python's own exit, which waits for them
    try:
        while True:
            try:
                sample = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as failure:
                if samples.num_workers == 0 or str(failure).startswith("Caught "):
                    raise  # nobody died: an error of the code that reads the images, perhaps in a worker
                raise ByolError(
                    f"A process that decodes images died ({str(failure).splitlines()[0]}). Usual causes: too little memory "
                    "or too small a /dev/shm. Lower --workers (0 decodes in the main process); the same command continues "
                    "the run."
                ) from failure
            yield sample
    finally:
        if (
            workers
        ):  # now: left to the garbage collector it can take seconds, or wait as long as a traceback lives
            iterator._shutdown_workers()
            _kill(workers)
        atexit.unregister(at_exit)


def _started(samples: "DataLoader[T]") -> Any:
    """Start the workers, deaf to the signals that stop a run, and without the signal handler that torch adds.

    That handler would raise a worker's death in the midst of whatever the run is doing; without it, `next` finds out within
    seconds. A worker whose run was killed outright notices within seconds too, and ends.
    """
    in_main = samples.num_workers > 0 and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if in_main else None
    heard = signal.pthread_sigmask(
        signal.SIG_BLOCK, STOP_SIGNALS if samples.num_workers else ()
    )  # what is forked inherits it
    try:
        with as_many_as_asked():
            iterator = iter(samples)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    if in_main:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    return iterator


def _kill(workers: Iterable[Any]) -> None:
    """End the workers for sure: they do not hear the SIGTERM that torch and Python end processes with."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
            worker.join()
