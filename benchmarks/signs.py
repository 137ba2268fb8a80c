"""Which label-free sign ranks encoders as labels do? Runs of different quality: their signs and scores.

python benchmarks/signs.py LABELLED_TRAIN LABELLED_TEST|SHARE --out FOLDER [--images 16000] [--metric top1]

Spearman's rank correlation of each sign with kNN and linear accuracy, over the runs. A run that is there
already is not made again.
"""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, table
from scipy.stats import spearmanr  # type: ignore[import-untyped]

import byol
from byol.method.views import ViewConfig, Views
from byol.train.config import ModelConfig, OptimConfig, TrainConfig

Array = np.ndarray[Any, np.dtype[np.float32]]
# What differs from the defaults, and the share of the images that are seen.
RUNS: dict[str, tuple[dict[str, Any], float]] = {
    "defaults": ({}, 1),
    "a quarter as long": ({}, 1 / 4),
    "a sixteenth as long": ({}, 1 / 16),
    "rate x 10": ({"optim": OptimConfig(base_lr=3e-2)}, 1),
    "rate x 100": ({"optim": OptimConfig(base_lr=0.3)}, 1),
    "rate / 20": ({"optim": OptimConfig(base_lr=1.5e-4)}, 1),
    "tau 0": ({"optim": OptimConfig(base_tau=0.0)}, 1),
    "predictor's rate 1": ({"optim": OptimConfig(predictor_lr=1.0)}, 1),
    "batch 16": ({"batch_size": 16}, 1 / 2),
    "paper's views": ({"kind": "paper"}, 1),
    "tiny crops": ({"views": ViewConfig(crop_area=(0.02, 0.08))}, 1),
    "whole images": ({"views": ViewConfig(crop_area=(0.95, 1.0), jitter=0.0, grayscale=0.0)}, 1),
    "heads of 16": ({"model": ModelConfig(projection_size=16, projection_hidden_size=64)}, 1),
    "narrow": ({"model": ModelConfig(width=16)}, 1),
}


def signs_of(folder: Path, train: byol.Images, run: byol.Run) -> dict[str, float]:
    """The signs of a run's last look, and two that are computed here: alpha-ReQ and LiDAR."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "representation_retrieval" in line]
    end, begin = looks[-1], looks[0]
    found = {name: end[name] for name in end if name.split("_")[0] in ("representation", "projection")}
    for part in ("representation", "projection"):
        found[f"{part}_closeness"] = end[f"{part}_alignment"] / max(end[f"{part}_batch_alignment"], 1e-9)
    found["retrieval_gain"] = end["representation_retrieval"] - begin["representation_retrieval"]
    last = [line for line in lines if "target_distance" in line][-1]
    found |= {name: last[name] for name in ("loss", "target_distance", "prediction_std", "target_std")}
    some = train.subset(np.random.default_rng(0).permutation(len(train))[:1000])
    found["alpha"] = alpha(byol.embed(run.encoder, some).x)
    found["lidar"] = lidar(views_embedded(run, some.subset(np.arange(min(300, len(some))))))
    return found


def alpha(x: Array) -> float:
    """Decay of the covariance's eigenvalues, j ** -alpha, over the ranks 11 to 100 (Agrawal et al. 2022)."""
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    ranks = np.arange(1, len(values) + 1)
    part = slice(10, min(100, int((values > values[0] * 1e-9).sum())))
    if part.stop - part.start < 5:
        return float("inf")
    return float(-np.polyfit(np.log(ranks[part]), np.log(values[part]), 1)[0])


def views_embedded(run: byol.Run, images: byol.Images, pairs: int = 5) -> Array:
    """Representations (N, 2 * pairs, D) of views of each image, as the run drew them."""
    plan, encoder = run.plan, run.encoder
    views = Views(plan.image_size, plan.views, plan.channels)
    pixels = [
        torch.from_numpy(images.array(i)).reshape(*images.array(i).shape[:2], -1) for i in range(len(images))
    ]
    found = []
    for seed in range(pairs):
        rows: list[list[torch.Tensor]] = [[], []]
        for number, picture in enumerate(pixels):
            x = picture.permute(2, 0, 1)[None]
            x = x.expand(1, plan.channels, -1, -1) if x.shape[1] == 1 else x
            for view, drawn in enumerate(views(x, seed=seed, step=number)):
                rows[view].append(drawn)
        with torch.no_grad():
            found += [encoder.network(torch.cat(part)).float() for part in rows]
    return torch.stack(found, dim=1).numpy()


def lidar(x: Array, delta: float = 1e-4) -> float:
    """Effective rank of the linear discriminant matrix of images (N, views, D) (Thilak et al. 2024)."""
    centres = x.mean(axis=1)
    within = (x - centres[:, None]).reshape(-1, x.shape[2])
    within_cov = within.T @ within / len(within) + delta * np.eye(x.shape[2], dtype=np.float32)
    between = centres - centres.mean(axis=0)
    values, vectors = np.linalg.eigh(within_cov)
    white = between @ (vectors / np.sqrt(values.clip(delta))) @ vectors.T
    shares = np.linalg.svd(white, compute_uv=False) ** 2
    shares = shares / max(shares.sum(), 1e-12)
    return float(np.exp(-(shares * np.log(shares + 1e-12)).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--images", type=int, default=16_000, help="seen in a run")
    parser.add_argument("--metric", default="top1")
    parser.add_argument("--first", type=int, help="only so many of the training images")
    options = parser.parse_args()
    logging.getLogger("byol").setLevel(logging.WARNING)
    machine()
    train = byol.open_images(options.train)
    if options.first:
        train = train.subset(np.random.default_rng(0).permutation(len(train))[: options.first])
    test = float(options.test) if options.test.replace(".", "").isdigit() else options.test
    found: dict[str, dict[str, float]] = {}
    for name, (changes, share) in RUNS.items():
        folder = options.out / name.replace(" ", "-").replace("/", "by")
        base = TrainConfig(
            out=str(folder),
            image_size=24,
            eval_size=32,
            batch_size=64,
            on_collapse="warn",
            epochs=options.images * share / len(train),
            device="cpu",
        )
        run = byol.pretrain(None, train, replace(base, **changes))
        scores = byol.evaluate(run.encoder, train=train, test=test, metric=options.metric)
        found[name] = {protocol: score.value for protocol, score in scores.items()} | signs_of(
            folder, train, run
        )
        print(name, json.dumps({key: round(value, 4) for key, value in found[name].items()}), flush=True)
    names = [sign for sign in next(iter(found.values())) if sign not in ("knn", "linear")]
    columns = {name: np.array([one[name] for one in found.values()]) for name in (*names, "knn", "linear")}
    lines = []
    for name in names:
        finite = np.nan_to_num(columns[name], posinf=1e9)
        lines.append([name, *(f"{spearmanr(finite, columns[score])[0]:+.2f}" for score in ("knn", "linear"))])
    lines.sort(key=lambda line: -abs(float(line[1])) - abs(float(line[2])))
    table(f"{len(found)} runs on {len(train):,} images", ["sign", "with kNN", "with linear"], lines)


if __name__ == "__main__":
    main()
