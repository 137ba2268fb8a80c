"""The training step (paper Algorithm 1; official byol_experiment.py: _update_fn)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from byol.data.batches import Batch
from byol.errors import TrainingError
from byol.evaluation.online import OnlineProbe
from byol.method.byol import BYOL
from byol.method.draws import Stream, seed_of
from byol.method.schedules import learning_rate, tau
from byol.train.plan import Plan
from byol.world import autocast


@dataclass(frozen=True)
class StepResult:
    """What one step did. Reading `loss` on a GPU waits for the step to end; the loop itself waits for forward passes only."""

    step: int  # updates done so far, this one included
    loss: Tensor  # () float32, on the device: mean over the batch of both directions, 0 to 8
    lr: float
    tau: float
    batch: Batch  # the step's last micro-batch


def steps(
    learner: BYOL,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    start: int = 0,
    probe: OnlineProbe | None = None,
) -> Iterator[StepResult]:
    """Train from step `start` to the plan's end, yielding after every optimizer step and its one target update.

    A probe that is given learns beside, and the learner nothing from it. Everything random in a step follows from
    (seed, step), so a resumed run repeats it. Raises TrainingError before the weights are touched when the loss is not
    finite.
    """
    assert learner.views is not None
    device = next(learner.parameters()).device
    learner.train()
    for step in range(start, plan.total_steps):
        lr = learning_rate(
            step,
            base_lr=plan.base_lr,
            batch_size=plan.batch_size,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
        )
        decay = tau(step, base_tau=plan.base_tau, total_steps=plan.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        loss = torch.zeros((), device=device)
        for micro in range(plan.accumulation):
            batch = next(batches)
            torch.manual_seed(
                seed_of(plan.seed, Stream.DROPOUT, step, micro)
            )  # for dropout and the like; behind what may draw itself
            view1, view2 = learner.views.finish(
                batch.crops, seed=plan.seed, step=step, first_row=micro * plan.micro_batch_size
            )
            with autocast(device, plan.precision):
                part = learner(view1, view2) / plan.accumulation
            # The loop's one wait for a GPU, once a micro-batch. Here it costs next to nothing: the backward pass is launched
            # faster than it runs.
            stop_unless_finite(part, step)
            part.backward()
            if probe is not None:
                probe.backward(batch.indices, plan.accumulation)
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.update_target(decay)
        yield StepResult(step + 1, loss, lr, decay, batch)


def stop_unless_finite(loss: Tensor, step: int) -> None:
    """Raise TrainingError for a loss that is NaN or infinite, before a gradient is taken of it."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"The loss of step {step} is {loss.item()}; the weights were not touched. Usual causes: a learning rate that "
            "is too high for this optimizer, or pixels that are not finite."
        )
