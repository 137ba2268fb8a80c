"""One NVIDIA card in under ten minutes: is it right, how near is it to the card's limit, does it learn?

    python benchmarks/gpu.py                                            # random pixels; no learning run
    python benchmarks/gpu.py TRAIN.npz TEST.npz --budget 4m    # x uint8 (N, H, W, 3) and y, as CIFAR-10's
    python benchmarks/gpu.py --small                           # seconds on a CPU: shows that it still runs

Needs torch, numpy, Pillow, safetensors, rich and the package itself (run it in the repository's root).
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from measure import alternate, machine, now, table

from byol import BYOL, StepResult, TrainConfig, build_encoder, evaluate, open_images, pretrain, steps
from byol.data.batches import Batches, BatchPlan, Cropped
from byol.train.plan import ImageFacts, Plan, plan_run
from byol.train.step import build_optimizer
from byol.world import Precision, World, autocast


@dataclass(frozen=True)
class Case:
    """An encoder at a size."""

    encoder: str
    size: int
    batch: int
    options: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return f"{self.encoder} at {self.size}, batch {self.batch}"


CASES = (Case("resnet50", 224, 256), Case("resnet18", 32, 1024, (("stem", "small"),)))
SMALL_CASES = (Case("convnet", 16, 8, (("width", 8),)),)


@dataclass
class Bench:
    """A learner on its device, and the numbers of its run."""

    learner: BYOL
    optimizer: torch.optim.Optimizer
    plan: Plan
    crops: torch.Tensor  # uint8 (B, 2, 3, h, w)

    @classmethod
    def of(cls, case: Case, precision: Precision | None = None, *, compiled: bool = False) -> "Bench":
        world = World.join(None)
        config = TrainConfig(
            "unused",
            encoder=case.encoder,
            image_size=case.size,
            batch_size=case.batch,
            epochs=10_000,
            precision=precision,
        )
        plan = plan_run(config, ImageFacts(100 * case.batch, (case.size, case.size), 3, False), world)
        torch.manual_seed(0)
        learner = BYOL(build_encoder(case.encoder, **dict(case.options)), case.size, None).to(world.device)
        learner = learner.to(memory_format=torch.channels_last)
        if compiled:
            learner.compile()
        generator = torch.Generator().manual_seed(0)
        crops = torch.randint(
            256, (case.batch, 2, 3, case.size, case.size), dtype=torch.uint8, generator=generator
        )
        return cls(learner, build_optimizer(learner, plan), plan, crops.to(world.device))

    def steps(self) -> Callable[[], StepResult]:
        """Each call does one whole step of a run: views, passes, update, target."""
        assert self.learner.views is not None
        what = BatchPlan(self.plan.seed, self.plan.images, len(self.crops), 1, self.learner.views)
        batches = Batches(repeat(Cropped(self.crops, torch.arange(len(self.crops)))), what)
        running = steps(self.learner, batches, self.optimizer, self.plan)
        return lambda: next(running)

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.learner.views is not None
        return self.learner.views.finish(self.crops, seed=0, step=0)

    def loss(self) -> torch.Tensor:
        """The loss of the first step's views, in the plan's precision, and its gradients."""
        self.learner.zero_grad(set_to_none=True)
        view1, view2 = self.views()
        with autocast(self.crops.device, self.plan.precision):
            loss: torch.Tensor = self.learner(view1, view2)
        loss.backward()
        return loss.detach()


def correctness(case: Case) -> None:
    """One step's loss and gradient in bf16 and compiled, beside fp32 and eager."""
    reference = Bench.of(case, "fp32")
    loss, slopes = reference.loss(), gradient(reference)
    del reference
    rows = [["fp32, eager", f"{loss:.5f}", "", ""]]
    for name, precision, compiled in (("bf16, eager", "bf16", False), ("fp32, compiled", "fp32", True)):
        bench = Bench.of(case, precision, compiled=compiled)
        found, ours = bench.loss(), gradient(bench)
        cosine = torch.nn.functional.cosine_similarity(slopes, ours, dim=0)
        rows.append([name, f"{found:.5f}", f"{abs(found - loss) / loss:.1e}", f"{cosine:.4f}"])
        del bench
    table(f"correctness, {case}", ["", "loss", "off fp32 by", "cosine of the gradients"], rows)


def gradient(bench: Bench) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in bench.learner.parameters() if p.grad is not None]).double()


def peak(precision: Precision, size: int) -> float:
    """The most operations per second that a matrix product reaches here."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=World.join(None).device, dtype=dtype) for _ in range(2))
    seconds = alternate({"product": lambda: a @ b}, repeats=9)["product"]
    return 2 * size**3 / seconds


def speed(case: Case, product: int, repeats: int) -> None:
    """Steps per second and share of the card's measured peak; the views' share; waits a step; peak memory."""
    rows = []
    with FlopCounterMode(display=False) as counter:
        Bench.of(case).loss()
    for name, compiled in (("eager", False), ("compiled", True)):
        bench = Bench.of(case, compiled=compiled)
        step = bench.steps()
        torch.cuda.reset_peak_memory_stats() if torch.cuda.is_available() else None
        seconds = timed(step, repeats)
        rate = counter.get_total_flops() / seconds
        views = timed(bench.views, repeats)
        rows.append(
            [
                f"{name}, {bench.plan.precision}",
                f"{1 / seconds:.2f}",
                f"{case.batch / seconds:,.0f}",
                f"{rate / 1e12:.1f}",
                f"{100 * rate / peak(bench.plan.precision, product):.0f} %",
                f"{100 * views / seconds:.1f} %",
                f"{waits(step):.1f}",
                f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if torch.cuda.is_available() else "",
            ]
        )
        del bench, step
    header = ["", "steps/s", "images/s", "TFLOP/s", "of the peak", "views", "waits per step", "GiB"]
    table(f"speed, {case}", header, rows)


def timed(action: Callable[[], object], repeats: int) -> float:
    """Seconds of one call among several that are only waited for at the end, as in a run."""
    for _ in range(3):
        action()
    started = now()
    for _ in range(repeats):
        action()
    return (now() - started) / repeats


def waits(step: Callable[[], object], repeats: int = 5) -> float:
    """How often a step waits for the card, by torch's own count."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(repeats):
            step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught) / repeats


def learning(train: str | None, test: str | None, budget: str, case: Case) -> None:
    """A run with checkpoints on labelled images, and its scores."""
    with tempfile.TemporaryDirectory() as name:
        if train is None or test is None:
            x, y = (
                torch.randint(256, (200, case.size, case.size, 3), dtype=torch.uint8).numpy(),
                [n % 2 for n in range(200)],
            )
            images, held_out = [list(zip(x, y, strict=True))] * 2
            config = TrainConfig(name, encoder=case.encoder, image_size=case.size, batch_size=16, epochs=1)
        else:
            images, held_out = open_images(train), open_images(test)
            config = TrainConfig(
                name, encoder=case.encoder, image_size=case.size, batch_size=512, budget=budget
            )
        started = now()
        run = pretrain(None, images, config)
        print(
            f"\nlearning   {run.plan.epochs:.0f} epochs, {run.plan.total_steps:,} steps "
            f"in {now() - started:.0f} s"
        )
        print(f"checkpoint {sorted(path.name for path in (run.folder / 'checkpoints').iterdir())[-1]}")
        for score in evaluate(run.encoder, train=images, test=held_out).values():
            print(
                f"{score.protocol:10} {100 * score.top1:.2f} % "
                f"(95 %: {100 * score.low:.2f} to {100 * score.high:.2f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", nargs="?")
    parser.add_argument("test", nargs="?")
    parser.add_argument("--budget", default="4m")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.small:
        sys.exit("There is no GPU that torch can use here. --small runs on the CPU.")
    print(machine("numpy", "pillow"))
    for case in SMALL_CASES if given.small else CASES:
        correctness(case)
        speed(case, 256 if given.small else 8192, 2 if given.small else 20)
    if given.small or given.train:
        learning(given.train, given.test, given.budget, SMALL_CASES[0] if given.small else CASES[1])


if __name__ == "__main__":
    main()
