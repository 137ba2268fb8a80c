"""The optimizer of a plan."""

import torch

from byol.evaluation.online import OnlineProbe
from byol.method.byol import BYOL
from byol.method.lars import LARS, parameter_groups
from byol.train.plan import Plan


def build_optimizer(learner: BYOL, plan: Plan, probe: OnlineProbe | None = None) -> torch.optim.Optimizer:
    """LARS, SGD or AdamW over the online network, and the probe beside it; biases and BatchNorm parameters are not decayed.

    `steps` sets the rate: each group's is the schedule's times its `lr_factor`.
    """
    parts = [
        (learner.online, 1.0),
        (learner.predictor, plan.predictor_lr),
        *([] if probe is None else [(probe, 1.0)]),
    ]
    groups = [
        {**group, "lr_factor": factor}
        for part, factor in parts
        for group in parameter_groups(part, weight_decay=plan.weight_decay)
    ]
    if plan.optimizer == "lars":
        return LARS(groups, lr=plan.lr, momentum=plan.momentum)
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, foreach=True)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(plan.momentum, 0.95), foreach=True)
