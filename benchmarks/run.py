"""End to end: `byol train` beside lightly's blocks in their documented loop, same images and encoder.

    pip install 'byol[bench]'
    python benchmarks/run.py TRAIN.parquet    # images per second, share of time not computing, memory
    python benchmarks/run.py TRAIN.parquet --test TEST.parquet --minutes 20    # both so long, then kNN

lightly's loop is the one of its documentation (examples/pytorch/byol.py): BYOLTransform at 32 pixels without
blur, batches of 256, SGD at 0.06, heads of 1024 and 256, the target updated with a cosine from 0.996; with 2
loader workers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, cycle, repeat
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import machine, table

from byol import TrainConfig, build_encoder, load_encoder, open_images, prepare_loop, steps
from byol.encoders.encoder import Encoder, EncoderInfo, save_encoder
from byol.evaluation.protocols import evaluate
from byol.method.hidden import HiddenLayer
from byol.settings import parse, preset_flags

BATCH, WORKERS, WARM_UP, WINDOW = 256, 2, 20, 10
# An epoch of the preset, with one look at the representation where the preset has ten in 24 epochs.
PRESET = ["--preset", "cifar10-cpu", "--epochs", "1", "--knn.hold-out-share", "0", "--knn.times", "1"]
FLAGS = [*PRESET, "--image-size", "32", "--batch-size", str(BATCH)]


class Pictures(torch.utils.data.Dataset[Any]):
    """Labelled PIL images, as torchvision's data sets hold them: lightly puts its views into `transform`."""

    def __init__(self, path: str) -> None:
        self.images = open_images(path)
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images.picture(index)), 0


def lightly_steps(path: str) -> Iterator[tuple[torch.nn.Module, int]]:
    """The documented loop; yields the backbone and the number of images of each step."""
    import copy

    from lightly.data import LightlyDataset
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule

    torch.manual_seed(0)
    backbone = build_encoder("convnet")
    width = backbone.num_features
    projector, predictor = BYOLProjectionHead(width, 1024, 256), BYOLPredictionHead(256, 1024, 256)
    backbone_momentum, projector_momentum = copy.deepcopy(backbone), copy.deepcopy(projector)
    deactivate_requires_grad(backbone_momentum)
    deactivate_requires_grad(projector_momentum)
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=32, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=32, gaussian_blur=0.0),
    )
    dataset = LightlyDataset.from_torch_dataset(Pictures(path), transform=transform)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=WORKERS
    )
    criterion = NegativeCosineSimilarity()
    parameters = [*backbone.parameters(), *projector.parameters(), *predictor.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.06)
    epochs = 10
    for epoch in range(2**31):
        momentum = cosine_schedule(min(epoch, epochs - 1), epochs, 0.996, 1)
        for batch in loader:
            view1, view2 = batch[0]
            update_momentum(backbone, backbone_momentum, m=momentum)
            update_momentum(projector, projector_momentum, m=momentum)
            prediction1, prediction2 = (
                predictor(projector(backbone(view).flatten(start_dim=1))) for view in (view1, view2)
            )
            projection1, projection2 = (
                projector_momentum(backbone_momentum(view).flatten(start_dim=1)).detach()
                for view in (view1, view2)
            )
            loss = 0.5 * (criterion(prediction1, projection2) + criterion(prediction2, projection1))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield backbone, len(view1)


def lightly_worker(path: str, seconds: float, out: Path, looks: int) -> None:
    """Run the loop for a time; print images per second and save the backbone `looks` times, evenly."""
    steps = lightly_steps(path)
    for _ in range(WARM_UP):
        next(steps)
    started, images, saved = time.perf_counter(), 0, 0
    while (elapsed := time.perf_counter() - started) < seconds:
        backbone, count = next(steps)
        images += count
        if looks and elapsed > seconds * (saved + 1) / (looks + 1):
            saved += 1
            save(backbone, out / f"{saved}")
    if looks:
        save(backbone, out / f"{looks + 1}")
    print(json.dumps({"images_per_second": images / elapsed, "images": images}))


def save(backbone: torch.nn.Module, folder: Path) -> None:
    """An encoder file of lightly's backbone, with the same preprocessing as ours."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    size = (32, 32)
    network = HiddenLayer(backbone)
    info = EncoderInfo.of(
        network,
        "convnet",
        {},
        image_size=size,
        channels=3,
        mean=mean,
        std=std,
        features=backbone.num_features,
    )
    folder.mkdir(parents=True)
    save_encoder(Encoder(network, info), folder)


def bare_worker(path: str, seconds: float, out: Path) -> None:
    """The run's own steps, in turn on batches as they come and on one that is there; print both speeds."""
    config = parse(
        TrainConfig,
        ["--out", str(out), *preset_flags("cifar10-cpu"), *FLAGS[2:]],
        prog="run.py",
        description="",
    )
    config = replace(config, epochs=1000)
    loop = prepare_loop(None, path, config)
    source = [loop.batches.cropped, repeat(next(loop.batches.cropped))]
    turns = chain.from_iterable(repeat(which, WINDOW) for which in cycle((0, 1)))
    loop.batches.cropped = (next(source[which]) for which in turns)
    running = steps(loop.learner, loop.batches, loop.optimizer, loop.plan)
    rates: list[list[float]] = [[], []]
    began = time.perf_counter()
    for which in cycle((0, 1)):
        started = time.perf_counter()
        for _ in range(WINDOW):
            next(running)
        rates[which].append(WINDOW * BATCH / (time.perf_counter() - started))
        if which and time.perf_counter() - began > seconds:
            break
    come, there = (median(values[1:]) for values in rates)  # the first window warms up
    print(json.dumps({"images_per_second": there, "as_they_come": come}))


def measured(command: list[str]) -> tuple[dict[str, Any], float]:
    """What a process printed last as JSON, and the peak memory in MiB of its largest process."""
    peak = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]); "
    peak += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    done = subprocess.run(
        [sys.executable, "-c", peak, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    *lines, last = done.stdout.splitlines()
    found = [line for line in lines if line.startswith("{")]
    return (json.loads(found[-1]) if found else {}), int(last) / 1024


def throughput(path: str, repeats: int = 3, seconds: float = 60) -> None:
    """Images per second of the preset, of it with lightly's views and batch, of bare steps, of lightly."""
    recipes = {
        "byol train, the preset (24 pixels, batch 128)": PRESET,
        "byol train, 32 pixels, batch 256": FLAGS,
    }
    names = [*recipes, "  its steps on a batch that is there", "lightly, 32 pixels, batch 256"]
    rates: dict[str, list[float]] = {name: [] for name in names}
    peaks: dict[str, list[float]] = {name: [] for name in names}
    waits: list[float] = []
    behind: list[float] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            found = [trained(path, flags, Path(name, who)) for who, flags in recipes.items()]
            for kind in ("--bare", "--worker"):
                worker = [
                    sys.executable,
                    __file__,
                    path,
                    kind,
                    "--seconds",
                    str(seconds),
                    "--out",
                    f"{name}/{kind}",
                ]
                found.append(measured(worker))
        for who, (result, memory) in zip(names, found, strict=True):
            rates[who].append(result["images_per_second"])
            peaks[who].append(memory)
        waits.append(found[0][0]["data_wait"])
        bare = found[2][0]
        behind.append(1 - bare["as_they_come"] / bare["images_per_second"])
    slowest = median(rates[names[-1]])
    rows = [
        [who, f"{median(values):.0f}", f"{median(values) / slowest:.2f}", f"{median(peaks[who]):,.0f}"]
        for who, values in rates.items()
    ]
    table("end to end", ["", "images/s", "over lightly", "peak MiB of a process"], rows)
    print(
        f"byol train waits for data {100 * median(waits):.1f} % of its time. In one process, in turn, "
        "steps on batches as they"
    )
    print(f"come are {100 * median(behind):.1f} % slower than on one that is there.")


def trained(path: str, flags: list[str], out: Path) -> tuple[dict[str, float], float]:
    """The rate and the waiting of a run's log lines in the middle, and its peak memory."""
    _, memory = measured([sys.executable, "-m", "byol", "train", path, "--out", str(out), *flags])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if "loss" in line][1:]  # the images are read during the first
    return {name: median(line[name] for line in later) for name in ("images_per_second", "data_wait")}, memory


def learning(path: str, test: str, minutes: float, looks: int = 4) -> None:
    """Both for the same minutes; kNN on the test images along the way and at the end."""
    bank_images, queries = open_images(path), open_images(test)
    with tempfile.TemporaryDirectory() as name:
        theirs, ours = Path(name, "lightly"), Path(name, "ours")
        worker = [
            sys.executable,
            __file__,
            path,
            "--worker",
            "--seconds",
            str(60 * minutes),
            "--looks",
            str(looks),
        ]
        result, _ = measured([*worker, "--out", str(theirs)])
        curve = [score(theirs / str(n + 1), bank_images, queries) for n in range(looks + 1)]
        print(
            f"lightly     {result['images']:,} images; kNN on the test images after each "
            f"{minutes / (looks + 1):g} minutes:"
        )
        print("  " + "  ".join(f"{value:.4f}" for value in curve))
        flags = ["--preset", "cifar10-cpu", "--epochs", "None", "--budget", f"{minutes}m"]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "byol", "train", path, "--out", str(ours), *flags], check=True)
        took = time.perf_counter() - started
        lines = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
        looked = [f"{line['knn_top1']:.4f} at {line['epoch']:.1f}" for line in lines if "knn_top1" in line]
        final = score(ours, bank_images, queries)
    print(
        f"byol train  {took / 60:.1f} minutes; kNN of the hold-out set, bank of 5,000, at epoch: "
        f"{', '.join(looked)}"
    )
    print(f"  kNN on the test images at the end: {final:.4f}, ahead by {final - curve[-1]:.4f}")


def score(folder: Path, bank: Any, queries: Any) -> float:
    """kNN of an encoder on the test images, the training images as bank."""
    encoder = load_encoder(folder)
    return evaluate(encoder, train=bank, test=queries, protocols="knn")["knn"].value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images")
    parser.add_argument("--test")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60, help=argparse.SUPPRESS)
    parser.add_argument("--looks", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        lightly_worker(given.images, given.seconds, given.out, given.looks)
        return
    if given.bare:
        bare_worker(given.images, given.seconds, given.out)
        return
    print(machine("lightly", "torchvision"))
    if given.minutes:
        learning(given.images, given.test, given.minutes)
    else:
        throughput(given.images)


if __name__ == "__main__":
    main()
