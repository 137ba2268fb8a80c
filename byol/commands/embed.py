"""`byol embed`"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from byol.commands.check import Progress
from byol.disk import check_writable
from byol.encoders.load import load_encoder
from byol.errors import ConfigError, DataError, show
from byol.features.embed import PART, SHARD, Store, embed as features_of, embed_into, shards, store_beside
from byol.features.features import Features
from byol.features.formats import check_format
from byol.settings import parse
from byol.train.signals import StopSignals
from byol.world import World


@dataclass(frozen=True)
class Embed:
    run: tyro.conf.Positional[str]
    """Run folder, encoder.safetensors, official .pkl, or torchvision:NAME or timm:NAME, pretrained."""
    data: str
    """Images: folder, text file of paths, .csv, .parquet, .tar, .zip, .npy or .npz."""
    out: str
    """File of the features: .npz (x, y, names), .npy (x), .parquet (name, label, x) or .safetensors. A name
    that ends in / is a folder of .parquet files, for more images than one file should hold."""
    normalize: bool = False
    """Scale every row to length 1."""
    encoder: str | None = None
    """package.module:function that builds the network, for a run that trained one of your own."""
    weights: str | None = None
    """File of a torchvision: or timm: network's tensors; by default what the library has downloaded."""
    eval_crop: float | None = None
    """Side of the central square that is taken of every image, as a share of its shorter side; 1 takes the
    largest. By default what the encoder was trained to be scored with, mostly 0.875."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps. By default the GPU when there is one."""
    workers: int = 0
    """Processes that decode images."""


def embed(arguments: Sequence[str]) -> int:
    """Write the features of every image."""
    description = (
        "Turn every image into a feature vector. What a large job has done is kept beside --out until it is "
        "finished: the same command continues it. Under torchrun the processes share the images."
    )
    command = parse(Embed, arguments, prog="byol embed", description=description, switches=True)
    out, workers, normalize = Path(command.out), command.workers, command.normalize
    in_parts = command.out.endswith("/")
    check_out(out / "part.parquet" if in_parts else out)
    with StopSignals() as stop, World.join(command.device, check=stop.check) as world:
        device = str(world.device)
        encoder = load_encoder(command.run, net=command.encoder, weights=command.weights, device=device)
        encoder = encoder.with_crop(command.eval_crop)
        images = encoder.open(command.data)
        if in_parts:
            files, rows = embed_into(
                out,
                encoder,
                images,
                workers=workers,
                normalize=normalize,
                progress=progress_of(stop, lambda: PART * len(list(out.glob("part-*"))), world),
                world=world,
            )
            if world.rank == 0:
                width, count = encoder.info.features, "1 file" if files == 1 else f"{files:,} files"
                show(f"written    {out}/: {count}, {rows:,} images x {width:,} features")
            return 0
        with store_beside(out, encoder, images, normalize, world) as store:
            progress = progress_of(stop, kept_in(store), world)
            if world.size > 1:
                firsts = range(0, len(images), SHARD)[world.rank :: world.size]
                for _ in shards(encoder, images, store, workers, normalize, progress, firsts):
                    pass  # each is kept
                world.wait()
            if world.rank > 0:
                return 0
            features = features_of(
                encoder, images, workers=workers, normalize=normalize, store=store, progress=progress
            )
            features.save(out)
    show(f"written    {out}: {features.x.shape[0]:,} images x {features.x.shape[1]:,} features")
    words = ["byol", "search", str(out), "--query", "PICTURE", "--run", command.run]
    words += ["--encoder", command.encoder] if command.encoder is not None else []
    words += ["--weights", command.weights] if command.weights is not None else []
    words += ["--eval-crop", f"{command.eval_crop:g}"] if command.eval_crop is not None else []
    show(f"next       {shlex.join(words)}")
    return 0


def check_out(out: Path) -> None:
    """Raise ConfigError, before any work, for a file that features cannot go to, or that would be lost."""
    if os.path.isdir(out):
        raise ConfigError(f"--out is {out}, which is a folder. Give the name of a file, or {out}/ for many.")
    check_format(out)
    try:
        if os.path.exists(out):
            Features.load(out, mapped=True)
    except DataError as failure:
        said = f"--out is there already and is not replaced: {failure} Give another name."
        raise ConfigError(said) from failure
    check_writable(out.parent, name=out.name)


def progress_of(stop: StopSignals, kept: Callable[[], int], world: World) -> Progress:
    """Progress of work of which so many images are kept."""
    return Progress(stop, "What is done is kept: the same command goes on.", kept, silent=world.rank > 0)


def kept_in(store: Store | None) -> Callable[[], int]:
    """How many images are kept in a store; without one none are."""
    return lambda: 0 if store is None else store.images()
