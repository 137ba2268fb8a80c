"""What a run is made of before its first step: `pretrain` and `prepare_loop` both begin here."""

import copy
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from byol.data.batches import (
    Batch,
    Batches,
    BatchPlan,
    Begin,
    Cropped,
    load_resident,
    resident_batches,
    streamed_batches,
    untimed,
)
from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.pairs import PairBatches, Pairs, TwoViews
from byol.data.samples import Samples, collated, on_device
from byol.data.workers import Poll, never
from byol.encoders.encoder import Encoder, EncoderInfo, check_savable
from byol.errors import ConfigError, DataError, complaint
from byol.evaluation.online import OnlineProbe, ProbedLearner
from byol.machine import usable_cores
from byol.method.byol import BYOL, evaluating
from byol.method.cpu import laid_out, wrong_in_bf16
from byol.method.draws import Stream, seed_of, uniforms
from byol.method.extra import local_size
from byol.method.hidden import OUTPUT
from byol.method.recompute import recompute
from byol.method.views import ViewConfig
from byol.models.build import build_encoder
from byol.train.config import DataConfig, ExtraConfig, TrainConfig, seconds_of
from byol.train.log import BadImages, say
from byol.train.loggers import check_installed
from byol.train.plan import ImageFacts, Plan, Speed, plan_run
from byol.train.run_folder import RunFolder
from byol.train.source import (
    adopted,
    preprocessing,
    put_in_place,
    read_source,
    source_views,
    started_from,
)
from byol.train.step import build_optimizer, steps
from byol.world import World


@dataclass(frozen=True)
class Setup:
    """What the caller gave, checked, opened and in its place."""

    config: TrainConfig
    own: nn.Module | None  # the caller's network; None to build one by its name
    images: Images | Samples
    world: World
    started: float  # by the monotonic clock
    poll: Poll = never
    views: TwoViews | None = (
        None  # the caller's, of samples of any kind; None for the built-in ones of images
    )

    @classmethod
    def of(
        cls,
        encoder: str | nn.Module | None,
        images: Any,
        config: TrainConfig,
        poll: Poll = never,
        world: World | None = None,  # by default this process alone
        views: TwoViews | None = None,
    ) -> "Setup":
        """Check what was given against one another and open the images, the same ones on all processes."""
        world = World.join(config.device, alone=True) if world is None else world
        started, data = time.monotonic(), config.data
        if world.rank == 0:  # which alone tells
            check_installed(config.log)
        if isinstance(encoder, nn.Module):
            unused = [f"model.{name}" for name in config.model.encoder_options()]
            unused += ["model.target_init"] if config.model.target_init == "independent" else []
            unused += ["encoder"] if config.encoder is not None else []
            unused += ["model.whiten"] if config.model.whiten else []
            if unused:
                raise ConfigError(
                    f"The encoder is a module of your own, so {' and '.join(unused)} cannot apply. Leave "
                    "them out, or give the encoder as 'package.module:function'."
                )
        elif encoder is not None:
            if config.encoder not in (None, encoder):
                raise ConfigError(f"The encoder is {encoder!r}, in config {config.encoder!r}. Give one.")
            config = replace(config, encoder=encoder)
        own = encoder if isinstance(encoder, nn.Module) else None
        if views is not None:
            check_own_views(config, own)
            images = images if isinstance(images, Samples) else Samples(images)
        else:
            # Open images stay as they are, but for what is requested here.
            images = open_images(
                images,
                channels=data.channels,
                max_pixels=data.max_pixels,
                min_side=data.min_side,
                truncated=data.truncated,
                black=data.black,
                white=data.white,
            )
        if world.size > 1:
            check_same(images, world)
        return cls(config, own, images, world, started, poll, views)

    def facts(self) -> ImageFacts:
        """What planning needs to know of the images."""
        images = self.images
        if isinstance(images, Samples):
            # As of gray images of several sizes: what is planned of images is dropped, in `of_samples`.
            return ImageFacts(len(images), None, 1, images.subset([0]).labels is not None)
        # Of a dataset that tells its labels with its images only, the first one is enough to know.
        labelled = images.subset([0]).labels is not None
        return ImageFacts(len(images), images.uniform_size(), images.channels, labelled, images.gray_share())

    @cached_property
    def source(self) -> Encoder:
        """The encoder to start from. Only a run without a checkpoint reads it."""
        return read_source(self.config, self.own)

    def new_plan(self) -> Plan:
        """A plan of what was given."""
        config = self.config
        if self.own is not None:  # so that nothing is planned as for an encoder of this package
            config = replace(config, encoder=type(self.own).__name__)
        if config.init is not None:
            assert isinstance(self.images, Images)
            config = adopted(config, self.source.info, self.images)
        plan = self.with_network(plan_run(config, self.facts(), self.world, self.speed))
        plan = self.with_right_gradients(plan)
        return self.world.first(lambda: plan)  # memory and arithmetic of processes may differ

    def with_right_gradients(self, plan: Plan) -> Plan:
        """A plan in fp32, of a network that a CPU does not train right in bf16.

        Raises ConfigError for such a network when bf16 was requested.
        """
        if (plan.device, plan.precision) != ("cpu", "bf16"):
            return plan
        network = self.own or build_encoder(
            plan.encoder, channels=plan.channels, image_size=plan.image_size, **plan.encoder_options
        )
        sizes = {plan.image_size, *([local_size(plan.image_size)] if plan.local_views else [])}
        tried = {f"views of {h}x{w}": torch.zeros(2, plan.channels, h, w) for h, w in sizes}
        if plan.own_views:
            tried = {"views of your own": self.example(plan.seed)}
        for views, inputs in tried.items():
            name = wrong_in_bf16(network, inputs)
            if name is None:
                continue
            if self.config.precision is not None:
                raise ConfigError(
                    f"precision is bf16, and {views} are too small for the kernel when they come to {name}, "
                    "whose gradient a CPU then computes wrong in bf16. Give --precision fp32, or a larger "
                    "--image-size."
                )
            return replace(plan, precision="fp32")
        return plan

    def with_network(self, plan: Plan) -> Plan:
        """A plan with the network that was given, or that of the weights to start from."""
        if self.views is not None:
            plan = plan.of_samples(self.config.workers or 0)
        return plan if self.config.init is None else started_from(plan, self.config, self.source)

    def learner(self, plan: Plan) -> BYOL:
        """The pair of networks at step 0, a function of the seed, laid out for fast convolutions."""

        def network(stream: Stream) -> nn.Module:
            torch.manual_seed(seed_of(plan.seed, stream))
            return build_encoder(
                plan.encoder, channels=plan.channels, image_size=plan.image_size, **plan.encoder_options
            )

        model = self.config.model
        target = network(Stream.TARGET) if model.target_init == "independent" else None
        net = network(Stream.ENCODER) if self.own is None else self.own
        torch.manual_seed(seed_of(plan.seed, Stream.HEADS))
        sizes = plan.projection_size, plan.projection_hidden_size
        layer = self.config.hidden_layer
        if plan.init:
            layer = plan.init["info"]["hidden_layer"] or OUTPUT
        given: dict[str, Any] = {
            "target_net": target, "joint_batchnorm": model.joint_batchnorm,
            "use_momentum": model.use_momentum,
            "linear_predictor": model.linear_predictor, "head_batchnorm": model.head_batchnorm,
            "ema_statistics": model.ema_statistics,
        }  # fmt: skip
        if plan.own_views:
            device = next((p.device for p in net.parameters()), self.world.device)
            learner = BYOL(
                net, None, layer, *sizes, example=on_device(self.example(plan.seed), device), **given
            )
        else:
            given |= {"channels": plan.channels, "extra": [*plan.predicted]}
            learner = BYOL(net, plan.image_size, layer, *sizes, views=source_views(plan, plan.views), **given)
        if plan.recompute:
            recompute(learner.online.encoder)
        learner = learner.to(self.world.device)
        return learner if plan.own_views else laid_out(learner)

    def example(self, seed: int) -> Any:
        """View 1 of a few samples, a batch: what the network is tried with."""
        assert isinstance(self.images, Samples)
        assert self.views is not None
        pairs = Pairs(self.images, self.views)
        return collated([pairs[index, seed][0] for index in range(min(2, len(self.images)))])

    def encoder(self, learner: BYOL, plan: Plan) -> Encoder:
        """The online encoder as it will be saved; it shares the learner's weights.

        Raises ConfigError for a network that cannot be saved, or cannot take images of all the plan's sizes.
        """
        network, views = learner.online.encoder, learner.views
        check_savable(network.net)
        if views is None:  # samples of any kind
            none: dict[str, Any] = {"image_size": (0, 0), "channels": 0, "mean": (), "std": ()}
            info = EncoderInfo.of(network, None, {}, features=learner.representation_size, **none)
            return Encoder(network, info)
        assert isinstance(self.images, Images)
        info = EncoderInfo.of(
            network, plan.encoder if self.own is None else None, plan.encoder_options,
            image_size=plan.eval_size, channels=plan.channels, mean=views.mean, std=views.std,
            features=learner.representation_size, levels=self.images.reading.levels,
            **preprocessing(plan),
        )  # fmt: skip
        encoder = Encoder(network, info)
        sizes = {"--eval-size": plan.eval_size}
        sizes |= {"--extra.local": local_size(plan.image_size)} if plan.local_views else {}
        for flag, size in sizes.items():
            if size == plan.image_size:
                continue
            images = torch.zeros((2, plan.channels, *size), device=self.world.device)
            try:
                with evaluating(network), torch.no_grad():
                    network(images)
            except (RuntimeError, ValueError, AssertionError) as failure:
                taken = f"images of {plan.image_size[0]} pixels and none of {size[0]}"
                reason = f"{plan.encoder} takes {taken} ({complaint(failure)})"
                raise ConfigError(f"{reason}. Leave {flag} out.") from failure
        return encoder

    def batches(
        self,
        rows: Tensor,
        plan: Plan,
        learner: BYOL,
        start: int = 0,
        bad: Callable[[str, str], None] | None = None,  # is told the name of an unreadable image, and why
        probe: OnlineProbe | None = None,
        begin: Begin = untimed,  # is told when images are waited for and when views are made
    ) -> Batches | PairBatches:
        """The run's micro-batches of some images from step `start` on. Nothing is read before the first."""
        images, device, world = self.images.subset(rows), self.world.device, self.world
        if isinstance(images, Samples):
            assert self.views is not None
            share = plan.micro_batch_size // world.size
            return PairBatches(
                Pairs(images, self.views), seed=plan.seed, batch_size=plan.batch_size,
                micro_batch_size=plan.micro_batch_size, steps=range(start, plan.total_steps),
                first=world.rank * share, share=share, device=device, workers=plan.workers, poll=self.poll,
                begin=begin,
            )  # fmt: skip
        assert learner.views is not None
        what = BatchPlan(
            plan.seed, len(images), plan.batch_size, plan.accumulation, learner.views,
            windows=None if plan.in_memory else images.windows(),
            extra_views=plan.extra_views(learner.views), rank=world.rank, ranks=world.size,
        )  # fmt: skip

        def report(index: int, reason: str) -> None:
            if bad is not None:
                bad(images.name(index), reason)
            if probe is not None:
                probe.leave_out(index)

        def cropped() -> Generator[Cropped]:
            if plan.in_memory and not plan.memory_side:
                pixels = load_resident(images, report, self.poll).to(device)
                images.release()
                yield from resident_batches(pixels, what, start, begin)
            else:
                source = images
                if plan.in_memory:
                    cores = max(1, usable_cores() // world.processes_here())
                    source = images.shrunk(plan.memory_side, cores, self.poll)
                yield from streamed_batches(
                    source, what, device=device, workers=plan.workers, steps=range(start, plan.total_steps),
                    report=report, poll=self.poll,
                )  # fmt: skip

        return Batches(cropped(), what, start, self.poll, begin)

    def speed(self, draft: Plan) -> Speed:
        """Time some real steps of a draft plan on throw-away networks, and how long images take to read."""
        assert self.config.budget is not None
        if self.world.rank == 0:
            say(f"measuring  steps of {draft.batch_size} images, to fit a budget of {self.config.budget}")
        draft = self.with_right_gradients(self.with_network(draft))
        allowed = min(10.0, seconds_of(self.config.budget) / 50)  # seconds
        learner = replace(self, own=copy.deepcopy(self.own)).learner(draft)
        forward = self.distributed(ProbedLearner(learner))
        rows = split(len(self.images), draft)[0][: 4 * draft.batch_size]
        ends: list[float] = []
        with closing(self.batches(rows, draft, learner)) as batches:
            fed = together(self.world, batches, patient=True)
            for _ in steps(learner, fed, build_optimizer(learner, draft), draft, 0, forward):
                if self.world.device.type == "cuda":
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())
                enough = len(ends) > 2 and ends[-1] - ends[1] > allowed
                if self.world.first(partial(bool, enough)):
                    break
        # Two steps warm up; the mean of the others includes what data and the machine's noise cost.
        step = (ends[-1] - ends[1]) / (len(ends) - 2)
        assert isinstance(self.images, Images)
        sample, began = rows[:64].tolist(), time.perf_counter()
        for index in sample:
            with suppress(BadImage):
                self.images.array(index)
        image = (time.perf_counter() - began) / len(sample)
        self.images.release()
        speed = Speed(step, image, time.monotonic() - self.started)
        return self.world.first(lambda: speed)

    def distributed(self, trained: ProbedLearner) -> nn.Module:
        """What calls the learner: itself, or DDP around it, which starts from rank 0's weights and averages
        gradients. BatchNorm shares its statistics, so no buffer has to be sent."""
        if self.world.size == 1:
            return trained
        ddp = DistributedDataParallel(trained, gradient_as_bucket_view=True)
        ddp.broadcast_buffers = False  # set here, where all versions of torch know it
        return ddp


def together(
    world: World,
    batches: Iterator[Batch],
    found: list[tuple[str, str]] | None = None,
    bad: Callable[[str, str], None] | None = None,
    patient: bool = False,
    begin: Begin = untimed,
) -> Iterator[Batch]:
    """Batches, each once every process has its part: what one fails with, or a signal to it, ends all.

    `found` is filled with the unreadable images of this process; rank 0 tells `bad` of them. Unless `patient`
    one that stands still is noticed soon, once it is known how long a batch takes. `begin` is told when the
    others' parts are waited for.
    """
    if world.size == 1:
        yield from batches
        return
    found = [] if found is None else found
    for count in itertools.count():
        with world.telling():
            batch = next(batches)
        begin("waiting")
        news = world.meet(news=found)
        found.clear()
        if news:
            with world.agreeing():
                for name, reason in news:
                    if bad is not None:
                        bad(name, reason)
        began = time.monotonic()
        yield batch
        if count == 1 and not patient:  # the first made everything ready
            world.expect(time.monotonic() - began)


def check_own_views(config: TrainConfig, own: nn.Module | None) -> None:
    """Raise ConfigError for what cannot apply to samples of any kind with views of the caller's own."""
    if own is None:
        raise ConfigError(
            "With views of your own the encoder is a module too: only you know what it takes. Give one; "
            "byol.build_encoder(name, channels=..., image_size=...) builds those that have names."
        )
    unused = [
        name
        for name in ("init", "kind", "image_size", "eval_size", "eval_crop", "budget")
        if getattr(config, name)
    ]
    usual = {"views": ViewConfig(), "extra": ExtraConfig(), "data": DataConfig()}
    unused += [name for name, default in usual.items() if getattr(config, name) != default]
    if unused:
        raise ConfigError(
            f"With views of your own {' and '.join(unused)} cannot apply. Leave that out: views are what "
            "your function gives, weights those of your network, and the length is given in epochs."
        )


def check_same(images: Images | Samples, world: World) -> None:
    """Raise DataError unless these images are those of rank 0. All processes call it."""
    if world.first(images.fingerprint) != images.fingerprint():
        others = f"Process {world.rank} finds other images than process 0 ({images.description})"
        raise DataError(f"{others}. Every machine needs the same ones, under the same names.")


def split(count: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Rows to train on and those of the hold-out set, both sorted; they follow from the seed alone."""
    shuffled = uniforms((plan.seed, Stream.HOLD_OUT, torch.arange(count)), 1)[:, 0].argsort(stable=True)
    return shuffled[plan.hold_out_images :].sort().values, shuffled[: plan.hold_out_images].sort().values


@dataclass(frozen=True)
class Loop:
    """What `steps` takes: steps(loop.learner, loop.batches, loop.optimizer, loop.plan)."""

    learner: BYOL
    batches: (
        Batches | PairBatches
    )  # close it when the loop is left early: worker processes may stand behind it
    optimizer: torch.optim.Optimizer
    plan: Plan


def prepare_loop(
    encoder: str | nn.Module | None, images: Any, config: TrainConfig, views: TwoViews | None = None
) -> Loop:
    """Prepare what `pretrain` would train, with the same numbers and order of images; you run the steps.

    Nothing is saved, scored or logged, but for unreadable images, which are listed in config.out. The
    hold-out set is left out here too. Sets torch's random state. Raises what `pretrain` does.
    """
    if config.probe.online:
        raise ConfigError("probe.online is on, but only pretrain trains the probe. Leave it out here.")
    if config.log:
        raise ConfigError("log is set, but only pretrain tells metrics. Leave it out here.")
    setup = Setup.of(encoder, images, config, views=views)
    plan = setup.new_plan()
    learner = setup.learner(plan)
    if plan.init:
        put_in_place(learner, plan, setup.source)
    rows, _ = split(len(setup.images), plan)
    folder = RunFolder(config.out)
    folder.path.mkdir(parents=True, exist_ok=True)
    bad = BadImages(folder.bad_files, setup.images, config.data.max_bad)
    return Loop(learner, setup.batches(rows, plan, learner, 0, bad), build_optimizer(learner, plan), plan)
