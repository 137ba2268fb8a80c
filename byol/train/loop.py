"""All that `steps` needs, for a loop of your own: a run's networks, batches, optimizer and plan, without its files."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from byol.data.batches import Batch
from byol.data.images import Images, open_images
from byol.method.byol import BYOL
from byol.train.config import TrainConfig
from byol.train.log import BadImages
from byol.train.optim import build_optimizer
from byol.train.plan import ImageFacts, Plan, plan_run
from byol.train.run import build_learner, check_own, open_batches, opening, seconds_per_step, split
from byol.world import World


@dataclass(frozen=True)
class Loop:
    """What `steps` takes: steps(loop.learner, loop.batches, loop.optimizer, loop.plan)."""

    learner: BYOL
    batches: Generator[Batch]  # close it when the loop is left early: worker processes may stand behind it
    optimizer: torch.optim.Optimizer
    plan: Plan


def prepare_loop(encoder: str | nn.Module | None, images: Any, config: TrainConfig) -> Loop:
    """Prepare what `pretrain` would train, with the same arguments, numbers and order of images; you run the steps.

    Nothing is saved, scored or logged, but for unreadable images, which are listed in config.out. The images that
    `pretrain` would hold out for its score are held out here too. Sets torch's random state. Raises what `pretrain` does.
    """
    own = encoder if isinstance(encoder, nn.Module) else None
    if isinstance(encoder, str):
        config = replace(config, encoder=encoder)
    if own is not None:
        check_own(config)
    world = World.join(config.device, alone=True)
    source = images if isinstance(images, Images) else open_images(images, **opening(config))
    facts = ImageFacts(len(source), source.uniform_size(), source.channels, source.labels is not None)
    plan = plan_run(config, facts, world, lambda draft: seconds_per_step(draft, config, own, source, world))
    learner = build_learner(plan, config, own, world)
    rows, _ = split(len(source), plan)
    Path(config.out).mkdir(parents=True, exist_ok=True)
    bad = BadImages(Path(config.out), len(source), config.data.max_bad)
    batches = open_batches(source.subset(rows), plan, config, world, 0, bad)
    return Loop(learner, batches, build_optimizer(learner, plan), plan)
