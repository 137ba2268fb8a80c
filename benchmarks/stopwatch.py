"""What it costs to tell where the time of a run went: its steps with a stopwatch beside the same without one.

    python benchmarks/stopwatch.py [ROUNDS]

The small encoder at an eighth of its width, 16 images of 24 pixels in a batch: steps that are shorter than
those of any run that learns. On a CPU processor time is compared, which other programs do not count into; on
a GPU the clock.
"""

import sys
import time
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from measure import machine, now

from byol import BYOL, TrainConfig, build_encoder, steps
from byol.data.batches import Batches, BatchPlan, Cropped, untimed
from byol.evaluation.online import ProbedLearner
from byol.train.plan import ImageFacts, plan_run
from byol.train.step import StepResult, build_optimizer
from byol.train.stopwatch import Stopwatch
from byol.world import World

SIZE, BATCH, WIDTH, STEPS = 24, 16, 8, 2  # pixels, images, channels of the first layer, steps in a turn


def running(watch: Stopwatch | None) -> Iterator[StepResult]:
    world = World.join(None)
    config = TrainConfig("unused", encoder="convnet", image_size=SIZE, batch_size=BATCH, epochs=10_000)
    plan = plan_run(config, ImageFacts(100 * BATCH, (SIZE, SIZE), 3, False), world)
    torch.manual_seed(0)
    learner = BYOL(build_encoder("convnet", width=WIDTH), SIZE, None, 32, 64).to(world.device)
    learner = learner.to(memory_format=torch.channels_last)
    crops = torch.randint(256, (BATCH, 2, 3, SIZE, SIZE), dtype=torch.uint8, device=world.device)
    forward, optimizer = ProbedLearner(learner), build_optimizer(learner, plan)
    begin = untimed
    if watch is not None:
        watch.follow(learner, forward, optimizer)
        begin = watch.begin
    batches = Batches(
        repeat(Cropped(crops, torch.arange(BATCH))),
        BatchPlan(plan.seed, plan.images, BATCH, 1, learner.views),
        begin=begin,
    )
    for result in steps(learner, batches, optimizer, plan, forward=forward):
        begin("rest")
        yield result


def seconds() -> float:
    return now() if torch.cuda.is_available() else time.process_time()


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    device = World.join(None).device
    ways = {"bare": running(None), "watched": running(Stopwatch(device))}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name in sorted(ways, reverse=number % 2 == 1):  # by turns the first
            began = seconds()
            for _ in range(STEPS):
                next(ways[name])
            if number >= 2:
                took[name].append((seconds() - began) / STEPS)
    bare, watched = (np.array(took[name]) for name in ("bare", "watched"))
    draws = np.random.default_rng(0).integers(0, rounds, (2_000, rounds))
    ratios = np.median(watched[draws] / bare[draws], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    print(machine())
    print(f"a step {1000 * np.median(bare):.2f} ms, with a stopwatch {1000 * np.median(watched):.2f} ms")
    print(f"ratio {np.median(watched / bare):.4f} ({low:.4f} to {high:.4f}, {rounds} rounds in turns)")
    watch, count = Stopwatch(device), 20_000
    began = seconds()
    for _ in range(count):
        watch.begin("views")
    print(f"a mark {1e6 * (seconds() - began) / count:.2f} us; a step has nine")


if __name__ == "__main__":
    main()
