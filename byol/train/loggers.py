"""A run's metrics for other programs: TensorBoard, Weights & Biases, MLflow, trackio.

They get the numbers of metrics.jsonl, which stays the truth: from a thread of their own, so that training
does not wait for a server; one that fails is warned of once and told nothing more.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol
from uuid import uuid4

from byol.disk import read_json, write_text
from byol.errors import ConfigError, complaint
from byol.settings import flat, to_plain
from byol.train.plan import Plan
from byol.train.run_folder import RunFolder

logger = logging.getLogger("byol")
PROJECT = "byol"  # where the library's own variable names no other
PATIENCE = 20.0  # seconds for the last numbers to be taken, when the run has ended
MOST_PARAMS = 100  # that MLflow takes at once


class Logger(Protocol):
    """One run in another program. Whatever these raise is a warning."""

    @property
    def key(self) -> str | None:
        """By which that program finds the run again; None of one that is told all of it again."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Files of events in the run's folder, made anew from all lines each time that a run is taken up."""

    key = None

    def __init__(self, folder: RunFolder, plan: dict[str, Any], key: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.tensorboard), purge_step=0)  # hides what was written before
        rows = "".join(f"| {name} | {value} |\n" for name, value in plan.items())
        self.writer.add_text("plan", f"| | |\n|---|---|\n{rows}", 0)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class WeightsAndBiases:
    def __init__(self, folder: RunFolder, plan: dict[str, Any], key: str | None) -> None:
        import wandb

        self.key = key or uuid4().hex[:16]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=folder.path.resolve().name, id=self.key,
            resume="allow", dir=str(folder.path), config=plan,
            settings=wandb.Settings(console="off"),  # which would take the terminal from the bar
        )  # fmt: skip

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if step >= self.run.step:  # of steps that are done again it has the same numbers
            self.run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    def __init__(self, folder: RunFolder, plan: dict[str, Any], key: str | None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client, name = MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if key is not None:
            self.client.update_run(key, status="RUNNING")
        else:
            known = self.client.get_experiment_by_name(name)
            experiment = self.client.create_experiment(name) if known is None else known.experiment_id
            key = self.client.create_run(experiment, run_name=folder.path.resolve().name).info.run_id
            params = [Param(name, str(value)[:500]) for name, value in plan.items()]
            for first in range(0, len(params), MOST_PARAMS):
                self.client.log_batch(key, params=params[first : first + MOST_PARAMS])
        self.key = key

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, number, now, step) for name, number in numbers.items()]
        self.client.log_batch(self.key, metrics=metrics)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.key, "KILLED" if failed else "FINISHED")


class Trackio:
    def __init__(self, folder: RunFolder, plan: dict[str, Any], key: str | None) -> None:
        import trackio

        self.key = key or f"{folder.path.resolve().name}-{uuid4().hex[:6]}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.run = trackio.init(project, name=self.key, config=plan, resume="allow", embed=False)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self.run.finish()


KINDS: dict[str, Callable[[RunFolder, dict[str, Any], str | None], Logger]] = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError for loggers whose library is missing."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ConfigError(
            f"--log {' '.join(names)} needs {' and '.join(missing)}, which Python does not find here. "
            f"Run: pip install {' '.join(missing)}"
        )


class Loggers:
    """The other programs that a run tells its metrics."""

    def __init__(self, names: Sequence[str], folder: RunFolder, plan: Plan) -> None:
        self.names, self.folder, self.plan = names, folder, plan
        self.open: dict[str, Logger] = {}
        self.queue: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
        self.thread = Thread(target=self._deliver, name="loggers", daemon=True)
        self.failed = False

    def start(self, lines: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Find or make the run in each program; those that have nothing of it are told all lines so far."""
        if not self.names:
            return
        keys: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            keys = dict(read_json(self.folder.loggers))
        plan = flat(to_plain(self.plan))
        for name in dict.fromkeys(self.names):
            try:
                one = self.open[name] = KINDS[name](self.folder, plan, keys.get(name))
                for line in lines() if one.key is None or name not in keys else ():
                    one.write(*told(line))
                keys |= {name: one.key} if one.key is not None else {}
            except Exception as failure:  # of any type: it is no reason to stop a run
                self._leave(name, failure)
        if keys:
            write_text(self.folder.loggers, json.dumps(keys))
        self.thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Tell a line of metrics. Does not wait."""
        self.queue.put(dict(line))

    def close(self, failed: bool) -> None:
        """Tell that the run has ended, and wait a moment until all is told."""
        if not self.thread.is_alive():
            return
        self.failed = failed
        self.queue.put(None)
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            late = f"{' and '.join(self.open)} did not take all metrics within {PATIENCE:.0f} seconds"
            logger.warning("%s. They are all in %s.", late, self.folder.metrics)

    def _deliver(self) -> None:
        while True:
            line = self.queue.get()
            for name, one in list(self.open.items()):
                try:
                    if line is None:
                        one.close(self.failed)
                    else:
                        one.write(*told(line))
                except Exception as failure:
                    self._leave(name, failure)
            if line is None:
                return

    def _leave(self, name: str, failure: Exception) -> None:
        self.open.pop(name, None)
        why = complaint(failure) or type(failure).__name__
        goes_on = f"It gets no more metrics; training goes on, and they are all in {self.folder.metrics}."
        logger.warning("The logger %s has failed (%s). %s", name, why, goes_on)


def told(line: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """A line's step and its other numbers."""
    return line["step"], {
        name: value for name, value in line.items() if name != "step" and not isinstance(value, str)
    }
