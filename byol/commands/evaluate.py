"""`byol evaluate`"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from byol.data.sources import open_images
from byol.evaluation import protocols
from byol.features.encoders import load_encoder
from byol.settings import parse


@dataclass(frozen=True)
class Evaluate:
    run: tyro.conf.Positional[str]
    """Run folder or encoder.safetensors."""
    train: str
    """Labelled images that the protocols learn from."""
    test: str
    """Labelled images that are scored; nothing is chosen on them."""
    protocols: tuple[str, ...] = field(default=("knn", "linear"))
    """knn (cosine, k nearest votes) and linear (logistic regression, L-BFGS)."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    workers: int = 0
    """Processes that decode images."""


def evaluate(arguments: Sequence[str]) -> int:
    """Score an encoder and add the scores to its folder."""
    description = "Say how good an encoder's features are, with labelled images."
    command = parse(Evaluate, arguments, prog="byol evaluate", description=description)
    encoder = load_encoder(command.run, net=command.encoder, device=command.device)
    train, test = (open_images(path, channels=encoder.info.channels) for path in (command.train, command.test))
    scores = protocols.evaluate(encoder, train=train, test=test, protocols=command.protocols, workers=command.workers)
    print(protocols.score_table(scores))
    path = Path(command.run)
    target = (path if path.is_dir() else path.parent) / "scores.jsonl"
    protocols.write_scores(scores, target)
    print(f"written    {target}")
    return 0
