"""Checkpoints that survive a kill at any instant, and hold nothing that could be executed.

A checkpoint is a folder `step-00001234` with `state.safetensors` (every tensor) and `manifest.json` (step,
checksum of the plan, BLAKE2b of the tensors' file and of the manifest itself). It is filled in a temporary
folder beside its final place and fsynced, then renamed: a name `step-...` is complete or does not exist.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from byol.disk import filling, left_behind, read_json, read_safetensors, writing
from byol.encoders.encoder import digest, unshared
from byol.errors import CheckpointError, DiskError, TrainingError, complaint
from byol.train.config import TrainConfig
from byol.world import ALONE, World

logger = logging.getLogger("byol")
FORMAT = 3
TENSORS, MANIFEST = "state.safetensors", "manifest.json"
SECONDS = 300.0  # without a checkpoint, after which one is written: as much is lost at most
SHARE = 0.02  # of a run's time that checkpoints by default may take, half of what a budget sets aside


@dataclass
class Saver:
    """Writes and reads the checkpoints of what is trained. A run computes the same whenever it is saved."""

    folder: Path
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    plan: str  # its checksum
    config: TrainConfig
    world: World = ALONE
    spent: float = 0.0  # seconds
    started: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    def due(self, step: int, every: int) -> bool:
        """Whether to save after a step: by number, unless that costs too much time, and by the clock."""
        now, requested = time.monotonic(), self.config.save_every_steps is not None
        cheap = requested or self.spent <= SHARE * (now - self.started)
        return (step % every == 0 and cheap) or now - self.saved_at >= SECONDS

    def restore(self) -> int:
        """Load the newest good checkpoint, if there is one. Returns the steps already done.

        Rank 0 reads it for all processes.
        """
        found = self.world.first(self.newest)
        if found is None:
            return 0
        step, tensors = found
        moments = {name: tensors.pop(name) for name in list(tensors) if name.startswith("optimizer.")}
        try:
            self.trained.load_state_dict(tensors)
            restore_optimizer(self.optimizer, moments)
        except (RuntimeError, ValueError, KeyError) as failure:
            other = f"step {step} in {self.folder} is of another network ({complaint(failure)})"
            raise CheckpointError(f"The checkpoint of {other}. Give its own, or another --out.") from failure
        return step

    def newest(self) -> tuple[int, dict[str, Tensor]] | None:
        """What `latest` gives. Damaged ones lose their name: they would count among those that are kept."""
        found = latest(self.folder, self.plan)
        if found is not None:
            set_aside(self.folder, found[0])
        return found

    def check_room(self) -> None:
        """Warn, before any work, of a disk that has no room for the checkpoints: one more than are kept."""
        learned = {f"optimizer.{name}": value for name, value in self.trained.named_parameters()}
        size = _size(self.trained.state_dict() | learned)  # an optimizer's memory is as large at least
        count, free = self.config.keep_checkpoints + 1, shutil.disk_usage(self.folder.parent).free
        if free < count * size:
            logger.warning(
                "A checkpoint takes %s, and %d of them at a time more than the %s that are free beside %s. "
                "Make room, or choose another --out.", _megabytes(size), count, _megabytes(free), self.folder,
            )  # fmt: skip

    def save(self, step: int) -> bool:
        """Write a checkpoint and return whether that worked: a full disk costs the checkpoint, not the run.

        Raises TrainingError for a state that is not finite.
        """
        moments = optimizer_tensors(self.optimizer)
        tensors = self.trained.state_dict() | moments
        # Statistics of BatchNorm stay infinite for ever; another buffer may be so on purpose.
        statistics = (name for name in tensors if name.endswith(("running_mean", "running_var")))
        learned = [*dict(self.trained.named_parameters()), *moments, *statistics]
        damaged = [name for name in learned if not tensors[name].isfinite().all()]
        if damaged:  # of a finite loss whose gradient was not: the next loss would tell, but after this save
            names = ", ".join(damaged[:3])
            raise TrainingError(f"After step {step} the state is not finite ({names}), so it was not saved.")
        before = time.monotonic()
        try:
            save(self.folder, step, tensors, self.plan, self.config.keep_checkpoints, self.world.size)
        except DiskError as failure:
            lost = f"The checkpoint of step {step} ({_megabytes(_size(tensors))}) is lost"
            logger.warning("%s, training goes on: %s", lost, failure)
            return False
        finally:
            self.saved_at = time.monotonic()
            self.spent += self.saved_at - before
        return True


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensor], plan: str, keep: int = 2, processes: int = 1
) -> Path:
    """Write a checkpoint of a step and retire all but the newest `keep`. Raises DiskError if it cannot.

    `plan` is the checksum of the plan that the run follows; `processes` train it, which it may go on without.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    # Where the disk is full, the newest matters more than the oldest, but one is always kept.
    for spare in [*folder.glob("damaged-*"), *reversed(complete(folder)[1:]), None]:
        try:
            with filling(final) as temporary:
                save_file(unshared(tensors), temporary / TENSORS)
                manifest = {"format": FORMAT, "step": step, "plan": plan}
                manifest |= {"blake2b": _digest(temporary / TENSORS), "processes": processes}
                manifest["seal"] = digest({}, manifest)
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                if final.exists():  # of this very step: incomplete, or saved by an earlier attempt
                    _retire(final)
            break
        except DiskError as failure:
            if spare is None or failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            logger.warning("The disk is full: checkpoint %s makes room for the next.", spare.name)
            _retire(spare)
    for old in complete(folder)[keep:]:
        _retire(old)
    return final


def latest(folder: Path, plan: str) -> tuple[int, dict[str, Tensor]] | None:
    """The newest checkpoint that verifies, as (step, tensors); None when there is none.

    A damaged one is passed over with a warning. Raises CheckpointError for one of another plan or version of
    byol, and when checkpoints exist but none verifies.
    """
    found = complete(folder)
    for path in found:
        try:
            manifest = read_json(path / MANIFEST)
            seal = manifest.pop("seal", None)
            if seal != digest({}, manifest) and (seal is not None or manifest["format"] == FORMAT):
                raise ValueError(f"{MANIFEST} does not match its checksum")
            if manifest["format"] != FORMAT:
                raise of_another_version(f"Checkpoint {path}", manifest["format"], FORMAT)
            if manifest["plan"] != plan:
                raise CheckpointError(f"Checkpoint {path} belongs to another plan than the run's. Remove it.")
            if manifest["step"] != step_of(path):
                raise ValueError(f"its manifest says step {manifest['step']}")
            if not (path / TENSORS).is_file():  # a pipe or a device would be read for ever
                raise ValueError(f"{TENSORS} is no file")
            if _digest(path / TENSORS) != manifest["blake2b"]:
                raise ValueError(f"{TENSORS} does not match its checksum")
            return step_of(path), read_safetensors(path / TENSORS)[0]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as damage:
            logger.warning("Checkpoint %s is damaged (%s): the one before is tried.", path.name, damage)
    if found:
        none = f"None of the {len(found)} checkpoints in {folder} can be read"
        raise CheckpointError(f"{none}. Restore one of them, or start in another folder.")
    return None


def of_another_version(what: str, written: int, read: int) -> CheckpointError:
    """What to raise of a part of a run whose format this version does not read."""
    go_on = "Upgrade byol to continue it" if written > read else "Continue it with the byol that wrote it"
    return CheckpointError(
        f"{what} has format {written}; this byol reads {read}. {go_on}, or choose another --out."
    )


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints of later steps than the newest good one, all damaged, to `damaged-...`."""
    for path in complete(folder):
        if step_of(path) > step:
            aside = path.with_name(f"damaged-{path.name}")
            with writing(path, aside):
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)
            logger.warning("The damaged checkpoint is %s now and counts no more.", aside)


def last_good(folder: Path) -> str:
    """Where a run that went wrong can be taken up again, in a sentence."""
    found = complete(folder)
    return f"The last good checkpoint is {found[0]}." if found else "No checkpoint had been written yet."


def sweep(*folders: Path) -> None:
    """Remove what dead processes left behind: temporary files and folders, and folders on their way out."""
    for folder in folders:
        for path in [*folder.glob(".tmp-*"), *folder.glob(".del-*")]:
            if path.name.startswith((".del-", f".tmp-{os.getpid()}-")) or left_behind(path):
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter; its settings follow from the plan."""
    return {
        f"optimizer.{number}.{name}": value
        for number, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` gave, laid out as the parameters: a resumed run runs the same kernels."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        _, number, entry = name.split(".")
        state.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def complete(folder: Path) -> list[Path]:
    """Folders named as checkpoints that have a manifest, newest first."""
    named = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted((path for path in named if (path / MANIFEST).exists()), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _retire(path: Path) -> None:
    """Take a checkpoint's name away, then delete it: half of one is not taken for a whole one."""
    try:
        shutil.rmtree(path.rename(path.with_name(f".del-{os.getpid()}-{path.name}")))
    except OSError as failure:
        logger.warning("Could not delete the old checkpoint %s: %s", path.name, failure)
