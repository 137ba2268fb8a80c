"""The plan of a run: after planning nothing is "auto" any more."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from byol.errors import ConfigError, DataError
from byol.machine import usable_cores
from byol.train.config import OptimizerName, TrainConfig, seconds_of
from byol.world import Precision, World

SMALL_SIDE = 64  # up to this side an image counts as small: a 3x3 stem, and the whole set kept on the device

SAVES = 20  # checkpoints a run by default; one costs about as much as a few steps, and the run saves by the clock as well


@dataclass(frozen=True)
class ImageFacts:
    """What planning needs to know of the images."""

    count: int
    size: tuple[int, int] | None  # height, width when all images share one
    channels: int
    labelled: bool


@dataclass(frozen=True)
class Plan:
    """Every number of a run."""

    encoder: str
    encoder_options: dict[str, Any]
    image_size: tuple[int, int]  # height, width of the views, pixels
    eval_size: tuple[int, int]  # of images when they are scored and embedded
    channels: int
    images: int  # trained on
    held_out: int  # scored by kNN, not trained on
    in_memory: bool
    batch_size: int
    accumulation: int
    micro_batch_size: int
    epochs: float
    total_steps: int
    warmup_steps: int
    optimizer: OptimizerName
    base_lr: float
    lr: float  # at its peak
    predictor_lr: float  # the predictor's rate as a multiple of the others'
    weight_decay: float
    momentum: float
    base_tau: float
    precision: Precision
    device: str
    workers: int
    seed: int
    log_every_steps: int
    save_every_steps: int
    look_every_steps: int  # between scores

    def lines(self) -> list[str]:
        """The plan in words, for people."""
        height, width = self.image_size
        options = "".join(f", {name} {value}" for name, value in self.encoder_options.items())
        where = "kept in memory" if self.in_memory else f"decoded by {self.workers} workers"
        held = f", {self.held_out:,} held out for kNN" if self.held_out else ""
        parts = f" in {self.accumulation} micro-batches" if self.accumulation > 1 else ""
        return [
            f"images     {self.images:,} to train on{held}; {where}",
            f"encoder    {self.encoder}{options}; views of {height}x{width}, {self.channels} channels",
            f"length     {self.epochs:g} epochs = {self.total_steps:,} steps of {self.batch_size} images{parts}",
            f"optimizer  {self.optimizer}, lr {self.lr:g} at its peak after {self.warmup_steps:,} steps, "
            f"weight decay {self.weight_decay:g}, tau from {self.base_tau:g}",
            f"hardware   {self.device}, {self.precision}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        return {**asdict(self), "image_size": list(self.image_size), "eval_size": list(self.eval_size)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """The inverse of `to_json`."""
        return cls(
            **{**values, "image_size": tuple(values["image_size"]), "eval_size": tuple(values["eval_size"])}
        )


def plan_run(
    config: TrainConfig, facts: ImageFacts, world: World, step_seconds: Callable[[Plan], float] | None = None
) -> Plan:
    """Derive every number of a run from its config, its images and the hardware.

    `step_seconds` measures one step of a draft plan; it is called only when the config has a time budget. Raises
    DataError for too few images, ConfigError for settings that do not fit one another.
    """
    cpu = world.device.type == "cpu"
    side = config.image_size or derived_size(facts, cpu)
    small = side <= SMALL_SIDE
    encoder = config.encoder or ("convnet" if cpu else "resnet18" if small else "resnet50")
    options = config.model.encoder_options()
    if encoder.startswith("resnet") and small:
        options.setdefault("stem", "small")

    if config.probe.online and not facts.labelled:
        raise DataError(
            "probe.online is on, but the images carry no labels, which the probe learns from. Leave it out."
        )
    held_out = min(2000, round(config.knn.held_out * facts.count)) if facts.labelled else 0
    images = facts.count - held_out
    batch_size = checked_batch_size(config, images)
    optimizer: OptimizerName = config.optim.name or ("adamw" if cpu else "lars")
    epochs = config.epochs or derived_epochs(images, cpu)
    base_lr = (
        config.optim.base_lr
        or {"lars": 0.3 if batch_size >= 1024 else 1.0, "sgd": 0.1, "adamw": 2e-3}[optimizer]
    )
    decay = {"lars": 1e-6, "sgd": 5e-4, "adamw": 0.05}[optimizer]
    plan = Plan(
        encoder=encoder,
        encoder_options=options,
        image_size=(side, side),
        eval_size=(config.eval_size or side,) * 2,
        channels=facts.channels,
        images=images,
        held_out=held_out,
        in_memory=bool(config.data.in_memory)
        if config.data.in_memory is not None
        else fits_in_memory(facts, world),
        batch_size=batch_size,
        accumulation=config.optim.accumulation,
        micro_batch_size=batch_size // config.optim.accumulation,
        epochs=epochs,
        total_steps=0,
        warmup_steps=0,
        optimizer=optimizer,
        base_lr=base_lr,
        lr=base_lr * batch_size / 256,
        predictor_lr=config.optim.predictor_lr,
        weight_decay=decay if config.optim.weight_decay is None else config.optim.weight_decay,
        momentum=config.optim.momentum,
        base_tau=config.optim.base_tau
        if config.optim.base_tau is not None
        else (0.99 if epochs < 500 else 0.996),
        precision=config.precision or world.default_precision(),
        device=str(world.device),
        workers=0,
        seed=config.seed,
        log_every_steps=config.log_every_steps,
        save_every_steps=1,
        look_every_steps=1,
    )
    plan = replace(plan, workers=0 if plan.in_memory else derived_workers(config))
    if config.budget is not None and step_seconds is not None:
        # 4 % of the time is set aside for scoring, saving and the noise of the measurement.
        draft = replace(
            config, optim=replace(config.optim, warmup_epochs=0.0)
        )  # its one epoch may be shorter than the warm-up
        updates = 0.96 * seconds_of(config.budget) / step_seconds(with_length(plan, draft, epochs=1.0))
        if updates < 10:
            raise ConfigError(
                f"A budget of {config.budget} is only {updates:.1f} steps here. Give more time, a smaller --image-size, "
                "a smaller encoder or a smaller --batch-size."
            )
        epochs = updates * batch_size / images
    return with_length(plan, config, epochs)


def with_length(plan: Plan, config: TrainConfig, epochs: float) -> Plan:
    """The plan with its length and all that follows from it. Steps count as in the official code: epochs x images // batch."""
    total = int(epochs * plan.images) // plan.batch_size
    if total < 1:
        raise ConfigError(
            f"{epochs:g} epochs of {plan.images} images make no full step of {plan.batch_size}. Give more epochs."
        )
    warmup_epochs = config.optim.warmup_epochs
    warmup = min(10.0, 0.1 * epochs) if warmup_epochs is None else warmup_epochs
    warmup_steps = int(warmup * plan.images) // plan.batch_size
    if warmup_steps >= total and warmup_steps > 0:
        raise ConfigError(
            f"optim.warmup_epochs={warmup:g} is not shorter than the run of {epochs:g} epochs. Give fewer warm-up epochs."
        )
    return replace(
        plan,
        epochs=epochs,
        total_steps=total,
        warmup_steps=warmup_steps,
        save_every_steps=config.save_every_steps or max(1, total // SAVES),
        look_every_steps=math.ceil(total / config.knn.times),
    )


def derived_size(facts: ImageFacts, cpu: bool) -> int:
    """Small images keep their size; photographs become 224 as in the paper, 64 on a CPU."""
    if facts.size and max(facts.size) <= SMALL_SIDE:
        return max(8, min(facts.size))
    return 64 if cpu else 224


def derived_epochs(images: int, cpu: bool) -> float:
    """Enough passes for the images there are: about 2 million seen on a CPU, 40 million on a GPU, 1,000 passes at most."""
    return float(max(10, min(1000, (2_000_000 if cpu else 40_000_000) // max(1, images))))


def derived_workers(config: TrainConfig) -> int:
    return config.workers if config.workers is not None else min(16, usable_cores())


def checked_batch_size(config: TrainConfig, images: int) -> int:
    """The batch size: the one asked for if the images suffice, else 256 or what a small set allows."""
    if images < 2:
        raise DataError(
            f"There {'is 1 image' if images == 1 else f'are {images} images'} to train on; at least 2 are needed."
        )
    parts = config.optim.accumulation
    if config.batch_size is None:
        # At least four batches an epoch, so that a small set still gives steps.
        batch = max(2 * parts, min(256, images // 4) // parts * parts)
        if batch > images:
            raise DataError(
                f"{images} images cannot fill {parts} micro-batches of 2. Lower --optim.accumulation or add images."
            )
        return batch
    if config.batch_size > images:
        raise DataError(
            f"batch_size is {config.batch_size}, but there are only {images} images to train on. "
            f"Give --batch-size {max(2, images // 4)} or less, or more images."
        )
    if config.batch_size % parts or config.batch_size // parts < 2:
        raise ConfigError(
            f"batch_size {config.batch_size} does not split into {parts} micro-batches of equal size and at least 2. "
            "Change --batch-size or --optim.accumulation."
        )
    return config.batch_size


def fits_in_memory(facts: ImageFacts, world: World) -> bool:
    """Whether all images are small, of one size, and fit in a quarter of the device's free memory as uint8."""
    if facts.size is None or max(facts.size) > 2 * SMALL_SIDE:
        return False
    return facts.count * facts.channels * facts.size[0] * facts.size[1] <= world.free_memory() // 4
