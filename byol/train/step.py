"""The training step (paper Algorithm 1; official byol_experiment.py: _update_fn)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from byol.data.batches import Batch
from byol.errors import DataError, TrainingError
from byol.evaluation.online import OnlineProbe, ProbedLearner
from byol.method.byol import BYOL
from byol.method.draws import Stream, seed_of
from byol.method.lars import LARS, parameter_groups
from byol.train.plan import Plan
from byol.world import autocast


@dataclass(frozen=True)
class StepResult:
    """What one step did. Reading `loss` on a GPU waits for the step to end."""

    step: int  # updates done so far, this one included
    loss: Tensor  # () float32, on the device: mean over the batch of both directions, 0 to 8
    lr: float
    tau: float
    batch: Batch  # the step's last micro-batch
    gradient_norm: Tensor | None = None  # (), of a run on a CPU


def steps(
    learner: BYOL,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    start: int = 0,
    forward: nn.Module | None = None,
) -> Iterator[StepResult]:
    """Train from step `start` to the plan's end, yielding after each optimizer step and one target update.

    `batches` gives (view1, view2, indices) for each micro-batch, whatever the views are, and extra views
    where the learner predicts from them. `forward` calls the learner: a ProbedLearner of it, by default
    without a probe. DistributedDataParallel around that trains with other processes, each of which brings its
    part of every micro-batch. Everything random in a step follows from (seed, step), so a resumed run repeats
    it. Raises TrainingError when the loss, or on a CPU the gradient, is not finite. A step that fails leaves
    no trace.
    """
    forward = ProbedLearner(learner) if forward is None else forward
    ddp = forward if isinstance(forward, DistributedDataParallel) else None
    rank = () if ddp is None or distributed.get_rank() == 0 else (distributed.get_rank(),)
    device = next(learner.parameters()).device
    forward.train()
    batches = iter(batches)
    # BatchNorm's statistics, to put back: lists of one type each are copied at once
    types = {buffer.dtype for buffer in forward.buffers()}
    buffers = [[buffer for buffer in forward.buffers() if buffer.dtype == dtype] for dtype in types]
    kept = [[buffer.clone() for buffer in group] for group in buffers]
    for step in range(start, plan.total_steps):
        lr, tau = plan.lr_at(step), plan.tau_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        loss = torch.zeros((), device=device)
        copy_all(kept, buffers)
        norm = None
        try:
            for micro in range(plan.accumulation):
                try:
                    batch = Batch(*next(batches))
                except StopIteration:
                    ended = f"The batches ended in step {step} of {plan.total_steps}"
                    raise DataError(f"{ended}. Give an endless iterator.") from None
                seed = seed_of(plan.seed, Stream.DROPOUT, step, micro, *rank)
                torch.manual_seed(seed)  # after the batches' own
                if ddp is not None:  # gradients are averaged over the processes once a step, with the last
                    ddp.require_backward_grad_sync = micro == plan.accumulation - 1
                with autocast(device, plan.precision):
                    part, differentiated = forward(*batch)
                if ddp is not None:  # of the whole micro-batch: so all stop for a loss that is not finite
                    part = part.detach().clone()
                    distributed.all_reduce(part)
                    part /= distributed.get_world_size()
                # The one wait for a GPU, once a micro-batch. Here it costs next to nothing: the backward is
                # launched faster than it runs.
                stop_unless_finite(part, step, learner)
                (differentiated / plan.accumulation).backward()
                loss += part.detach() / plan.accumulation
            if device.type == "cpu":  # a GPU would be waited for; there the next loss tells
                norm = finite_gradient_norm(optimizer, step)
            if plan.clip:
                nn.utils.clip_grad_norm_(learner.parameters(), plan.clip)
        except BaseException:
            copy_all(buffers, kept)
            optimizer.zero_grad(set_to_none=True)
            raise
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.update_target(tau)
        yield StepResult(step + 1, loss, lr, tau, batch, norm)


def copy_all(to: list[list[Tensor]], of: list[list[Tensor]]) -> None:
    for left, right in zip(to, of, strict=True):
        torch._foreach_copy_(left, right)


def stop_unless_finite(loss: Tensor, step: int, learner: nn.Module) -> None:
    """Raise TrainingError for a loss that is NaN or infinite, before a gradient is taken of it."""
    if not torch.isfinite(loss):
        sound = all(p.isfinite().all() for p in learner.parameters())
        weights = "it did not touch the weights" if sound else "an earlier gradient has spoiled the weights"
        raise TrainingError(
            f"The loss of step {step} is {loss.item()}; {weights}. Usual causes: a learning rate that is too "
            "high for this optimizer, or pixels that are not finite."
        )


def finite_gradient_norm(optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    """The norm of the gradient, before the optimizer takes it. Raises TrainingError for NaN or infinity."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    if not norms.isfinite().all():
        raise TrainingError(
            f"The gradient of step {step} is not finite, though its loss is; it did not touch the weights. "
            "Usual causes: a root or logarithm of 0 in the network, or a learning rate that is too high."
        )
    norm: Tensor = norms.norm()
    return norm


def build_optimizer(learner: BYOL, plan: Plan, probe: OnlineProbe | None = None) -> torch.optim.Optimizer:
    """LARS, SGD or AdamW over the online network, and the probe beside it; biases and BatchNorm do not decay.

    `steps` sets the rate: each group's is the schedule's times its `lr_factor`.
    """
    groups: list[dict[str, Any]] = []
    predictors = [
        (part, plan.predictor_lr) for part in (learner.predictor, *learner.extra_predictors.values())
    ]
    for part, factor in ((learner.online, 1.0), *predictors, *([(probe, 1.0)] if probe else [])):
        part_groups = parameter_groups(part, weight_decay=plan.weight_decay)
        groups += [{**group, "lr_factor": factor} for group in part_groups]
    if plan.optimizer == "lars":
        return LARS(groups, lr=plan.lr, momentum=plan.momentum)
    parameters = [parameter for group in groups for parameter in group["params"]]
    # One pass over the memory takes a CPU a quarter of the time, and knows nothing of strides.
    way = {"fused": True} if all(map(in_one_piece, parameters)) else {"foreach": True}
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, **way)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(plan.momentum, plan.beta2), **way)


def in_one_piece(parameter: Tensor) -> bool:
    """Whether a parameter is of real numbers that lie in memory without gaps, in whatever order."""
    alike = torch.empty_like(parameter, device="meta")  # in the same order where there are none
    return parameter.is_floating_point() and alike.stride() == parameter.stride()
