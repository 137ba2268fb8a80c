"""The plan of a run: every number of it, derived once; after planning nothing is "auto" any more."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from operator import le
from typing import Annotated, Any

from byol.encoders.encoder import EncoderInfo
from byol.errors import ConfigError, DataError
from byol.machine import usable_cores
from byol.method.extra import CUTOUT, LOCAL, ExtraViews, extra_views, local_size
from byol.method.schedules import learning_rate, tau
from byol.method.views import ViewConfig, Views
from byol.settings import Checked, Count, ShareAbove0
from byol.train.config import OptimizerName, TrainConfig, seconds_of
from byol.train.recipe import SMALL_SIDE, Kind, in_words, kind_of, views_of
from byol.world import Precision, World

logger = logging.getLogger("byol")
NoneOrMore = Annotated[int, "at least 0", partial(le, 0)]
HOLD_OUT_MOST = 2000  # images
MEMORY_SIDES = 4  # sides of a view: of an image that is shrunk to it a crop of 1/16 of the area loses nothing
MEMORY_EPOCHS = 4  # from which on it pays to decode all images before the first step
SHAPE = 1.5  # an image over the square of its shorter side
SAVES = 20  # checkpoints a run by default; the run saves by the clock as well
TIMES, LOOKS = 10, 0.1  # looks at the representation, and the most of a run that they take unless requested
INIT_TAU = 0.996  # the least usual tau of a run that starts from other weights
BANK = 5000  # training images that vote for the hold-out set: enough to rank runs, and cheap to score often
HEALTH = 1024  # training images that show whether the representation collapses: all of a look without labels
# Of a budget of time:
ENOUGH_IMAGES = 300_000  # with fewer of them seen, views shrink: more images are worth more than more pixels
ENOUGH_STEPS = 1000  # with fewer, batches shrink
TIMED = (8, 64)  # images of the steps that are measured first
TIMED_STEPS, TIMING = 3, 0.05  # the fewest that tell, and the share of the budget that they may take
LEAST_BATCH = 32  # images
LEAST_SIDE = 24  # pixels, of views
LEAST_STEPS = 10
USED = 0.96  # what is planned for; the rest is for saving and a slower machine
MOST_WHITENED = 85  # the width of a convnet: 3,060 features
PASSES = 8  # a step in forward passes: for each view three online (two of them backward), one of the target


@dataclass(frozen=True)
class ImageFacts:
    """What planning needs to know of the images."""

    count: int
    size: tuple[int, int] | None  # height, width when all images share one
    channels: int
    labelled: bool
    gray_share: float = 0.0  # of the pictures with three channels


@dataclass(frozen=True)
class Speed:
    """Seconds, measured with a draft of a plan."""

    step: float
    image: float = 0.0  # to read one
    spent: float = 0.0  # since the run was started


@dataclass(frozen=True)
class Plan(Checked):
    """Every number of a run."""

    encoder: str
    encoder_options: dict[str, Any]
    image_size: tuple[int, int]  # height, width of the views, pixels
    eval_size: tuple[int, int]  # of images when they are scored and embedded
    channels: NoneOrMore  # 0 of samples that are not images
    kind: Kind  # of the images
    views: ViewConfig
    projection_size: int
    projection_hidden_size: int
    images: Count  # trained on
    hold_out_images: int  # scored by kNN, not trained on
    in_memory: bool
    memory_side: int  # pixels: the shorter side of images is at most this in memory; 0 for images as they are
    batch_size: Count
    accumulation: Count
    epochs: float
    total_steps: Count
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
    log_every_steps: Count
    save_every_steps: Count
    look_every_steps: Count  # between scores
    eval_crop: ShareAbove0 = 0.875  # side of the central square, as a share of the shorter side
    init: dict[str, Any] = field(default_factory=dict)  # the encoder it was started from, if there is one
    extended_at: int = 0  # the step at which it had finished, and was made longer
    beta2: float = 0.95  # of adamw
    clip: float = 0.0  # the largest norm of the gradient; 0 for any
    tau_power: float = 1.0  # by which tau is scaled to the batch
    local_views: int = 0  # of each image, beside the two
    cutout_views: int = 0
    target_views: int = 0
    lr_scaling: str = "linear"
    recompute: bool = False  # the encoder's activations, for their gradient
    whiten: bool = False  # half-whiten the features once the encoder is trained
    own_views: bool = False  # of samples of any kind; then the numbers of images and their views are empty

    def __post_init__(self) -> None:
        if isinstance(self.views, dict):  # as JSON has it
            views: dict[str, Any] = self.views
            views = {name: tuple(v) if isinstance(v, list) else v for name, v in views.items()}
            object.__setattr__(self, "views", ViewConfig(**views))
        if self.init:
            info: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in self.init["info"].items()}
            EncoderInfo(**info)  # raises for invalid values
            if not all(isinstance(self.init[name], str) for name in ("weights", "checksum")):
                raise ConfigError("init names no weights or no checksum.")
        super().__post_init__()
        if self.own_views != (self.channels == 0):
            raise ConfigError(
                f"channels is {self.channels}; expected 0 with views of one's own, else at least 1."
            )

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // self.accumulation

    def epoch(self, step: int) -> float:
        return step * self.batch_size / self.images

    def lr_at(self, step: int) -> float:
        lengths = {"total_steps": self.total_steps, "warmup_steps": self.warmup_steps}
        batch_size = scaled_batch(self.batch_size, self.lr_scaling)
        return learning_rate(step, base_lr=self.base_lr, batch_size=batch_size, **lengths)

    def tau_at(self, step: int) -> float:
        usual: float = tau(step, base_tau=self.base_tau, total_steps=self.total_steps) ** self.tau_power
        return usual

    def extra_views(self, views: Views) -> tuple[ExtraViews, ...]:
        """Of each image, beside the two that `views` draws."""
        return extra_views(views, self.local_views, self.cutout_views, self.target_views)

    @property
    def predicted(self) -> dict[str, int]:
        """How many extra views there are of the kinds that have a predictor of their own."""
        every = {LOCAL: self.local_views, CUTOUT: self.cutout_views}
        return {name: count for name, count in every.items() if count}

    @property
    def passes(self) -> float:
        """Forward passes of one view that a step is worth, a backward pass being two."""
        extra = float(self.cutout_views)
        if self.local_views:
            extra += self.local_views * math.prod(local_size(self.image_size)) / math.prod(self.image_size)
        return PASSES + 3 * extra + self.target_views

    @property
    def looked_at(self) -> int:
        """Images of a look at the representation: with labels those that vote, and the hold-out set."""
        return min(BANK if self.hold_out_images else HEALTH, self.images) + self.hold_out_images

    def trained_while_embedding(self, images: int) -> float:
        """How many images could be trained on in the time in which so many are embedded as in a look."""
        growth = 1.0 if self.own_views else self.eval_size[0] / self.image_size[0]
        return images / self.passes * growth**2

    def looks(self, epochs: float, requested: int | None) -> int:
        """How often a run of so many epochs is looked at: 10 times, or as often as takes a tenth of it."""
        room = LOOKS * epochs * self.images / self.trained_while_embedding(self.looked_at)
        return requested or min(TIMES, max(1, int(room)))

    def longer(self, config: TrainConfig) -> "Plan":
        """The plan of a finished run that goes on for the config's epochs."""
        assert config.epochs is not None
        total = int(config.epochs * self.images) // self.batch_size
        times = self.looks(config.epochs, config.knn.times)
        return replace(
            self, epochs=float(config.epochs), total_steps=total, extended_at=self.total_steps,
            look_every_steps=math.ceil(total / times), save_every_steps=max(1, total // SAVES),
        )  # fmt: skip

    def of_samples(self, workers: int) -> "Plan":
        """The plan for samples of any kind, with views of the user's own."""
        return replace(
            self, image_size=(0, 0), eval_size=(0, 0), channels=0, kind="paper", views=ViewConfig(),
            in_memory=False, memory_side=0, workers=workers, own_views=True,
        )  # fmt: skip

    def departures(self) -> list[str]:
        """The switches of later papers that are on, in words."""
        found = [f"gradients no longer than {self.clip:g}"] if self.clip else []
        if self.tau_power != 1:
            meant = f"tau {self.base_tau:g} of {self.batch_size / self.tau_power:g} images"
            found.append(f"{meant} to the power of {self.tau_power:g} (EMA scaling rule, arXiv 2307.13813)")
        if own := self.predicted:
            views = " and ".join(counted(count, f"{name} view") for name, count in own.items())
            found.append(f"{views} with a predictor for each kind (MULAN, arXiv 2602.05845)")
        if self.target_views:
            more = counted(self.target_views, "more view")
            found.append(f"targets averaged over {more} (FastSiam, Pototzky et al. 2022)")
        if self.lr_scaling != "linear":
            found.append(f"lr {self.base_lr:g} of 256 images times the root of {self.batch_size}/256")
        if self.whiten:
            found.append("features half-whitened behind training (after Jegou & Chum 2012)")
        if self.recompute:
            found.append("activations computed again for the gradient, to the same numbers")
        return found

    def lines(self) -> list[str]:
        """The plan in words, for people."""
        height, width = self.image_size
        options = "".join(f", {name} {value}" for name, value in self.encoder_options.items())
        by = counted(self.workers, "worker") if self.workers else "the main process"
        where = "kept in memory" if self.in_memory else f"decoded by {by}"
        where += f" at {self.memory_side} pixels" if self.memory_side else ""
        held = f", {self.hold_out_images:,} held out for kNN" if self.hold_out_images else ""
        parts = f" in {self.accumulation} micro-batches" if self.accumulation > 1 else ""
        batch = f"{self.batch_size} images{parts}"
        warm_up, channels = counted(self.warmup_steps, "step"), counted(self.channels, "channel")
        lines = [
            f"images     {self.images:,} to train on{held}; {where}",
            f"encoder    {self.encoder}{options}; views of {height}x{width}, {channels}",
            f"views      {in_words(self.kind, self.views)}",
        ]
        if self.own_views:
            lines = [
                f"samples    {self.images:,} to train on{held}; read by {by}",
                f"encoder    {self.encoder}",
                "views      of a function of your own",
            ]
        lines += [
            f"length     {counted(self.epochs, 'epoch')} = {counted(self.total_steps, 'step')} of {batch}",
            f"optimizer  {self.optimizer}, lr {self.lr:g} at its peak after {warm_up}, "
            f"weight decay {self.weight_decay:g}, tau from {self.tau_at(0):g}",
            f"hardware   {self.device}, {self.precision}",
        ]
        lines += [f"switches   not the paper's: {', '.join(other)}"] if (other := self.departures()) else []
        if self.init:
            info = self.init["info"]
            mean, std = (", ".join(f"{value:g}" for value in info[name]) for name in ("mean", "std"))
            lines.append(
                f"init       {self.init['weights']} (checksum {self.init['checksum'][:8]}), normalised by "
                f"mean {mean}, std {std}; BatchNorm statistics too, which follow these images from step 1 on"
            )
        if self.extended_at:
            lines.append(
                f"extended   finished at step {self.extended_at:,}; from there on rate and tau are those of "
                f"{self.epochs:g} epochs: lr jumps from 0 to {self.lr_at(self.extended_at):.2g}, "
                f"tau from 1 to {self.tau_at(self.extended_at):.4f}"
            )
        return lines


def counted(number: float, noun: str) -> str:
    """In words, as in 1 step, 1,200 steps, 0.5 epochs."""
    digits = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun}{'s' * (number != 1)}"


def plan_run(
    config: TrainConfig, facts: ImageFacts, world: World, measure: Callable[[Plan], Speed] | None = None
) -> Plan:
    """Derive every number of a run from its config, its images and the hardware.

    `measure` tells the speed of a draft plan; only a config with a time budget needs it. Raises DataError for
    too few images, ConfigError for settings that do not fit one another.
    """
    derive = partial(derived, facts=facts, world=world)
    if config.budget is not None:
        if measure is None:
            raise ConfigError(f"budget is {config.budget}, but nothing measures a step. Give epochs.")
        config = fitted(config, derive, measure, world.size)
    return derive(config)


def derived(config: TrainConfig, facts: ImageFacts, world: World) -> Plan:
    """The plan of a config with a length in epochs, or of the length that its images suggest."""
    cpu, optim, largest = world.device.type == "cpu", config.optim, max(facts.size or (1000,))
    # Small images keep their size; photographs become 224 as in the paper, 64 on a CPU.
    usual_side = max(8, min(facts.size)) if facts.size and largest <= SMALL_SIDE else 64 if cpu else 224
    small = (config.image_size or usual_side) <= SMALL_SIDE
    encoder = config.encoder or ("convnet" if cpu else "resnet18" if small else "resnet50")
    side, eval_side = config.image_size or usual_side, config.eval_size
    if encoder == "convnet" and config.image_size is None:  # it takes any size, and a step half the time
        side, eval_side = view_side(eval_side or side), eval_side or side
    options = config.model.encoder_options()
    if encoder.startswith("resnet") and small:
        options.setdefault("stem", "small")
    if config.probe.online and not facts.labelled:
        raise DataError("probe.online is on, but the images carry no labels to learn from. Leave it out.")
    held_out = min(HOLD_OUT_MOST, round(config.knn.hold_out_share * facts.count)) if facts.labelled else 0
    images = facts.count - held_out
    batch_size = checked_batch_size(config, images, 128 if cpu else 256, world.size)
    # Steps count as in the official code: epochs x images // batch.
    # Without a length a CPU sees about 2 million images, a GPU 40 million, each 1,000 times at most.
    usual_epochs = max(10, min(1000, (2_000_000 if cpu else 40_000_000) // images))
    epochs = config.epochs or float(usual_epochs)
    total = int(epochs * images) // batch_size
    if total < 1:
        raise ConfigError(f"{epochs:g} epochs are no step of {batch_size} of {images} images. Give more.")
    warmup = min(10.0, 0.1 * epochs) if optim.warmup_epochs is None else optim.warmup_epochs
    warmup_steps = int(warmup * images) // batch_size
    if warmup_steps >= total and warmup_steps > 0:
        length = f"optim.warmup_epochs={warmup:g} is not shorter than the run of {epochs:g} epochs"
        raise ConfigError(f"{length}. Give fewer.")

    # Kept in memory where they take no more than a quarter of what is free: images of one size, if small, and
    # for small views on a CPU, if there are epochs that it pays for, any images, shrunk.
    as_they_are = largest <= 2 * SMALL_SIDE
    memory_side = MEMORY_SIDES * side if cpu and small and not as_they_are else 0
    pixels = facts.count * facts.channels * (SHAPE * memory_side**2 or math.prod(facts.size or ()))
    in_memory = config.data.in_memory
    if in_memory is None:
        pays = as_they_are or (memory_side > 0 and epochs >= MEMORY_EPOCHS)
        in_memory = pays and pixels <= world.free_memory() // 4

    kind = config.kind or kind_of(facts.channels, facts.gray_share)
    optimizer: OptimizerName = optim.name or ("adamw" if cpu else "lars")
    usual_rates = {
        "lars": 0.3 if batch_size >= 1024 else 1.0,
        "sgd": 0.1,
        "adamw": 3e-3 if encoder == "convnet" and config.init is None else 2e-3,
    }
    usual_decay = {"lars": 1e-6, "sgd": 5e-4, "adamw": 0.01}[optimizer]
    usual_tau = 0.99 if epochs < 500 else 0.996
    if config.init is not None:  # what is there already is kept: docs/decisions.md
        usual_tau = max(INIT_TAU, usual_tau)
    weight_decay = usual_decay if optim.weight_decay is None else optim.weight_decay
    base_tau = usual_tau if optim.base_tau is None else optim.base_tau
    workers = (
        min(16, max(1, usable_cores() // world.processes_here()))
        if config.workers is None
        else config.workers
    )
    base_lr = optim.base_lr or usual_rates[optimizer]
    lr = base_lr * scaled_batch(batch_size, optim.lr_scaling) / 256
    plan = Plan(
        encoder=encoder, encoder_options=options, channels=facts.channels,
        image_size=(side, side), eval_size=(eval_side or side,) * 2, eval_crop=config.eval_crop or 0.875,
        kind=kind, views=views_of(kind, config.views, side),
        projection_size=config.model.projection_size or (128 if cpu else 256),
        projection_hidden_size=config.model.projection_hidden_size or (1024 if cpu else 4096),
        images=images, hold_out_images=held_out, workers=0 if in_memory else workers,
        in_memory=in_memory, memory_side=memory_side * in_memory,
        batch_size=batch_size, accumulation=optim.accumulation,
        epochs=epochs, total_steps=total, warmup_steps=warmup_steps,
        optimizer=optimizer, base_lr=base_lr, lr=lr,
        predictor_lr=optim.predictor_lr or (10.0 if cpu else 1.0),
        weight_decay=weight_decay, momentum=optim.momentum, base_tau=base_tau, seed=config.seed,
        precision=config.precision or world.default_precision(), device=str(world.device),
        log_every_steps=config.log_every_steps,
        save_every_steps=config.save_every_steps or max(1, total // SAVES),
        look_every_steps=total,
        beta2=optim.beta2, clip=optim.clip or 0.0, tau_power=batch_size / (optim.tau_batch or batch_size),
        local_views=config.extra.local, cutout_views=config.extra.cutout, target_views=config.extra.targets,
        lr_scaling=optim.lr_scaling, recompute=config.model.recompute,
        whiten=whitens(encoder, config),
    )  # fmt: skip
    return replace(plan, look_every_steps=math.ceil(total / plan.looks(epochs, config.knn.times)))


def whitens(encoder: str, config: TrainConfig) -> bool:
    """Whether the trained encoder half-whitens its features. Raises ConfigError where it cannot."""
    width = config.model.encoder_options().get("width", 0)
    wide = isinstance(width, int) and width > MOST_WHITENED  # for each look the axes take seconds
    fits = encoder == "convnet" and config.hidden_layer is None and not wide
    if config.model.whiten and not fits:
        layer = "" if config.hidden_layer is None else f" read at {config.hidden_layer}"
        layer += f" of width {width}" if wide else ""
        raise ConfigError(
            f"model.whiten is on, and {encoder}{layer} has no place for it, as the output of convnet has. "
            "Leave it out."
        )
    return fits and config.model.whiten is not False


def scaled_batch(batch_size: int, scaling: str) -> float:
    """The batch size that the rate is scaled by: its root, as long as that of 256 stays 256."""
    return batch_size if scaling == "linear" else math.sqrt(256 * batch_size)


def view_side(eval_side: int) -> int:
    """The side of views that make things as large as they are in whole images of a side: three quarters."""
    return max(8, round(0.75 * eval_side / 8) * 8)


def checked_batch_size(config: TrainConfig, images: int, usual: int, processes: int = 1) -> int:
    """The batch size: the requested one if it can be, else the usual one or what a small set allows."""
    parts = config.optim.accumulation * processes
    if images < 2:
        raise DataError(f"There is {images or 'no'} image to train on; expected at least 2.")
    # At least four batches an epoch, so that a small set still gives steps.
    size = config.batch_size or max(2 * parts, min(usual, images // 4) // parts * parts)
    if size > images:
        few = f"batch_size is {size}, but there are only {images} images to train on"
        most = max(2 * parts, images // 4 // parts * parts)
        smaller = f"--batch-size {most}, " if most <= images else ""
        raise DataError(f"{few}. Give {smaller}a lower --optim.accumulation, or more images.")
    if size % parts or size // parts < 2:
        shares = f" for each of {processes} processes" if processes > 1 else ""
        micro = f"{config.optim.accumulation} micro-batches{shares}"
        uneven = f"batch_size {size} does not split into {micro} of equal size and at least 2 images"
        raise ConfigError(f"{uneven}. Change --batch-size or --optim.accumulation.")
    return size


def fitted(
    config: TrainConfig,
    derive: Callable[[TrainConfig], Plan],
    measure: Callable[[Plan], Speed],
    processes: int = 1,
) -> TrainConfig:
    """The config with epochs in place of its budget.

    Where too few images would be seen, views are made smaller, and where these are too few steps, batches,
    unless their size was requested. A few images are measured first: no step is made that the budget has no
    time for. Then more where there is, as few cost more an image.
    """
    assert config.budget is not None
    budget = seconds_of(config.budget)
    # A length that stands in for the one that is sought; the warm-up may be longer than that.
    draft = replace(config, budget=None, epochs=1e6, optim=replace(config.optim, warmup_epochs=0.0))
    usual = derive(draft)
    for images in TIMED:
        least = max(2 * processes, min(images, usual.micro_batch_size)) // processes * processes
        tried = replace(usual, batch_size=least * usual.accumulation)
        step = measure(tried).step
        pixel = step / tried.batch_size / usual.image_size[0] ** 2  # seconds of one
        # In larger batches it is less: they tell it better, where measuring takes a small part of the budget.
        if TIMED_STEPS * step / tried.batch_size * TIMED[1] > TIMING * budget:
            break
    seen = {one: (USED - LOOKS) * budget / (pixel * one**2) for one in sides(config, usual)}
    side = next((one for one, images in seen.items() if images >= ENOUGH_IMAGES), min(seen))
    sizes = [*batch_sizes(config, usual, processes)]
    size = next((one for one in sizes if seen[side] / one >= ENOUGH_STEPS), sizes[-1])
    steps = seen[side] / size
    whole = config.eval_size or usual.eval_size[0] * side // usual.image_size[0]

    def fit(config: TrainConfig) -> TrainConfig:
        return replace(config, batch_size=size, image_size=side, eval_size=whole)

    plan, wanted = derive(fit(draft)), config.knn.times or TIMES
    times = wanted
    if steps >= 1:
        speed = measure(plan)
        bank = min(BANK, plan.images)
        image = speed.step / size  # seconds
        look = plan.trained_while_embedding(plan.looked_at) * image
        whitening = plan.trained_while_embedding(bank) * image * plan.whiten  # is fitted at the end
        times = min(wanted, max(1, int(LOOKS * budget / look)))
        reading = bank + plan.hold_out_images + plan.images * plan.in_memory
        spent = speed.spent + reading * speed.image / max(1, plan.workers)
        spent = min(spent, budget / 2)  # half of a tiny budget is trained all the same
        steps = (USED * budget - spent - whitening - (times + 1) * look) / speed.step  # one at step 0
    if steps < LEAST_STEPS:
        few = f"A budget of {config.budget} is only {max(0.0, steps):.1f} steps of {size} images here"
        raise ConfigError(f"{few}. Give more time, or a smaller --image-size, --batch-size or --encoder.")
    old = {"batch_size": usual.batch_size, "image_size": usual.image_size[0], "knn.times": wanted}
    now = {"batch_size": size, "image_size": side, "knn.times": times}
    changes = [f"{name} is {now[name]} instead of {old[name]}" for name in old if now[name] != old[name]]
    if changes:
        logger.warning("To fit a budget of %s, %s.", config.budget, ", ".join(changes))
    epochs, knn = (int(steps) * size + 0.5) / plan.images, replace(config.knn, times=times)
    found = fit(replace(config, budget=None, epochs=epochs, knn=knn))
    if plan.in_memory and not derive(found).in_memory:  # too few epochs to decode all first
        return fitted(replace(config, data=replace(config.data, in_memory=False)), derive, measure, processes)
    return found


def sides(config: TrainConfig, usual: Plan) -> Iterator[int]:
    """Sides of views from the usual one down; one that was requested stays."""
    side = usual.image_size[0]
    # A small view would get another network.
    least = LEAST_SIDE if side <= SMALL_SIDE else SMALL_SIDE + 1
    yield side
    while config.image_size is None and side // 2 >= least:
        side //= 2
        yield side


def batch_sizes(config: TrainConfig, usual: Plan, processes: int = 1) -> Iterator[int]:
    """Sizes of batches from the usual one down; one that was requested stays."""
    size, parts = usual.batch_size, usual.accumulation * processes
    yield size
    while config.batch_size is None and (half := size // 2 // parts * parts) >= max(LEAST_BATCH, 2 * parts):
        size = half
        yield size
