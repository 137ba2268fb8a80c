"""ResNet-50 on 8 to 512 GPUs, on paper: bytes and time of a step, from assumptions that flags change.

python benchmarks/scaling.py [--share-of-peak 0.2] [--across 40] [--help]    # nothing is trained
"""

import argparse

import torch
from measure import table
from torch import nn

import byol

FORWARDS = 8  # of an image: two views, forward and backward (worth two) online, forward in the target
IMAGENET = 1_281_167  # images
OFFICIAL_CORES, OFFICIAL_HOURS = 512, 8.0  # TPU v3, paper §3.3: batch 4096, 1000 epochs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for flag, value, words in (
        ("batch-size", 4096.0, "images a step, over all GPUs"),
        ("epochs", 1000.0, "passes over ImageNet"),
        ("gflop", 8.2, "billion operations of a forward pass at 224 pixels: twice 4.1 GMAC"),
        ("peak", 989.0, "a card's dense bf16 product peak, Tflop/s (H100 SXM)"),
        ("share-of-peak", 0.2, "of it that a ResNet-50 reaches"),
        ("inside", 300.0, "GB/s of an all-reduce within 8 GPUs"),
        ("across", 40.0, "GB/s of one between machines, for each GPU"),
        ("wait-inside", 20.0, "microseconds of a small collective within 8 GPUs"),
        ("wait-across", 40.0, "of one between machines"),
        ("core-decodes", 150.0, "photographs a second that a CPU core decodes and crops twice"),
    ):
        parser.add_argument(f"--{flag}", type=float, default=value, help=words)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    learner = byol.BYOL(byol.build_encoder("resnet50"), image_size=224)
    learned = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    online = [m for m in learner.online.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    predictor = [m for m in learner.predictor.modules() if isinstance(m, nn.BatchNorm1d)]
    # Of both views: online and predictor forward and backward, the target forward.
    passes = [(online, 6), (predictor, 4)]
    collectives = sum(len(layers) * times for layers, times in passes)
    statistics = sum(4 * 2 * m.num_features * times for layers, times in passes for m in layers)
    gradients = 4 * learned
    print(f"{learned:,} trained parameters: {gradients / 1e6:.0f} MB of gradients a step, by each GPU")
    print(f"BatchNorm: {collectives} small collectives a step, {statistics / 1e6:.1f} MB by each GPU")
    rate = given.peak * 1e12 * given.share_of_peak / (FORWARDS * given.gflop * 1e9)
    print(f"one GPU without the others: {rate:,.0f} images (pairs of views) a second\n")
    steps = given.epochs * IMAGENET / given.batch_size
    rows = []
    for gpus in (8, 16, 32, 64, 128, 256, 512):
        compute = given.batch_size / gpus / rate
        inside = gpus <= 8
        bandwidth = 1e9 * (given.inside if inside else given.across)
        sent = 2 * (gpus - 1) / gpus * gradients
        # DDP sends gradients while the backward goes on, which is half of the arithmetic; of 25 MB buckets
        # the last one is waited for.
        reduce = max(sent / bandwidth - compute / 2, 25e6 / gradients * sent / bandwidth)
        wait = 1e-6 * (given.wait_inside if inside else given.wait_across) * collectives
        step = compute + reduce + wait
        images = given.batch_size / step
        rows.append((
            f"{gpus}", f"{given.batch_size / gpus:g}", f"{1e3 * compute:.1f}", f"{sent / 1e6:.0f}",
            f"{1e3 * reduce:.1f}", f"{1e3 * wait:.1f}", f"{1e3 * step:.1f}", f"{images:,.0f}",
            f"{compute / step:.2f}",
            f"{steps * step / 3600:.1f}", f"{images / gpus / given.core_decodes:.0f}",
        ))  # fmt: skip
    header = ("GPUs", "images each", "compute ms", "sent MB", "waited ms", "BatchNorm ms", "step ms")
    header += ("images/s", "of linear", "hours", "cores each")
    table(f"{given.epochs:g} epochs of ImageNet, {given.batch_size:g} images a step", header, rows)
    official = given.epochs / 1000 * OFFICIAL_HOURS
    pairs = given.epochs * IMAGENET / (official * 3600)
    tflops = pairs / OFFICIAL_CORES * FORWARDS * given.gflop / 1e3
    print(f"\nofficial: {OFFICIAL_CORES} TPU v3 cores in about {official:g} h: {pairs:,.0f} images/s, "
          f"{pairs / OFFICIAL_CORES:.0f} by each core, {tflops:.1f} Tflop/s of its 61")  # fmt: skip


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
