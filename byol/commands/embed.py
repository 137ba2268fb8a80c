"""`byol embed`"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from byol.data.sources import open_images
from byol.errors import ConfigError
from byol.features.encoders import load_encoder
from byol.features.extract import embed as extract
from byol.settings import parse


@dataclass(frozen=True)
class Embed:
    run: tyro.conf.Positional[str]
    """Run folder or encoder.safetensors."""
    data: str
    """Images: folder, text file of paths, .parquet, .npy or .npz."""
    out: str
    """Where the features go: .npz (x, y, names) or .npy (x alone)."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    workers: int = 0
    """Processes that decode images."""


def embed(arguments: Sequence[str]) -> int:
    """Write the features of every image."""
    command = parse(Embed, arguments, prog="byol embed", description="Turn every image into a feature vector.")
    out = Path(command.out)
    if out.suffix not in (".npz", ".npy"):
        raise ConfigError(f"--out is {command.out}; expected a name that ends in .npz or .npy.")
    if out.is_dir():
        raise ConfigError(f"--out is {command.out}, which is a folder. Give the name of a file.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out is {command.out}, but there is no folder {out.parent}. Make it first.")
    encoder = load_encoder(command.run, net=command.encoder, device=command.device)
    images = open_images(command.data, channels=encoder.info.channels)
    features = extract(encoder, images, workers=command.workers)
    features.save(out)
    print(f"written    {out}: {features.x.shape[0]:,} images x {features.x.shape[1]:,} features")
    return 0
