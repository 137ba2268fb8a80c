"""Images packed into tar shards, in the layout of WebDataset: the same bytes whenever they are packed."""

import json
import logging
import os
import tarfile
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from byol.data.decode import BadImage, header
from byol.data.images import Images
from byol.data.readers.archives import PACKED, ArchiveReader, Disk
from byol.data.readers.folder import SUFFIXES as KNOWN
from byol.data.workers import Made, Progress, in_workers, part_done
from byol.disk import check_writable, hold, read_json, replacing, write_text
from byol.errors import ConfigError, DataError, printable
from byol.method.draws import Stream, check_seed, seed_of

SUFFIXES = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "GIF": "gif",
    "AVIF": "avif", "HEIF": "heic", "JXL": "jxl",
}  # fmt: skip
LOCK = ".lock"
END = 2 * tarfile.BLOCKSIZE  # bytes: all that a shard without pictures has
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class Packed:
    """What was packed."""

    images: int
    shards: int
    bytes: int
    left_out: list[tuple[int, str]]  # images of this run that could not be read, and why


def pack(
    images: Images,
    out: str | Path,
    *,
    each: int = 5000,
    in_order: bool = False,
    seed: int = 0,
    workers: int = 0,
    progress: Progress = lambda done, total: None,
) -> Packed:
    """Write images into a folder of tar files, `each` images a file, by so many processes.

    Encoded pictures keep their bytes, arrays become PNG of the 8 bits that they are read with. A label is the
    number of the class in a `.cls` member beside the picture. The images are shuffled once, by the seed,
    unless they are to stay `in_order`: so every shard holds some of everything. A shard appears as a whole;
    what is there is kept when the same call is repeated. `progress` is told how many images of how many are
    done; it may raise, to stop. Raises ConfigError for a folder that holds anything else, DataError when no
    image can be packed, DiskError when the folder cannot be written.
    """
    check_seed(seed)
    if each < 1:
        raise ConfigError(f"A shard is to hold {each} images; expected at least 1.")
    out, total = Path(out), len(images)
    labels = images.labels
    if labels is None and images.label_matrix is not None:
        logger.warning("Multi-label images have no place in .cls members: their labels are left out.")
    plan = {
        "format": 1, "images": total, "fingerprint": images.fingerprint(), "each": each, "in_order": in_order,
        "seed": seed, "classes": list(images.classes or ()) if labels is not None else [],
    }  # fmt: skip
    order = torch.arange(total)
    if not in_order:
        generator = torch.Generator().manual_seed(seed_of(seed, Stream.PACKED))
        order = torch.randperm(total, generator=generator)
    paths = [out / f"{number:05d}.tar" for number in range(-(-total // each))]

    def work(number: int) -> Made:
        """Write a shard."""
        bad, keys = [], set[str]()
        with replacing(paths[number]) as temporary, temporary.open("wb") as file:
            for row in order[number * each : (number + 1) * each].tolist():
                part_done()
                if workers == 0:
                    progress(done, total)
                try:
                    suffix, data = encoded(images, row)
                except BadImage as failure:
                    bad.append((row, str(failure)))
                    continue
                keys.add(key := key_of(images.name(row), row, keys))
                file.write(member(f"{key}.{suffix}", data))
                if labels is not None:
                    file.write(member(f"{key}.cls", str(labels[row]).encode()))
            file.write(bytes(END))
        return torch.empty(0, dtype=torch.uint8), (number, bad)

    take_up(out, plan)
    with hold_folder(out):
        missing = [number for number, path in enumerate(paths) if not holds_pictures(path)]
        done, left_out = total - sum(len(order[n * each : (n + 1) * each]) for n in missing), []

        def poll() -> None:
            progress(done, total)

        arriving = in_workers(work, missing, workers=min(workers, len(missing)), room=1, poll=poll)
        with images.reader.gathered(images.rows, poll), closing(arriving) as written:
            for _, (number, bad) in written:
                left_out += bad
                done += len(order[number * each : (number + 1) * each])
                progress(done, total)
        if 0 < total == len(left_out):
            for path in (*paths, out / PACKED):
                path.unlink()
            row, reason = min(left_out)
            raise DataError(
                f"None of the {total:,} images can be packed, and nothing is kept in {out}. The first, "
                f"{printable(images.name(row))}: {reason}. Give images that can be read, as colour or gray."
            )
        # Finished before it is read: an unfinished folder is refused.
        write_text(out / PACKED, json.dumps({**plan, "finished": True}, indent=1))
        count = len(ArchiveReader(Disk(paths), str(out)))  # which makes their indexes
    return Packed(count, len(paths), sum(path.stat().st_size for path in paths), left_out)


def holds_pictures(path: Path) -> bool:
    """Whether a shard is there and more than its end."""
    return os.path.exists(path) and path.stat().st_size > END


def take_up(out: Path, plan: dict[str, Any]) -> None:
    """Begin a folder, or go on with one of the same plan. Raises ConfigError for any other."""
    check_writable(out)
    if not os.path.lexists(out / PACKED):
        if os.path.lexists(out) and (not out.is_dir() or set(os.listdir(out)) - {LOCK}):
            raise ConfigError(f"--out is {out}, which is there already. Give a new or an empty folder.")
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / PACKED, json.dumps({**plan, "finished": False}, indent=1))
    try:
        told = read_json(out / PACKED)
        changed = [name for name in plan if told.get(name) != plan[name]]
    except (OSError, ValueError, AttributeError) as failure:
        raise ConfigError(f"{out / PACKED} cannot be read ({failure}). Choose another --out.") from failure
    if changed:
        what = ", ".join("other images" if name == "fingerprint" else f"another {name}" for name in changed)
        raise ConfigError(f"{out} was packed otherwise: {what}. Repeat that, or choose another --out.")


def hold_folder(out: Path) -> Any:
    """Hold a folder's lock and sweep what a killed process has left. Raises ConfigError when it is taken."""
    try:
        lock = hold(out / LOCK)
    except BlockingIOError as failure:
        raise ConfigError(f"Another process packs into {out}. Wait for it.") from failure
    for left in out.glob(".tmp-*"):  # nobody else is at work here
        left.unlink(missing_ok=True)
    return lock


def encoded(images: Images, row: int) -> tuple[str, bytes]:
    """A picture as it is stored, and what its name ends with; of an array, as it is read. Raises BadImage."""
    raw = images.reader.read(int(images.rows[row]))
    if isinstance(raw, bytes):
        return SUFFIXES[header(raw)[0]], raw
    stream = BytesIO()
    if images.channels not in (1, 3):
        raise BadImage(f"it has {images.channels} channels, which no picture has")
    images[row].save(stream, "PNG")
    return "png", stream.getvalue()


def key_of(name: str, row: int, taken: set[str]) -> str:
    """What the members of a sample are called: the image's own name, where no other of the shard has it.

    Without what a program that unpacks it could stumble over, and without dots, behind which WebDataset sees
    the kind of member.
    """
    *folders, last = [part for part in printable(name).split("/") if part not in ("", ".", "..")] or [
        str(row)
    ]
    stem, suffix = os.path.splitext(last)
    last = (stem if suffix.lower() in KNOWN else last).replace(".", "_")
    key = "/".join([*folders, last])
    while key in taken:
        key += f"-{row}"
    return key


def member(name: str, data: bytes) -> bytes:
    """A file as it lies in a tar file, with nothing in it that hangs on the time, the machine or the user."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    head = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return head + data + bytes(-len(data) % tarfile.BLOCKSIZE)
