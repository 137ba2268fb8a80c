"""A run's folder: the name of every file in it, its plan, its lock, and what a failure means for it."""

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch

from byol import __version__
from byol.data.images import Images
from byol.data.samples import Samples
from byol.disk import MOST_OF_A_RUN, NOT_OWN, can_be_added_to, from_home, hold, is_held, read_json, write_text
from byol.encoders import encoder
from byol.errors import ByolError, CheckpointError, ConfigError, DiskError, TrainingError, complaint
from byol.evaluation.confusion import CONFUSIONS
from byol.evaluation.score import SCORES, read_scores
from byol.models.build import is_own_code
from byol.settings import differences, to_plain, to_yaml
from byol.train.checkpoint import complete, last_good, of_another_version, sweep
from byol.train.config import TrainConfig
from byol.train.plan import Plan
from byol.world import ALONE, World

FORMAT = 4  # of plan.json
FEW = 10  # settings that are told
# What may differ when a run is continued: where it runs and what it tells, not what it computes.
FREE_TO_CHANGE = (
    "out", "workers", "device", "save_every_steps", "keep_checkpoints", "log_every_steps", "data.max_bad",
    "on_collapse", "log",
)  # fmt: skip


class RunFolder:
    """The paths of a run's files. Those that lower floors know too keep the name they have there."""

    def __init__(self, path: str | Path) -> None:
        self.path = from_home(path)
        self.encoder = self.path / encoder.FILE
        self.plan = self.path / encoder.PLAN
        self.scores = self.path / SCORES
        self.confusions = self.path / CONFUSIONS
        self.config = self.path / "config.yaml"
        self.environment = self.path / "env.json"
        self.metrics = self.path / "metrics.jsonl"
        self.transcript = self.path / "train.log"
        self.verdict = self.path / "verdict.json"
        self.time = self.path / "time.json"
        self.report = self.path / "report.html"
        self.bad_files = self.path / "bad_files.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.loggers = self.path / "loggers.json"
        self.lock = self.path / ".lock"

    @contextmanager
    def held(self, world: World = ALONE) -> Iterator[None]:
        """Make the folder if need be and keep other processes out until this one leaves, or ends somehow.

        Of several processes of a world, rank 0 does. The others hear of a failure at their next meeting.

        Failures in the block tell where the run can be taken up again. Raises CheckpointError when another
        process holds the folder or when it holds something else, ConfigError when it cannot be made.
        """
        if world.rank > 0:
            yield
            return
        with world.telling():
            made, lock = self.taken()
        try:
            lock.truncate(0)
            with suppress(OSError):  # on a full disk the folder is held all the same
                since = time.strftime("%Y-%m-%d %H:%M:%S")
                lock.write(f"process {os.getpid()} on {os.uname().nodename} since {since}".encode())
            yield
        except TrainingError as failure:
            raise type(failure)(f"{failure} {last_good(self.checkpoints)}") from failure
        except DiskError as failure:
            again = f"The same command continues the run. {last_good(self.checkpoints)}"
            raise ByolError(f"{failure} {again}") from failure
        except (RuntimeError, MemoryError) as failure:
            # torch has a type for a GPU's full memory, and a plain RuntimeError for a CPU's.
            known = isinstance(failure, torch.OutOfMemoryError | MemoryError)
            if not known and "can't allocate memory" not in str(failure):
                raise
            full = f"There is not enough memory for this run ({complaint(failure)})"
            lower = "Lower --batch-size or --image-size, or raise --optim.accumulation"
            raise ByolError(f"{full}. {lower}. {last_good(self.checkpoints)}") from failure
        finally:
            if made and [path.name for path in self.path.iterdir()] == [self.lock.name]:  # nothing is in it
                self.lock.unlink()
                for path in made:
                    path.rmdir()
            lock.close()

    def in_use(self) -> bool:
        """Whether a process holds the folder at this moment: the run is running."""
        return is_held(self.lock)

    def taken(self) -> tuple[list[Path], FileIO]:
        """Make the folder and take its lock. Returns the folders that were not there before, and the lock."""
        try:
            made = [path for path in (self.path, *self.path.parents) if not path.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            # A run killed before its plan was written starts again; .DS_Store or .tmp-... are nobody's work.
            others = [path.name for path in self.path.iterdir() if not path.name.startswith(".")]
            if others and not any(path.exists() for path in (self.plan, self.config, self.environment)):
                foreign = f"{self.path} does not hold a run (it has {others[0]!r})"
                raise CheckpointError(f"{foreign}. Choose a new folder with --out.")
            for path in (self.metrics, self.transcript, self.bad_files, self.scores, self.confusions):
                if not can_be_added_to(path):
                    raise OSError(errno.EINVAL, f"its {path.name}: {NOT_OWN}")
            return made, hold(self.lock)
        except BlockingIOError as failure:
            holder = self.lock.read_bytes()[:200].decode(errors="replace") or "another process"
            again = "Wait for it, or choose another --out."
            raise CheckpointError(f"{self.path} is in use by {holder}. {again}") from failure
        except OSError as failure:
            said = f"The run's folder {self.path} cannot be used: {failure.strerror}. Choose another --out."
            raise ConfigError(said) from failure

    def stored_plan(self, config: TrainConfig, source: Images | Samples, world: World) -> Plan | None:
        """The plan of the run to continue; None for a new one, or where other settings have saved no step.

        What dead processes left behind is swept away. Raises CheckpointError where other settings have saved
        steps, and for a plan that is damaged or was edited.
        """
        sweep(self.path, self.checkpoints)
        begun = bool(complete(self.checkpoints))
        if self.encoder.exists() and not begun:
            gone = f"{self.path} holds a finished run whose checkpoints are gone"
            raise CheckpointError(f"{gone}. Choose another --out, or move its {self.encoder.name} away.")
        if not self.plan.exists():
            return None
        try:
            stored = read_json(self.plan, MOST_OF_A_RUN)
            if not isinstance(stored, dict):
                raise ValueError("it is not a plan")
            if stored.pop("blake2b", None) != encoder.digest({}, stored):
                raise ValueError("it does not match its checksum")
            if stored["format"] != FORMAT:
                refused = of_another_version(f"The plan {self.plan}", stored["format"], FORMAT)
                raise refused if begun else ValueError("it is of another version")
            plan = Plan(**stored["plan"])
            changed = differences(stored["config"], to_plain(config))
            changed = [line for line in changed if line.split(":")[0] not in FREE_TO_CHANGE]
            if stored["data"] != source.fingerprint():
                before, now = stored["images"], source.description
                now = "others there" if now == before else now
                changed.append(f"images: {before} ({stored['data']}) -> {now} ({source.fingerprint()})")
        except (ValueError, KeyError, TypeError, AttributeError) as damage:
            if begun:
                found = f"{self.plan} cannot be read ({damage}): edited, damaged, or of another version"
                raise CheckpointError(f"{found}. Restore it, or choose another --out.") from damage
            changed = ["the plan is damaged"]
        if changed and not begun:
            self.plan.unlink()  # nothing was done with it
            self.bad_files.unlink(missing_ok=True)
            return None
        if changed and self.can_go_on(plan, config, changed):
            plan = plan.longer(config)
            self.extend(stored, plan, config)
            changed = []
        if changed:
            more = f"; and {len(changed) - FEW:,} more" if len(changed) > FEW else ""
            told = "; ".join(changed[:FEW]) + more
            other = f"{self.path} holds a run with other settings or other images ({told})"
            more = ""
            if any(line.startswith("epochs: ") for line in changed):
                more = " Epochs alone can be raised when it has finished, by a step or more."
            raise CheckpointError(f"{other}. Repeat them to continue it, or choose another --out.{more}")
        if plan.micro_batch_size % world.size or plan.micro_batch_size < 2 * world.size:
            uneven = f"do not split over {world.size} processes into equal parts of at least 2"
            raise ConfigError(
                f"Micro-batches of {plan.micro_batch_size} images {uneven}. Start a number that divides them."
            )
        if is_own_code(plan.encoder) and plan.encoder != config.encoder:
            code = f"{self.plan} names {plan.encoder!r} as its encoder, but a file alone imports nothing"
            raise CheckpointError(f"{code}. Give it with --encoder, or choose another --out.")
        return replace(
            plan,
            device=str(world.device),
            workers=plan.workers if config.workers is None or plan.in_memory else config.workers,
            log_every_steps=config.log_every_steps,
            save_every_steps=config.save_every_steps or plan.save_every_steps,
        )

    def can_go_on(self, plan: Plan, config: TrainConfig, changed: list[str]) -> bool:
        """Whether the run has finished and only more epochs are requested than it had."""
        only = {line.split(":")[0] for line in changed} <= {"epochs", "budget"}
        last = complete(self.checkpoints)[0].name == f"step-{plan.total_steps:08d}"
        longer = config.epochs is not None and plan.longer(config).total_steps > plan.total_steps
        return only and last and longer and self.encoder.exists()

    def extend(self, stored: dict[str, Any], plan: Plan, config: TrainConfig) -> None:
        """Put a longer plan in the place of a finished run's; its encoder is kept under the step's number."""
        held = encoder.read(self.encoder)
        checksum = encoder.digest(held.tensors, {"format": encoder.FORMAT, **asdict(held.info)})
        if self.scores.exists():  # they are those of the encoder that is kept
            scores = [
                replace(s, encoder_checksum=s.encoder_checksum or checksum) for s in read_scores(self.scores)
            ]
            write_text(self.scores, "".join(json.dumps(asdict(score)) + "\n" for score in scores))
        self.encoder.rename(self.path / f"encoder-{plan.extended_at:08d}.safetensors")
        write_text(self.config, to_yaml(config))
        stored |= {
            "plan": to_plain(plan),
            "config": to_plain(config),
            "run": stored.get("run") or self.checksum(),
        }
        write_text(self.plan, json.dumps({**stored, "blake2b": encoder.digest({}, stored)}, indent=1))

    def checksum(self) -> str:
        """Of the plan that the run began with: what its checkpoints belong to."""
        stored = read_json(self.plan)
        checksum: str = stored.get("run") or stored["blake2b"]
        return checksum

    def record(self, plan: Plan, config: TrainConfig, source: Images | Samples, world: World) -> str:
        """Write config.yaml, env.json and plan.json of a new run. Returns `checksum()`."""
        if not self.plan.exists():
            versions = {"byol": __version__, "torch": torch.__version__, "python": platform.python_version()}
            environment = {**versions, "hardware": world.describe(), "threads": torch.get_num_threads()}
            environment["images"] = source.reader.where
            environment["processes"] = world.size
            images = {"data": source.fingerprint(), "images": source.description}
            stored = {"format": FORMAT, "plan": to_plain(plan), "config": to_plain(config), **images}
            write_text(self.config, to_yaml(config))
            write_text(self.environment, json.dumps(environment, indent=1))
            # Last: a folder with a plan is a run.
            write_text(self.plan, json.dumps({**stored, "blake2b": encoder.digest({}, stored)}, indent=1))
        return self.checksum()
