"""Processes that decode images, or read and view other samples, beside the main one.

torch's DataLoader is not used: it hands tensors over through /dev/shm, which containers keep small, and
through open files, which run out; where either fails, or a worker stands still, it waits for ever, deaf to
signals.
"""

import atexit
import copy
import ctypes
import multiprocessing
import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from itertools import count, islice
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from byol.errors import ByolError

Task = TypeVar("Task")
Made = tuple[Tensor, Any]  # pixels, and what there is to say of them: small, and fit to be pickled
# Sent to every process of a run by terminals and batch systems; the run alone answers, and ends its workers.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
WAIT = 0.1  # seconds between looks at signals and at the worker that is waited for
PATIENCE = 300.0  # seconds that a worker may take for a task, or for a part of one, as `part_done` says
_PR_SET_PDEATHSIG = 1
_life: mmap | None = None  # of the worker that this process is


Poll = Callable[[], object]  # called while one waits or works for long; it may raise, to stop
Progress = Callable[[int, int], object]  # is told how many of how many are done


def never() -> None:
    """The default of `poll`: do nothing."""


def part_done() -> None:
    """Called by `work` when a part of its task is done, such as one image: its patience begins anew."""
    if _life is not None:
        _life[0] = (_life[0] + 1) % 256


def in_workers(
    work: Callable[[Task], Made],
    tasks: Iterable[Task],
    *,
    workers: int,
    room: int,
    ahead: int = 2,
    poll: Callable[[], object] = never,
    patience: float = PATIENCE,
) -> Generator[Made]:
    """Call `work` on every task, in forked processes or with 0 workers in this one. Results come in order.

    The pixels take at most `room` bytes and are the caller's until the next are requested; a worker has room
    for `ahead` results. `poll` is called while a worker is waited for, and may raise. An exception of `work`
    is raised here as it is; a worker that died, or takes longer than `patience` seconds, is one sentence,
    which names it.
    """
    if workers == 0:
        yield from map(work, tasks)
        return
    team: list[_Worker] = []
    end = atexit.register(partial(_end, team))  # before Python's own exit, which would wait for them
    try:
        team.extend(_Worker(work, number, room, ahead) for number in range(workers))
        places = [(worker, slot) for slot in range(ahead) for worker in team]
        waiting, sent = iter(tasks), 0
        for done in count():
            for task in islice(waiting, done + len(places) - sent):
                worker, slot = places[sent % len(places)]
                with suppress(OSError):  # of a dead worker, of which `take` tells
                    worker.connection.send((slot, task))
                sent += 1
            if done == sent:
                return
            worker, slot = places[done % len(places)]
            yield worker.take(slot, poll, patience)
    finally:
        _end(team)  # now: left to the garbage collector it can take as long as a traceback lives
        atexit.unregister(end)


class _Worker:
    """One process, and memory shared with it for each of the results that it may have ready.

    The memory is anonymous: not in /dev/shm, whatever its size, and gone with the last process that knows it.
    """

    def __init__(self, work: Callable[[Any], Made], number: int, room: int, ahead: int) -> None:
        self.number = number
        self.life = mmap(-1, 1)  # changes whenever a part of a task is done
        self.slots = [torch.frombuffer(mmap(-1, room), dtype=torch.uint8) for _ in range(ahead)]
        fork = multiprocessing.get_context("fork")
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # what is forked inherits it
        try:
            self.connection, tasks = fork.Pipe()
            self.process = fork.Process(
                target=self.serve, args=(work, number, tasks, os.getpid()), daemon=True
            )
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # forks in threads
                self.process.start()
            tasks.close()
        except OSError as failure:
            raise ByolError(
                f"A worker process cannot be started ({failure.strerror}). Lower --workers (0 works in the "
                "main process), or raise the limit (ulimit -n, ulimit -u)."
            ) from failure
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)

    def take(self, slot: int, poll: Callable[[], object], patience: float) -> Made:
        """The worker's next result, which lies in a slot."""
        how = f"has made nothing for {patience:g} seconds: it is stopped, or its files do not answer"
        seen, looks = self.life[0], 0
        while looks < max(1, round(patience / WAIT)):  # not by the clock: a run may be stopped and go on
            poll()
            seen, looks = self.life[0], looks + 1 if self.life[0] == seen else 0
            ready = self.connection.poll(WAIT)
            if not ready and self.process.is_alive():
                continue
            try:
                reply = self.connection.recv() if ready else None
            except (EOFError, OSError):
                reply = None
            if reply is None:
                self.process.join(1)
                code = self.process.exitcode or 0
                ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
                memory, itself = "the usual cause is too little memory", "its data or a library have ended it"
                how = f"died ({ended}): {memory if ended == 'SIGKILL' else itself}"
                break
            if isinstance(reply, Exception):
                raise reply
            shape, dtype, rest = reply
            return self.slots[slot][: shape.numel() * dtype.itemsize].view(dtype).view(shape), rest
        raise ByolError(
            f"Worker {self.number} (pid {self.process.pid}) {how}. Lower --workers (0 works in the main "
            "process); the same command continues the run."
        )

    def serve(self, work: Callable[[Any], Made], number: int, tasks: Connection, parent: int) -> None:
        """What the process does until the main process ends, however that happens."""
        self.connection.close()  # else the end of the main process would not close it
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        torch.set_num_threads(1)
        global _life
        _life = self.life
        for seed in (random.seed, np.random.seed, torch.manual_seed):  # datasets may draw: not all the same
            seed(number)
        while os.getppid() == parent:
            try:
                slot, task = tasks.recv()
            except (EOFError, OSError):
                return
            try:
                pixels, rest = work(task)
                data = pixels.contiguous().flatten().view(torch.uint8)
                self.slots[slot][: len(data)] = data
                tasks.send((pixels.shape, pixels.dtype, rest))
            except Exception as failure:
                failure.add_note(f"In a worker process:\n{traceback.format_exc()}")
                try:
                    copy.copy(failure)  # made again of its arguments, as the main process has to
                    tasks.send(failure)
                except Exception:
                    tasks.send(RuntimeError("".join(traceback.format_exception(failure))))


def _end(team: list[_Worker]) -> None:
    """End the workers for sure: they do not hear the SIGTERM that Python ends processes with."""
    for worker in team:
        worker.process.kill()
    for worker in team:
        worker.process.join()
        worker.connection.close()
    team.clear()
