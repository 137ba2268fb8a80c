"""Variants of BYOL beside plain BYOL: trained alike, with one thing changed, and scored by kNN and linear.

python benchmarks/ablations.py --train cifar10/train.parquet --test cifar10/test.parquet --epochs 20 --seeds 2

Runs are kept in --out and not made again, so the table can be stopped and continued, and --only makes some
of its rows. The paper's column is of ResNet-50 after 300 epochs on ImageNet (linear, top-1): signs of
differences can be compared, not their sizes.
"""

import argparse
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import machine, table

import byol
from byol.encoders.load import untrained
from byol.method.views import ViewConfig
from byol.train.config import ModelConfig, OptimConfig


@dataclass(frozen=True)
class Row:
    paper: str  # top-1, and where it stands
    model: dict[str, Any] = field(default_factory=dict)
    views: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)


PLAIN, UNTRAINED = "BYOL", "untrained"
ROWS = {
    PLAIN: Row("72.5"),
    "no momentum (SimSiam)": Row("0.3 (T5a, tau 0)", model={"use_momentum": False}),
    "target stands still": Row("18.8 (T5a, tau 1)", optim={"base_tau": 1.0}),
    "linear predictor": Row("71.5 (T14a)", model={"linear_predictor": True}),
    "no BatchNorm in the heads": Row("-", model={"head_batchnorm": False}),
    "EMA of BatchNorm statistics": Row("-", model={"ema_statistics": True}),
    "joint BatchNorm": Row("-", model={"joint_batchnorm": True}),
    "symmetric views": Row("72.5 (T17)", views={"blur": (0.5, 0.5), "solarize": (0.2, 0.2)}),
    UNTRAINED: Row("1.4 (T5a)"),
}


def scored(name: str, row: Row, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """kNN and linear top-1 of a run with this change; of one that is there already it is only scored."""
    folder = Path(options.out) / f"{(PLAIN if name == UNTRAINED else name).replace(' ', '-')}-{seed}"
    config = byol.TrainConfig(
        out=str(folder), encoder=options.encoder, epochs=options.epochs, seed=seed,
        on_collapse="warn", kind="paper", model=ModelConfig(**row.model), optim=OptimConfig(**row.optim),
        views=ViewConfig(**row.views),
    )  # fmt: skip
    encoder = byol.pretrain(None, options.train, config).encoder
    if name == UNTRAINED:
        encoder = untrained(encoder, seed=seed)
    scores = byol.evaluate(encoder, train=options.train, test=options.test, cache=Path(options.out) / "cache")
    return {protocol: score.top1 for protocol, score in scores.items() if score.top1 is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True, help="labelled images, as `byol train` takes them")
    parser.add_argument("--test", required=True, help="others, or a share such as 0.2")
    parser.add_argument("--out", default="runs/ablations")
    parser.add_argument("--encoder", default="convnet")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=[*ROWS], metavar="ROW")
    options = parser.parse_args()
    logging.getLogger("byol").setLevel(logging.ERROR)
    rows = []
    for name in options.only:
        found = [scored(name, ROWS[name], seed, options) for seed in range(options.seeds)]
        told = [" ".join(f"{100 * one[protocol]:.1f}" for one in found) for protocol in ("knn", "linear")]
        rows.append([name, *told, ROWS[name].paper])
        table(f"after {options.epochs:g} epochs", ["", "kNN", "linear", "paper"], rows)
    print(machine())


if __name__ == "__main__":
    main()
