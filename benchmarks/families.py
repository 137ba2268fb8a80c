"""Networks of nine families, each trained with the same minutes: does it learn?

python benchmarks/families.py --train cifar10/train.parquet --test cifar10/test.parquet --budget 8m

kNN and linear accuracy of 10,000 test images by 10,000 training images, beside the same network untrained.
With --base-lr 0.2, a hundred times the usual rate, it shows what collapses.
Each is built small enough for a CPU and for 32 pixels; the 3-D network learns from the clips of
examples/modalities.py. Runs are kept in --out and not made again; --only makes some of the rows.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, table
from torch import nn

import byol
from byol.encoders.load import untrained
from byol.train.config import KnnConfig, ModelConfig, OptimConfig

sys.path.append(str(Path(__file__).parent.parent / "examples"))
from modalities import video_view, videos

TRANSFORMER = {"weight_decay": 0.1, "beta2": 0.98, "clip": 0.5}  # as is usual for them


def mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (3 * 32 * 32, 1024):
        layers += [nn.Linear(fan_in, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU()]
    return nn.Sequential(*layers)


def hugging_face() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    )
    net: nn.Module = ResNetModel(config)
    return net


def video_resnet() -> nn.Module:
    from torchvision.models.video.resnet import BasicBlock, BasicStem, Conv3DSimple, VideoResNet

    net = VideoResNet(BasicBlock, [Conv3DSimple] * 4, [1, 1, 1, 1], BasicStem)
    net.stem[0] = nn.Conv3d(1, 64, (3, 7, 7), (2, 4, 4), (1, 3, 3), bias=False)  # gray, and coarse for speed
    return net


def two_views(clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return video_view(clip), video_view(clip)


@dataclass(frozen=True)
class Family:
    encoder: str | Callable[[], nn.Module]
    options: tuple[str, ...] = ()
    optim: dict[str, Any] = field(default_factory=dict)
    side: int | None = None  # of the views, for networks that take one size only; else the budget settles it


FAMILIES = {
    "ViT": Family(
        "timm:vit_tiny_patch16_224",
        ("patch_size=4", "embed_dim=96", "depth=4", "num_heads=4"),
        TRANSFORMER,
        side=32,
    ),
    "Swin": Family(
        "timm:swin_tiny_patch4_window7_224",
        ("patch_size=4", "window_size=4", "depths=[2,2]", "embed_dim=64", "num_heads=[2,4]"),
        TRANSFORMER,
        side=32,
    ),
    "ConvNeXt": Family("timm:convnext_atto", ("patch_size=2", "depths=[1,1,2,1]", "dims=[32,64,128,256]")),
    "EfficientNet": Family("timm:test_efficientnet", ("output_stride=8",)),
    "MobileNet": Family("timm:mobilenetv2_035", ("output_stride=8",)),
    "ResNet with GroupNorm": Family("timm:resnet18", ("norm_layer=groupnorm", "layers=[1,1,1,1]")),
    "Hugging Face's ResNet": Family(hugging_face),
    "MLP": Family(mlp, optim={"base_lr": 3e-3}, side=32),
    "3-D ResNet": Family(video_resnet),
}


def shuffled(count: int) -> Any:
    return np.random.default_rng(0).permutation(count)


def scored(encoder: byol.Encoder, train: Any, test: Any) -> list[str]:
    """kNN and linear accuracy in percent, with their intervals."""
    found = byol.evaluate(encoder, train=train, test=test).values()
    return [f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})" for one in found]


def row(name: str, family: Family, options: argparse.Namespace) -> list[str]:
    torch.manual_seed(0)
    named, of_clips = isinstance(family.encoder, str), family.encoder is video_resnet
    settings: dict[str, Any]
    train: Any
    test: Any
    if of_clips:
        train, test = byol.Samples(*videos(2000)), byol.Samples(*videos(2000))
        # Views of one's own know no budget.
        settings, views = {"hidden_layer": "output", "epochs": options.epochs, "batch_size": 64}, two_views
    else:
        train, test = byol.open_images(options.train), byol.open_images(options.test)
        settings = {"image_size": family.side, "encoder": family.encoder if named else None}
        settings["budget"] = options.budget
        views = None
    rate = {} if options.base_lr is None else {"base_lr": options.base_lr}
    config = byol.TrainConfig(
        out=str(Path(options.out) / name.replace(" ", "-")), on_collapse="warn",
        model=ModelConfig(options=family.options),
        optim=OptimConfig(**(family.optim | rate)),
        knn=KnnConfig(hold_out_share=0.0, times=2), **settings,
    )  # fmt: skip
    net, fresh = (None if isinstance(family.encoder, str) else family.encoder() for _ in range(2))
    run = byol.pretrain(net, train, config, views=views)
    if not of_clips:
        train, test = (one.subset(shuffled(len(one))[: options.judged]) for one in (train, test))
    ours, theirs = (scored(one, train, test) for one in (run.encoder, untrained(run.encoder, net=fresh)))
    state = "-" if run.verdict is None else run.verdict.state
    steps = f"{run.plan.total_steps:,} x {run.plan.batch_size}"
    return [name, steps, ours[0], theirs[0], ours[1], theirs[1], state]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--train", required=True, help="labelled images of 32 pixels, as `byol train` takes them"
    )
    parser.add_argument("--test", required=True)
    parser.add_argument("--budget", default="8m", help="of each run")
    parser.add_argument("--epochs", type=float, default=8, help="of the clips, instead")
    parser.add_argument("--base-lr", type=float, help="instead of the default")
    parser.add_argument("--judged", type=int, default=10_000, help="images of each split")
    parser.add_argument("--out", default="runs/families")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=[*FAMILIES], metavar="FAMILY")
    options = parser.parse_args()
    logging.getLogger("byol").setLevel(logging.ERROR)
    rows = []
    for name in options.only:
        rows.append(row(name, FAMILIES[name], options))
        header = ["", "steps", "kNN", "untrained", "linear", "untrained", "verdict"]
        table(f"trained for {options.budget}", header, rows)
    print(machine("timm", "torchvision", "transformers"))


if __name__ == "__main__":
    main()
