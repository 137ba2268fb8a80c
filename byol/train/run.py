"""A whole run, from images to an encoder file. Read `whole_run` from top to bottom: it tells it all."""

import copy
import json
import textwrap
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from byol.data.images import Images
from byol.data.pairs import TwoViews
from byol.data.samples import Samples
from byol.data.workers import never
from byol.disk import write_text
from byol.encoders.encoder import Encoder, is_sound, save_encoder
from byol.encoders.load import load_encoder
from byol.errors import ByolError, CollapseError, ProcessLost, Stopped, TrainingError
from byol.evaluation.online import OnlineProbe, ProbedLearner
from byol.evaluation.score import Score, read_scores, write_scores
from byol.method.draws import Stream, seed_of
from byol.train import checkpoint
from byol.train.checkpoint import Saver
from byol.train.config import TrainConfig
from byol.train.log import BadImages, RunLog, duration
from byol.train.loggers import Loggers
from byol.train.monitor import Monitor, step_signs
from byol.train.outcome import Verdict, trouble, verdict_of
from byol.train.plan import Plan, counted
from byol.train.run_folder import RunFolder
from byol.train.setup import Setup, split, together
from byol.train.signals import StopSignals
from byol.train.source import put_in_place
from byol.train.step import build_optimizer, steps
from byol.train.stopwatch import Stopwatch, to_metrics
from byol.world import World

HOURS = 3  # that the other processes wait while rank 0 reads, looks or saves


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run."""

    folder: Path
    encoder: Encoder
    plan: Plan
    score: Score | None  # kNN of the hold-out set, when the images carry labels
    verdict: Verdict | None  # None of a run whose metrics are gone
    images: Images | Samples  # all of them, the hold-out set too

    def __repr__(self) -> str:
        knn = "" if self.score is None else f", kNN {100 * self.score.value:.1f} %"
        return f"Run({str(self.folder)!r}: {self.plan.encoder}, {self.plan.total_steps:,} steps{knn})"


def pretrain(
    encoder: str | nn.Module | None, images: Any, config: TrainConfig, views: TwoViews | None = None
) -> Run:
    """Train an encoder on unlabelled images; a run that was stopped or killed is continued bit for bit.

    `encoder` is a name (see `build_encoder`), a module of your own, of which `config.hidden_layer` gives the
    representation, or None for `config.encoder`. `images` is anything `open_images` takes.

    With `views`, a function of one sample that gives two views of it, `images` is anything `Samples` takes
    (sound, series, tables, volumes), and the encoder is a module. What the function draws from torch, numpy
    or Python's `random` follows from the seed. To continue such a run, give the same function.

    Sets torch's random state, and with `views` numpy's and Python's. Raises ConfigError, DataError,
    CheckpointError, TrainingError, CollapseError after saving when the encoder has collapsed, and Stopped
    after saving when a signal asked to stop.
    """
    stop = StopSignals()
    with World.join(config.device, hours=HOURS) as world, world.with_one_voice():
        with world.agreeing():
            setup = Setup.of(encoder, images, config, stop.check, world, views)
        return whole_run(setup, stop)


def whole_run(setup: Setup, stop: StopSignals) -> Run:
    """A run of what was set up. Several processes train as one; whatever else there is to do rank 0 does."""
    config, images, world, folder = setup.config, setup.images, setup.world, RunFolder(setup.config.out)
    with folder.held(world), stop:
        with world.agreeing():
            plan = world.first(lambda: folder.stored_plan(config, images, world)) or setup.new_plan()
            learner = setup.learner(plan)
            trained_encoder = setup.encoder(learner, plan)
            checksum = world.first(lambda: folder.record(plan, config, images, world))
            rows, hold_out_rows = split(len(images), plan)
            probe = None
            if config.probe.online:
                probe = OnlineProbe(learner, images.subset(rows), seed_of(plan.seed, Stream.PROBE))
            trained = ProbedLearner(learner, probe)
            optimizer = build_optimizer(learner, plan, probe)
            saver = Saver(folder.checkpoints, trained, optimizer, checksum, config, world)
            world.done["steps"] = start = saver.restore()
            if plan.init and start == 0:
                put_in_place(learner, plan, setup.source)
        forward = setup.distributed(trained)
        if world.rank > 0:
            found: list[tuple[str, str]] = []  # unreadable images
            images.release()
            batches = setup.batches(rows, plan, learner, start, lambda *one: found.append(one), probe)
            with closing(batches):
                fed = together(world, batches, found)
                for result in steps(learner, fed, optimizer, plan, start, forward):
                    world.done["steps"] = result.step
            knn, verdict, whitened = world.first(lambda: (None, None, None))
            trained_encoder = trained_encoder if whitened is None else whitened.to(world.device)
            return Run(folder.path, trained_encoder.eval(), plan, knn, verdict, images)
        watch = Stopwatch(world.device, setup.started)
        watch.follow(learner, forward, optimizer)
        with world.telling():
            saver.check_room()
            bad = BadImages(folder.bad_files, images, config.data.max_bad)
            looked_at = images, (rows, hold_out_rows)
            monitor = Monitor(learner, trained_encoder, *looked_at, plan, config.knn, bad, probe, setup.views)
            images.release()  # what was read until now is not needed as it was read
        batches = setup.batches(rows, plan, learner, start, bad, probe, watch.begin)
        fed = together(world, batches, bad=bad, begin=watch.begin)
        loggers = Loggers(config.log, folder, plan)
        log = RunLog(folder.metrics, plan, start, watch, loggers, folder.transcript, folder.time)
        finished = start == plan.total_steps and is_sound(folder.encoder)
        began = time.perf_counter()

        with closing(batches), log:
            log.say(f"run        {folder.path}" + (f", continued at step {start:,}" if start else ""))
            log.say(*plan.lines())
            if world.size > 1:
                share = plan.micro_batch_size // world.size
                log.say(f"processes  {world.size}, each with {share} images of a micro-batch")
            done = start
            try:
                with world.telling(), watch.during("looks"):
                    if start == 0:
                        log.write(monitor.look(0, log.begin, stop.check))
                    warned = "" if finished else heed_collapse(log, config)
                for result in log.following(steps(learner, fed, optimizer, plan, start, forward)):
                    done = world.done["steps"] = result.step
                    last = done == plan.total_steps
                    with world.telling(), watch.during("looks"):
                        if done % plan.log_every_steps == 0 or last:
                            log.write(
                                log.metrics(result) | step_signs(learner) | (probe.metrics() if probe else {})
                            )
                        if monitor.due(done):
                            log.write(monitor.look(done, log.begin, never if last else stop.check))
                        if log.lines and log.lines[-1]["step"] == done:
                            warned = heed_collapse(log, config, warned)
                    with world.telling(), watch.during("saving"):
                        if saver.due(done, plan.save_every_steps) or last:
                            saver.save(done)
            except ByolError as failure:
                # A signal, a dead worker, too many bad images: the steps done are good.
                spoiled = isinstance(failure, TrainingError) and not isinstance(failure, CollapseError)
                if done == start or spoiled or isinstance(failure, ProcessLost):
                    raise
                with watch.during("saving"):
                    saved, place = saver.save(done), f"step {done:,} of {plan.total_steps:,}"
                if not isinstance(failure, Stopped):
                    raise
                if saved:
                    again = "The same command continues from there."
                    failure.args = (f"Stopped by {failure.by} and saved at {place}. {again}",)
                    raise
                good = checkpoint.last_good(folder.checkpoints)
                raise ByolError(f"Stopped by {failure.by}, but {place} could not be saved. {good}") from None
            with world.telling():
                verdict = verdict_of(log.lines, plan)
                if finished:
                    log.say(f"finished   already, at step {start:,}; nothing is left to do{bad}")
                    if plan.whiten:
                        trained_encoder = load_encoder(folder.encoder).to(world.device)
                else:
                    if plan.whiten:
                        with watch.during("looks"):
                            trained_encoder = monitor.whitened()
                    if verdict is not None:  # before the encoder, whose file says that the run has finished
                        write_text(folder.verdict, json.dumps(asdict(verdict), indent=1))
                    with watch.during("saving"):
                        save_encoder(trained_encoder, folder.path)
                    write_text(folder.time, json.dumps(to_metrics(watch.seconds())))
                    took = duration(time.perf_counter() - began)
                    log.say(f"finished   {counted(plan.total_steps - start, 'step')} in {took}{bad}")
                    if verdict is not None:
                        log.say(*textwrap.wrap(f"verdict    {verdict}", 110, subsequent_indent=" " * 11))
        with world.telling():
            if plan.hold_out_images and not own_scores(folder):
                if not monitor.scores:  # of a run that was killed between its last checkpoint and here
                    monitor.look(plan.total_steps, log.begin)
                write_scores(monitor.scores, folder.scores)
        whitened = copy.deepcopy(trained_encoder).cpu() if plan.whiten and world.size > 1 else None
        knn = own_scores(folder).get("knn")
        world.first(lambda: (knn, verdict, whitened))
        return Run(folder.path, trained_encoder.eval(), plan, knn, verdict, images)


def heed_collapse(log: RunLog, config: TrainConfig, warned: str = "") -> str:
    """Say that a run goes wrong, unless it was `warned` of that; the state it is in, or "".

    Raises CollapseError when it has collapsed, unless it is to go on.
    """
    found = trouble(log.lines)
    if found is None:
        return ""
    if found.state == "collapsed" and config.on_collapse == "stop":
        goes_on = "To train on all the same, repeat the command with --on-collapse warn."
        raise CollapseError(f"The encoder has collapsed: {found.evidence}. {found.remedy} {goes_on}")
    if found.state != warned:
        log.say(f"warning    {found}")
    return found.state


def own_scores(folder: RunFolder) -> dict[str, Score]:
    """The scores that the run itself has written; those of `byol evaluate` name their encoder."""
    scores = read_scores(folder.scores) if folder.scores.exists() else []
    return {score.protocol: score for score in scores if not score.encoder_checksum}
