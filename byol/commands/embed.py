"""`byol embed`"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from byol.encoders.load import load_encoder
from byol.features.embed import check_out, embed_to
from byol.settings import parse
from byol.train.log import duration
from byol.world import World

SECONDS = 10.0  # between lines of progress


@dataclass(frozen=True)
class Embed:
    run: tyro.conf.Positional[str]
    """Run folder, encoder.safetensors, official .pkl, or torchvision:NAME or timm:NAME with pretrained weights."""
    data: str
    """Images: folder, text file of paths, .parquet, .npy or .npz."""
    out: str
    """Where the features go: .npz (x, y, names), .npy (x alone), .parquet (name, label, x) or .safetensors."""
    normalize: bool = False
    """Scale every row to length 1."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library has downloaded before."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    workers: int = 0
    """Processes that decode images."""


def embed(arguments: Sequence[str]) -> int:
    """Write the features of every image."""
    description = (
        "Turn every image into a feature vector. What a large job has done is kept beside --out until it is finished: the same "
        "command continues it. Under torchrun the processes share the images, and the file is the same."
    )
    command = parse(Embed, arguments, prog="byol embed", description=description, switches=True)
    out = Path(command.out)
    check_out(out)
    with World.join(command.device) as world:
        encoder = load_encoder(
            command.run, net=command.encoder, weights=command.weights, device=str(world.device)
        )
        images = encoder.open(command.data)
        progress = Progress() if world.rank == 0 else lambda done, total: None
        features = embed_to(
            out, encoder, images, world, workers=command.workers, normalize=command.normalize, report=progress
        )
    if features is not None:
        print(f"written    {out}: {features.x.shape[0]:,} images x {features.x.shape[1]:,} features")
        given = {"encoder": command.encoder, "weights": command.weights}
        more = [part for name, word in given.items() if word is not None for part in (f"--{name}", word)]
        words = ["byol", "search", str(out), "--query", "PICTURE", "--run", command.run, *more]
        print(f"next       {shlex.join(words)}")
    return 0


class Progress:
    """Says on stderr how far a large job is, at most every ten seconds."""

    def __init__(self) -> None:
        self.before: int | None = None  # images that were done at the start

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.before is None:
            self.before, self.started, self.said = done, now, now
            if done:
                print(f"continued  {done:,} of {total:,} images were done already", file=sys.stderr)
        elif now - self.said >= SECONDS:
            rate = (done - self.before) / (now - self.started)
            print(
                f"{done:,}/{total:,} images  {rate:,.0f} images/s  left {duration((total - done) / rate)}",
                file=sys.stderr,
            )
            self.said = now
