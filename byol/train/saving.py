"""When a run is saved, and how it is taken up again."""

import logging
import time
from pathlib import Path

import torch
from torch import nn

from byol.errors import CheckpointError, DiskError, TrainingError
from byol.train import checkpoint
from byol.train.config import TrainConfig
from byol.train.plan import Plan

logger = logging.getLogger("byol")
SECONDS = 300.0  # without a checkpoint, after which one is written: as much is lost at most
SHARE = 0.02  # of a run's time that checkpoints by default may take, half of what a budget sets aside


class Saver:
    """Writes and reads the checkpoints of what is trained. A run computes the same whenever it is saved."""

    def __init__(
        self,
        folder: Path,
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        config: TrainConfig,
    ):
        self.folder, self.trained, self.optimizer, self.keep = (
            folder / "checkpoints",
            trained,
            optimizer,
            config.keep_checkpoints,
        )
        self.every = config.save_every_steps or plan.save_every_steps
        self.share = SHARE if config.save_every_steps is None else 1.0
        self.spent = 0.0  # seconds
        self.started = self.saved_at = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after a step: by number, unless that costs too much of the run's time; and by the clock."""
        now = time.monotonic()
        by_number = step % self.every == 0 and self.spent <= self.share * (now - self.started)
        return by_number or now - self.saved_at >= SECONDS

    def restore(self) -> int:
        """Load the newest good checkpoint, if there is one. Returns the steps already done; raises CheckpointError."""
        found = checkpoint.latest(self.folder)
        if found is None:
            return 0
        step, tensors, values = found
        try:
            self.trained.load_state_dict(
                {name: t for name, t in tensors.items() if not name.startswith("optimizer.")}
            )
            checkpoint.restore_optimizer(self.optimizer, checkpoint.unflatten(values["optimizer"], tensors))
        except (RuntimeError, ValueError, KeyError) as failure:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self.folder} is of another network than this one "
                f"({' '.join(str(failure).split())[:300]}). Give the network it was written from, or choose another --out."
            ) from failure
        return step

    def save(self, step: int) -> bool:
        """Write a checkpoint; a disk that is full costs this checkpoint, not the run. Raises TrainingError for bad weights.

        Returns whether it was written.
        """
        tensors, rest = checkpoint.flatten(self.optimizer.state_dict(), "optimizer")
        tensors |= self.trained.state_dict()
        names = [name for name, _ in self.trained.named_parameters()]
        damaged = [
            n
            for n in [*names, *(n for n in tensors if n.startswith("optimizer."))]
            if not tensors[n].isfinite().all()
        ]
        if damaged:  # of a finite loss whose gradient was not: the next loss would tell, but after this save
            raise TrainingError(
                f"After step {step} the state is not finite ({', '.join(damaged[:3])}), so it was not saved."
            )
        before = time.monotonic()
        try:
            checkpoint.save(self.folder, step, tensors, {"optimizer": rest}, self.keep)
        except DiskError as failure:
            logger.warning("The checkpoint of step %d is lost, training goes on: %s", step, failure)
            return False
        finally:
            self.saved_at = time.monotonic()
            self.spent += self.saved_at - before
        return True
