"""`byol pack`"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from byol.commands.check import SHOWN, Progress, check_workers
from byol.data.images import open_images
from byol.data.pack import pack as packed
from byol.errors import show
from byol.machine import usable_cores
from byol.settings import parse
from byol.train.plan import counted
from byol.train.signals import StopSignals


@dataclass(frozen=True)
class Pack:
    images: tyro.conf.Positional[str]
    """Images: folder, text file of paths, .csv, .parquet, .tar, .zip, .npy or .npz."""
    out: str
    """Folder of the shards: new, empty, or one that this command has begun."""
    each: int = 5000
    """Images in a shard."""
    in_order: bool = False
    """Keep the images' order. By default they are shuffled once, so that a shard holds some of everything."""
    seed: int = 0
    """Number from which that order follows."""
    workers: int | None = None
    """Processes that write shards. By default one for every core."""


def pack(arguments: Sequence[str]) -> int:
    """Write images into tar shards."""
    description = (
        "Copy images into tar files of some thousand each, as WebDataset reads them, with labels as .cls. "
        "Pictures keep their bytes. Whatever is killed is continued by the same command; equal images give "
        "equal files. Every command takes such a folder in place of the images."
    )
    command = parse(Pack, arguments, prog="byol pack", description=description, switches=True)
    workers = check_workers(command.workers)
    images = open_images(command.images)
    with StopSignals() as stop:
        progress = Progress(stop, "Shards that are done are kept: the same command goes on.")
        done = packed(
            images, command.out, each=command.each, in_order=command.in_order, seed=command.seed,
            workers=usable_cores() if workers is None else workers, progress=progress,
        )  # fmt: skip
    for row, reason in done.left_out[:SHOWN]:
        show(f"left out   {images.name(row)}: {reason}")
    if (missing := len(images) - done.images) > SHOWN:
        show(f"left out   {missing:,} of {len(images):,} images in all, which cannot be read")
    made = f"{counted(done.images, 'image')} in {counted(done.shards, 'shard')}"
    show(f"written    {command.out}: {made}, {done.bytes / 1e6:,.1f} MB")
    show(f"next       {shlex.join(['byol', 'train', command.out, '--out', 'runs/a'])}")
    return 0
