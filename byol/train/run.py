"""A whole run, from images to an encoder file. Read `pretrain` from top to bottom: it is the table of contents."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from byol.data.batches import Batch, BatchPlan, load_resident, resident_batches, streamed_batches
from byol.data.images import Images, open_images
from byol.encoders.encoder import FILE, Encoder, EncoderInfo, check_savable, save_encoder
from byol.errors import ConfigError
from byol.evaluation.online import OnlineProbe, watching
from byol.evaluation.score import Score, write_scores
from byol.method.byol import BYOL
from byol.method.draws import Stream, seed_of, uniforms
from byol.models.build import build_encoder
from byol.train import checkpoint
from byol.train.config import TrainConfig
from byol.train.failures import explained
from byol.train.folder import claim
from byol.train.log import BadImages, RunLog, duration
from byol.train.monitor import Monitor
from byol.train.optim import build_optimizer
from byol.train.pace import Pace, Timed
from byol.train.plan import Plan
from byol.train.saving import Saver
from byol.train.signals import StopSignals
from byol.train.start import planned, record
from byol.train.step import steps
from byol.world import World

BadNames = Callable[[str, str], None]  # is told the name of an unreadable image, and why


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    encoder: Encoder
    plan: Plan
    score: Score | None  # kNN of held-out images, when the images carry labels


def pretrain(encoder: str | nn.Module | None, images: Any, config: TrainConfig) -> Run:
    """Train an encoder on unlabelled images; a run that was stopped or killed in `config.out` is continued bit for bit.

    `encoder` is a name (see `build_encoder`), a module of your own whose output or `config.hidden_layer` is the
    representation, or None for `config.encoder`. `images` is anything `open_images` takes. Sets torch's random state.
    Raises ConfigError, DataError, CheckpointError, TrainingError, and Stopped after saving when a signal asked to stop.
    """
    if isinstance(encoder, str):
        config = replace(config, encoder=encoder)
    own = encoder if isinstance(encoder, nn.Module) else None
    if own is not None:
        check_own(config)
    world = World.join(config.device, alone=True)
    source = images if isinstance(images, Images) else open_images(images, **opening(config))

    with claim(Path(config.out)) as folder, StopSignals() as stop, explained(folder):
        checkpoint.sweep(folder, folder / "checkpoints")
        plan = planned(
            folder,
            config,
            own,
            source,
            world,
            lambda draft: seconds_per_step(draft, config, own, source, world),
        )
        learner = build_learner(plan, config, own, world)
        encoder = encoder_of(learner, plan, own)
        check_eval_size(encoder, plan)
        record(folder, plan, config, source, world)
        train_rows, held_out_rows = split(len(source), plan)
        probe = (
            OnlineProbe(learner, source.subset(train_rows), seed_of(plan.seed, Stream.PROBE))
            if config.probe.online
            else None
        )
        trained = nn.ModuleDict(
            {"learner": learner} if probe is None else {"learner": learner, "probe": probe}
        )
        optimizer = build_optimizer(learner, plan, probe)
        saver = Saver(folder, trained, optimizer, plan, config)
        start = saver.restore()
        monitor = Monitor(encoder, source, train_rows, held_out_rows, plan, config.knn, probe)
        source.release()  # what was read until now is not needed as it was read
        bad = BadImages(folder, len(source), config.data.max_bad)
        batches = Timed(open_batches(source.subset(train_rows), plan, config, world, start, bad, probe))

        with closing(batches), watching(learner, probe), RunLog(folder, plan.total_steps, start) as log:
            log.say(f"run        {folder}" + (f", continued at step {start:,}" if start else ""))
            log.say("\n".join(plan.lines()))
            pace = Pace(plan, start)
            for result in log.following(steps(learner, batches, optimizer, plan, start, probe)):
                stop.wait_for_steps()
                last = result.step == plan.total_steps
                if result.step % plan.log_every_steps == 0 or last:
                    log.write(pace.metrics(result, batches.waited) | (probe.metrics() if probe else {}))
                if monitor.due(result.step):
                    log.write(monitor.look(result.step, None if last else stop.wanted))
                stopping = stop.wanted() and not last
                saved = (saver.due(result.step) or last or stopping) and saver.save(result.step)
                if stopping:
                    raise stop.ended(
                        result.step, plan.total_steps, saved, checkpoint.last_good(folder / "checkpoints")
                    )
            log.say(f"finished   {plan.total_steps - start:,} steps in {duration(pace.elapsed())}")
        return finish(folder, encoder, plan, monitor)


def check_own(config: TrainConfig) -> None:
    """Raise ConfigError for settings that build an encoder where there is one already."""
    unused = [
        *config.model.encoder_options(),
        *(["target_init"] if config.model.target_init == "independent" else []),
    ]
    if unused:
        raise ConfigError(
            f"The encoder is a module of your own, so model.{' and model.'.join(unused)} cannot apply. Leave them out, or give "
            "the encoder as 'package.module:function'."
        )


def opening(config: TrainConfig) -> dict[str, Any]:
    """How the images are opened for a run."""
    return {"channels": config.data.channels, "max_pixels": config.data.max_pixels}


def build_learner(plan: Plan, config: TrainConfig, own: nn.Module | None, world: World) -> BYOL:
    """The pair of networks at step 0, a function of the plan's seed, on the device and laid out for fast convolutions."""

    def network(stream: Stream) -> nn.Module:
        torch.manual_seed(seed_of(plan.seed, stream))
        return build_encoder(
            plan.encoder, channels=plan.channels, image_size=plan.image_size, **plan.encoder_options
        )

    other = network(Stream.TARGET) if config.model.target_init == "independent" else None
    net = own if own is not None else network(Stream.ENCODER)
    torch.manual_seed(seed_of(plan.seed, Stream.HEADS))
    learner = BYOL(
        net,
        plan.image_size,
        config.hidden_layer,
        projection_size=config.model.projection_size,
        projection_hidden_size=config.model.projection_hidden_size,
        channels=plan.channels,
        views=config.views,
        target_net=other,
        joint_batchnorm=config.model.joint_batchnorm,
    )
    return learner.to(world.device).to(memory_format=torch.channels_last)


def split(count: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, both sorted: which are held out follows from the seed alone."""
    shuffled = uniforms((plan.seed, Stream.HOLD_OUT, torch.arange(count)), 1)[:, 0].argsort(stable=True)
    return shuffled[plan.held_out :].sort().values, shuffled[: plan.held_out].sort().values


def open_batches(
    images: Images,
    plan: Plan,
    config: TrainConfig,
    world: World,
    start: int,
    bad: BadNames,
    probe: OnlineProbe | None = None,
) -> Generator[Batch]:
    """The run's micro-batches from step `start` on, by the plan's route. Nothing is read before the first is asked for."""
    what = BatchPlan(
        plan.seed, len(images), plan.batch_size, plan.accumulation, plan.image_size, config.views
    )

    def report(index: int, reason: str) -> None:
        bad(images.name(index), reason)
        if probe is not None:
            probe.leave_out(index)

    if plan.in_memory:
        pixels = load_resident(images, report).to(world.device)
        images.release()
        yield from resident_batches(pixels, what, start)
    else:
        yield from streamed_batches(
            images,
            what,
            channels=plan.channels,
            device=world.device,
            workers=plan.workers,
            steps=range(start, plan.total_steps),
            report=report,
        )


def seconds_per_step(
    draft: Plan, config: TrainConfig, own: nn.Module | None, source: Images, world: World
) -> float:
    """Time a few real steps of a draft plan on throw-away networks, for a run that is given a time instead of a length."""
    import copy

    draft = replace(draft, total_steps=max(draft.total_steps, 8))
    learner = build_learner(draft, config, copy.deepcopy(own), world)
    rows, _ = split(len(source), draft)
    sample = source.subset(rows[: max(4096, draft.batch_size)])
    batches = open_batches(
        sample, draft, config, world, 0, lambda name, reason: None
    )  # the run itself will report them
    times = []
    for _ in steps(learner, batches, build_optimizer(learner, draft), draft):
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        if (len(times) >= 4 and times[-1] - times[0] > 5) or len(times) == 8:
            break
    # The first step warms up; the mean of the others includes what data and the machine's noise cost.
    return (times[-1] - times[0]) / (len(times) - 1)


def encoder_of(learner: BYOL, plan: Plan, own: nn.Module | None) -> Encoder:
    """The online encoder as it will be saved; it shares the learner's weights, so it is always the newest."""
    assert learner.views is not None
    network = learner.online.encoder
    check_savable(network.net)
    info = EncoderInfo.of(
        network,
        None if own is not None else plan.encoder,
        plan.encoder_options,
        image_size=plan.eval_size,
        channels=plan.channels,
        mean=learner.views.mean,
        std=learner.views.std,
        features=learner.representation_size,
    )
    return Encoder(network, info)


def check_eval_size(encoder: Encoder, plan: Plan) -> None:
    """Try one pass at another size than that of training. Raises ConfigError when the network cannot make it."""
    if plan.eval_size == plan.image_size:
        return
    try:
        encoder(
            torch.zeros(
                (2, plan.channels, *plan.eval_size),
                dtype=torch.uint8,
                device=next(encoder.parameters()).device,
            )
        )
    except (RuntimeError, ValueError, AssertionError) as failure:
        raise ConfigError(
            f"{plan.encoder} takes images of {plan.image_size[0]} pixels and none of {plan.eval_size[0]} ({failure}). Leave "
            "--eval-size out."
        ) from failure


def finish(folder: Path, encoder: Encoder, plan: Plan, monitor: Monitor) -> Run:
    """Write the encoder file and the run's own score."""
    if not monitor.scores:  # the run had been finished before
        monitor.look(plan.total_steps)
    elif not (folder / FILE).exists():
        write_scores(monitor.scores, folder / "scores.jsonl")
    save_encoder(encoder, folder)
    return Run(folder, encoder.eval(), plan, monitor.scores.get("knn"))
