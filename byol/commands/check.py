"""`byol check`"""

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import tyro

from byol.data.images import Images, open_images
from byol.data.inspect import FAULTS, NOTES, Inspection, inspect
from byol.disk import check_writable, replacing, write_text
from byol.errors import ConfigError, printable, show
from byol.machine import usable_cores
from byol.settings import parse
from byol.train.log import duration
from byol.train.signals import StopSignals

FOUND = 1  # the exit code when something was found
SHOWN = 3  # images of each kind that are named on the terminal
SECONDS = 10.0  # between lines of progress


@dataclass(frozen=True)
class Check:
    images: tyro.conf.Positional[str]
    """Images: folder, text file of paths, .csv, .parquet, .tar, .zip, .npy or .npz."""
    out: str | None = None
    """Write what was found into this .json file, and beside it a .csv of every image concerned."""
    tiny: int = 16
    """Shorter sides of fewer pixels are reported."""
    ratio: float = 4.0
    """Shapes whose longer side is more than so many times the shorter are reported."""
    channels: int | None = None
    """Channels to read: 3 for colour, 1 for gray; of arrays any number. By default the images' own."""
    workers: int | None = None
    """Processes that decode images. By default one for every core."""


def check(arguments: Sequence[str]) -> int:
    """Look at every image and say what is wrong with them."""
    description = (
        "Read every image and tell what there is and what is wrong: unreadable and truncated files, "
        "duplicates and near-duplicates, tiny images, extreme shapes; and how many images a class has. "
        "Nothing is changed. Ends with 0 when nothing was found and with 1 when something was."
    )
    command = parse(Check, arguments, prog="byol check", description=description)
    for name in ("tiny", "ratio"):
        if not getattr(command, name) >= 1:
            raise ConfigError(f"--{name} is {getattr(command, name)}; expected at least 1.")
    workers = check_workers(command.workers)
    out = None if command.out is None else Path(command.out)
    if out is not None:
        if out.suffix != ".json" or os.path.isdir(out):
            raise ConfigError(f"--out is {out}; expected the name of a .json file.")
        check_writable(out.parent, name=out.name)
    images = open_images(command.images, channels=command.channels)
    with StopSignals() as stop:
        found = inspect(
            images, tiny=command.tiny, ratio=command.ratio, progress=Progress(stop, "Nothing was written."),
            workers=usable_cores() if workers is None else workers,
        )  # fmt: skip
    show(*as_table(found, images))
    if out is not None:
        write_text(out, json.dumps(as_json(found, images), indent=1))
        with (
            replacing(listed := out.with_suffix(".csv")) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            rows = csv.writer(file)
            rows.writerow(("path", "found", "what"))
            for kind, those in found.found.items():
                rows.writerows(
                    (printable(images.name(row)), kind, printable(what)) for row, what in those.items()
                )
        show(f"written    {out}, {listed}")
    return 0 if found.sound else FOUND


def check_workers(workers: int | None) -> int | None:
    """The number of processes. Raises ConfigError for one that cannot be."""
    if workers is not None and workers < 0:
        raise ConfigError(f"--workers is {workers}; expected 0 or more.")
    return workers


def as_table(found: Inspection, images: Images) -> list[str]:
    """What people read, line by line."""
    lines = [f"images     {images.description}"]
    lines += [f"formats    {counted(found.formats)}", f"modes      {counted(found.modes)}"]
    if found.sizes:
        sides = (f"{side}s {s[0]:,} to {s[2]:,}, median {s[1]:,}" for side, s in found.sizes.items())
        lines.append(f"sizes      {'; '.join(sides)} pixels")
    if found.classes:
        (few, least), *_, (many, most) = [*sorted(found.classes.items(), key=itemgetter(1)) * 2]
        spans = f"{least:,} images ({few}) to {most:,} ({many})"
        lines.append(f"labels     {len(found.classes):,} classes of {spans}")
    if found.mixed:
        groups = "1 group has" if found.mixed == 1 else f"{found.mixed:,} groups have"
        lines.append(f"           of equal or similar images, {groups} different labels")
    for kind, words in (FAULTS | NOTES).items():
        those = found.found[kind]
        if not those and kind in NOTES:
            continue
        groups = f" beside the first of their {found.groups[kind]:,} groups" if found.groups.get(kind) else ""
        lines.append(f"{words:<16} {len(those):9,}{groups}")
        for row in list(those)[:SHOWN]:
            lines.append(f"{'':27}{images.name(row)}: {those[row]}")
        if len(those) > SHOWN:
            lines.append(f"{'':27}and {len(those) - SHOWN:,} others; --out FILE.json lists all")
    return [*lines, "nothing    was found" if found.sound else "found      something: the exit code is 1"]


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def as_json(found: Inspection, images: Images) -> dict[str, Any]:
    """What programs read: numbers only; the images are in the .csv beside it."""
    counts = {kind: len(those) for kind, those in found.found.items()}
    return {"source": images.reader.where, "sound": found.sound, **asdict(found), "found": counts}


class Progress:
    """Says on stderr how far the work is, at most every ten seconds, and ends it when a signal has come.

    `again` tells what a stop costs; `kept` how many images are done for good, where that is not all.
    """

    def __init__(
        self, stop: StopSignals, again: str, kept: Callable[[], int] | None = None, silent: bool = False
    ) -> None:
        self.stop, self.again, self.kept, self.silent = stop, again, kept, silent
        self.before: int | None = None  # images that were done at the start

    def __call__(self, done: int, total: int) -> None:
        if self.stop.by:
            safe = done if self.kept is None else min(self.kept(), total)
            self.stop.check(f"with {safe:,} of {total:,} images done. {self.again}")
        now = time.monotonic()
        if self.before is None:
            self.before, self.started, self.said = done, now, now
            if done and not self.silent:
                show(f"continued  {done:,} of {total:,} images were done already", file=sys.stderr)
        elif now - self.said >= SECONDS and not self.silent:
            rate = (done - self.before) / (now - self.started)
            left = "a moment" if done == total else duration((total - done) / rate) if rate else "?"
            show(f"{done:,}/{total:,} images  {rate:,.0f} images/s  left {left}", file=sys.stderr)
            self.said = now
