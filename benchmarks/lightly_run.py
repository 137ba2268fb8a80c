"""Train the small encoder by lightly's benchmark recipe for as long as a run of byol: compare the features.

pip install lightly
python benchmarks/lightly_run.py IMAGES --minutes 20 --out runs/lightly
byol train IMAGES --budget 20m --out runs/byol
byol evaluate runs/byol --compare runs/lightly/encoder.safetensors --train LABELLED --test LABELLED

SGD 0.06 per 128 images, momentum 0.9, weight decay 5e-4, cosine without warm-up, batches of 128, tau 0.99,
SimCLR's views of 32 pixels with half of their colour strength and no blur, heads of 1,024 and 256. The
length is fitted to the time by its first steps.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import SimCLRTransform
from measure import machine
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import byol
from byol.encoders.encoder import EncoderInfo, save_encoder
from byol.method.hidden import HiddenLayer

SIDE, BATCH, TRIED = 32, 128, 20


class Pairs(Dataset[Any]):
    """Two views of each image, by lightly's transform."""

    def __init__(self, images: byol.Images) -> None:
        self.pictures = [
            Image.fromarray(images.array(i).squeeze()).convert("RGB") for i in range(len(images))
        ]
        for picture in self.pictures:  # as byol keeps photographs for small views
            picture.thumbnail((96, 96))
        self.transform = SimCLRTransform(input_size=SIDE, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.pictures[index])


def endless(loader: DataLoader[Any]) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("images")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--steps", type=int, help="so many, whatever they take: for a machine that is busy")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    machine()
    started = time.perf_counter()
    torch.manual_seed(0)
    pairs = Pairs(byol.open_images(options.images))
    loader = DataLoader(pairs, BATCH, shuffle=True, drop_last=True, num_workers=options.workers)
    net = byol.build_encoder("convnet", channels=3, image_size=(SIDE, SIDE)).to(
        memory_format=torch.channels_last
    )
    online = nn.Sequential(net, BYOLProjectionHead(net.num_features, 1024, 256))
    predictor, target = BYOLPredictionHead(256, 1024, 256), copy.deepcopy(online)
    deactivate_requires_grad(target)
    optimizer = torch.optim.SGD(
        chain(online.parameters(), predictor.parameters()),
        lr=0.06 * BATCH / 128,
        momentum=0.9,
        weight_decay=5e-4,
    )
    criterion, steps, step = NegativeCosineSimilarity(), math.inf, 0
    first = began = time.perf_counter()
    for one, other in endless(loader):
        update_momentum(online, target, m=0.99)
        one, other = (x.contiguous(memory_format=torch.channels_last) for x in (one, other))
        with torch.no_grad():
            target_one, target_other = target(one), target(other)
        loss = 0.5 * (
            criterion(predictor(online(one)), target_other) + criterion(predictor(online(other)), target_one)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step == 3:  # the first are slower
            began = time.perf_counter()
        if step == TRIED:
            each = (time.perf_counter() - began) / (TRIED - 3)
            left = 60 * options.minutes - (time.perf_counter() - started)
            steps = options.steps or TRIED + int(left / each)
            print(f"{steps:,} steps of {BATCH}, {BATCH / each:.0f} images/s", flush=True)
        if step < steps < math.inf:  # cosine by steps, as its scheduler does by epochs
            optimizer.param_groups[0]["lr"] = 0.03 * BATCH / 128 * (1 + math.cos(math.pi * step / steps))
        if step % 200 == 0:
            print(f"step {step:,}  loss {loss.item():.3f}  {time.perf_counter() - first:.0f} s", flush=True)
        if step >= steps:
            break
    encoder = HiddenLayer(net)
    mean, std = byol.ViewConfig().mean, byol.ViewConfig().std  # lightly's too
    info = EncoderInfo.of(
        encoder, "convnet", {}, image_size=(SIDE, SIDE), channels=3, mean=mean, std=std,
        features=net.num_features, levels=None,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    save_encoder(byol.Encoder(encoder, info), options.out)
    print(f"{step:,} steps = {step * BATCH:,} images in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
