"""The optimizer of a plan."""

import torch

from byol.method.byol import BYOL
from byol.method.lars import LARS, parameter_groups
from byol.train.plan import Plan


def build_optimizer(learner: BYOL, plan: Plan) -> torch.optim.Optimizer:
    """LARS, SGD or AdamW over the online network; biases and BatchNorm parameters are not decayed.

    `steps` sets the rate: each group's is the schedule's times its `lr_factor`.
    """
    groups = [
        {**group, "lr_factor": factor}
        for part, factor in ((learner.online, 1.0), (learner.predictor, plan.predictor_lr))
        for group in parameter_groups(part, weight_decay=plan.weight_decay)
    ]
    if plan.optimizer == "lars":
        return LARS(groups, lr=plan.lr, momentum=plan.momentum)
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, foreach=True)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=(plan.momentum, 0.95), foreach=True)
