"""The processes and devices of a run. One process on one device is a world of one."""

import logging
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import distributed

from byol.errors import ByolError, ConfigError, ProcessLost, TrainingError
from byol.machine import available_memory, bf16_pays, settle

DRIVER = Path("/proc/driver/nvidia/version")  # where there is an NVIDIA card
logger = logging.getLogger("byol")
Precision = Literal["bf16", "fp32"]
T = TypeVar("T")
MINUTES = 10  # that a process waits for the others within the first step; rank 0 at later meetings
STILL = 60.0  # seconds that it waits within a later step, unless steps are slow
NOTICE = 2.0  # seconds in which all that wait for a process notice that it does not come
LOST = ("gloo", "NCCL", "onnection closed", "onnection reset")  # in what torch says of a process that ended


@dataclass(frozen=True)
class World:
    """Where this process stands: its rank among `size` processes and the device it works on.

    As a context manager it leaves the other processes at the end.
    """

    rank: int
    size: int
    device: torch.device
    meetings: Any = None  # the group that several processes agree in, beside that of gradients and statistics
    store: Any = None  # what each leaves there the others can read without waiting
    done: Counter[str] = field(default_factory=Counter, compare=False)  # "meetings" and, of a run, "steps"

    @classmethod
    def join(
        cls,
        device: str | None = None,
        *,
        alone: bool = False,
        hours: float = 168,
        check: Callable[[], None] = lambda: None,
    ) -> "World":
        """Take a place among the processes that torchrun started; without torchrun that is a world of one.

        `device` None picks the best there is; of several GPUs each process takes its own. At a meeting a
        process waits at most so many `hours` for the slowest, within a step some minutes. Until all are there
        it answers signals and calls `check`, which may raise. Raises ConfigError for a device that is not
        there, when the processes cannot find each other, and with `alone` when there are several: each would
        do all the work.
        """
        size = process_count()
        if alone:
            check_alone()
        chosen = pick_device(device)
        if chosen.type == "cpu":
            settle()
        if size == 1:
            return cls(0, 1, chosen)
        from torch.distributed.rendezvous import rendezvous

        if chosen.type == "cuda" and chosen.index is None:
            chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        gpus = chosen.type == "cuda" and distributed.is_nccl_available()
        if gpus:
            torch.cuda.set_device(chosen)  # NCCL's calls go to the current one
        try:
            store, rank, size = meanwhile(lambda: next(rendezvous("env://")), check)
        except (ValueError, RuntimeError) as failure:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but the processes could not connect to one another: {failure}. "
                "Start them by torchrun."
            ) from failure

        def meet() -> tuple[Any, Any]:
            if gpus:
                torch.cuda.set_device(chosen)  # of this thread
            # torchrun's store outlives a restart, with the addresses of the processes that have ended.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            shared = distributed.PrefixStore(attempt, store)  # type: ignore[attr-defined]
            shared.set(f"where {rank}", f"pid {os.getpid()} on {platform.node()}")
            shared.set(f"met {rank}", "0")
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=shared, rank=rank, world_size=size, timeout=timedelta(minutes=MINUTES),
            )  # fmt: skip
            return shared, distributed.new_group(backend="gloo", timeout=timedelta(hours=hours))

        try:
            store, meetings = meanwhile(meet, check)
        except RuntimeError as failure:
            raise ProcessLost(f"One of the {size} processes has ended while they met: {failure}") from failure
        return cls(rank, size, chosen, meetings, store)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: object, failure: object, traceback: object) -> None:
        # Else the others hear of it by the end of this process, when it has told why.
        if self.size > 1 and (failure is None or getattr(failure, "shared", False)):
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here. Raises ProcessLost when one of them has ended."""
        self.meet()

    def meet(self, failure: Exception | None = None, news: Sequence[Any] = ()) -> list[Any]:
        """Wait for all processes and return everyone's news. What one has failed with is raised on all.

        The processes call it equally often. Raises ProcessLost when one of them has ended.
        """
        if self.size == 1:
            if failure is not None:
                raise failure
            return [*news]
        said: list[Any] = [None] * self.size
        self.done["meetings"] += 1
        try:
            self.store.set(f"met {self.rank}", str(self.done["meetings"]))
            some = torch.tensor([failure is not None or len(news) > 0], dtype=torch.int32)
            distributed.all_reduce(some, distributed.ReduceOp.MAX, group=self.meetings)
            if not some:
                return []
            distributed.all_gather_object(said, (_told(failure, self.rank), [*news]), group=self.meetings)
        except RuntimeError as lost:
            raise failure or self._lost() from lost
        for rank, (told, _) in enumerate(said):
            if told is not None:
                if failure is not None and (rank == self.rank or not isinstance(failure, ByolError)):
                    raise _shared(failure)
                kind, message, more = told
                copy: ByolError = kind.__new__(kind, message)
                copy.__dict__.update(more)
                raise _shared(copy)
        return [one for _, some_news in said for one in some_news]

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Run something on this process alone. The others get its exception at their next `meet`."""
        try:
            yield
        except Exception as failure:
            if self.size == 1 or getattr(failure, "shared", False):
                raise
            self.meet(failure)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Run something on all processes and wait for all. An exception on one is raised on every one."""
        with self.telling():
            yield
        self.meet()

    def first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and give its result to every process. An exception is raised on all."""
        found: list[Any] = [None]
        with self.agreeing():
            if self.rank == 0:
                found = [work()]
        if self.size > 1:
            distributed.broadcast_object_list(found, src=0, group=self.meetings)
        return cast(T, found[0])

    def gather(self, item: T) -> list[T]:
        """Every process's item, in their order, on rank 0, which waits for them; the others get none."""
        if self.size == 1:
            return [item]
        self.meet()
        items: list[Any] = [None] * self.size
        try:
            distributed.gather_object(item, items if self.rank == 0 else None, group=self.meetings)
        except RuntimeError as lost:
            raise self._lost() from lost
        return items if self.rank == 0 else []

    @contextmanager
    def with_one_voice(self) -> Iterator[None]:
        """Around a run: rank 0 warns, and tells of a failure that all share, with which they end together.

        What torch says when a process has ended becomes a ProcessLost, which every other process tells.
        """
        if self.size == 1:
            yield
            return
        level = logger.level
        logger.setLevel(level if self.rank == 0 else logging.ERROR)
        try:
            yield
        except ByolError as failure:
            # A loss or gradient that is not finite is so on all: it is the mean of theirs.
            failure.shared = failure.shared or isinstance(failure, TrainingError)
            if failure.shared:
                with suppress(ProcessLost):  # torchrun ends the others as soon as one has ended
                    self.meet()
            raise
        except RuntimeError as failure:
            if any(word in str(failure) for word in LOST):
                raise self._lost() from failure
            raise
        finally:
            logger.setLevel(level)

    def expect(self, seconds: float) -> None:
        """Shorten the timeouts, now that a micro-batch is known to take so many seconds.

        Rank 0 waits less at meetings too; the others do not, as it may be scoring or saving.
        """
        set_timeout = (
            getattr(distributed, "set_timeout", None) or distributed.distributed_c10d._set_pg_timeout
        )
        set_timeout(timedelta(seconds=max(STILL, 10 * seconds)))
        if self.rank == 0:
            set_timeout(timedelta(seconds=max(60 * MINUTES, 10 * seconds)), self.meetings)

    def _lost(self) -> ProcessLost:
        """Names those that have not come as far as this process, or not noticed what all that wait notice."""
        names = list[str]()
        with suppress(RuntimeError):  # without torchrun the store ends with rank 0
            self.store.set(f"noticed {self.rank}", "")
            time.sleep(NOTICE)
            others = [rank for rank in range(self.size) if rank != self.rank]
            met = {rank: int(self.store.get(f"met {rank}")) for rank in others}
            behind = [rank for rank in others if met[rank] < self.done["meetings"]]
            silent = [rank for rank in others if not self.store.check([f"noticed {rank}"])]
            names = [f"{rank} ({self.store.get(f'where {rank}').decode()})" for rank in behind or silent]
        which = f"Process {' and process '.join(names)}" if names else "Another"
        when = f" after step {self.done['steps']:,}" if "steps" in self.done else ""
        return ProcessLost(
            f"{which} of the {self.size} processes has ended or stands still{when}; "
            "what it said is the reason."
        )

    def default_precision(self) -> Precision:
        """bf16 where a GPU has it, or a CPU multiplies it clearly faster than fp32; else fp32."""
        if self.device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(self.device)[0] >= 8 else "fp32"
        return "bf16" if self.device.type == "cpu" and bf16_pays() else "fp32"

    def free_memory(self) -> int:
        """Bytes that are free on the device now."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return available_memory() // self.processes_here()

    def processes_here(self) -> int:
        """Processes of this world on this machine, this one included."""
        words = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return max(1, int(words)) if self.size > 1 and words.isdecimal() else 1

    def describe(self) -> str:
        """The hardware in words, for people and logs."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        name, threads = torch.cpu.get_capabilities().get("cpu_name", "CPU"), torch.get_num_threads()
        return f"{name.strip()}, {threads} thread{'s' * (threads > 1)}"


ALONE = World(0, 1, torch.device("cpu"))


def _told(failure: Exception | None, rank: int) -> tuple[type[ByolError], str, dict[str, Any]] | None:
    """A failure as it travels: its type, message and attributes. One that was not foreseen gets its name."""
    if failure is None:
        return None
    if not isinstance(failure, ByolError):
        return ByolError, f"Process {rank} has failed ({type(failure).__name__}: {failure}).", {}
    kind = ByolError if isinstance(failure, OSError) else type(failure)
    return kind, str(failure), {"exit_code": failure.exit_code, **vars(failure)}


def _shared(failure: Exception) -> Exception:
    failure.__dict__["shared"] = True
    return failure


def meanwhile(call: Callable[[], T], check: Callable[[], None]) -> T:
    """What a call gives that waits in torch, where Python handles no signal: they are handled meanwhile."""
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as failure:
            failed.append(failure)

    thread = threading.Thread(target=work, daemon=True)  # which does not hold up the end of the process
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.1)
        check()
    if failed:
        raise failed[0]
    return found[0]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bf16 arithmetic for convolutions and products; weights, loss and EMA stay float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def process_count() -> int:
    """How many processes torchrun has started; one without it. Raises ConfigError where that is no number."""
    words = os.environ.get("WORLD_SIZE", "1")
    if not words.isdecimal() or int(words) < 1:
        raise ConfigError(f"WORLD_SIZE is {words!r}; expected the number of processes. Unset it to use one.")
    return int(words)


def check_alone() -> None:
    """Raise ConfigError, which one of them tells, where there are several processes: each would do it all."""
    if (size := process_count()) > 1:
        failure = ConfigError(
            f"WORLD_SIZE is {size}, but this works in one process. Start it without torchrun."
        )
        failure.shared = True  # told once
        raise failure


def pick_device(device: str | None) -> torch.device:
    """The device a name means; None is the GPU when torch can use one, else the CPU."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        if DRIVER.exists():
            logger.warning(
                "This machine has an NVIDIA driver, but torch cannot use it (too old for torch %s?): "
                "running on the CPU.",
                torch.__version__,
            )
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        there = chosen.type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError, NotImplementedError):  # torch raises any of them
        there = False
    if not there:
        raise ConfigError(
            f"device is {device!r}, which torch {torch.__version__} does not find here. Expected cpu, cuda, "
            "cuda:N (counted from 0) or mps; leave it out to use the best there is."
        )
    return chosen
