"""What is in a set of images, and what is wrong with it: every one is read and decoded once."""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from byol.data.decode import Array, BadImage, Pixels, header, to_numpy
from byol.data.groups import Rows, groups_of, join
from byol.data.images import Images
from byol.data.workers import Made, Progress, in_workers, part_done

CHUNK = 32  # images that a worker looks at before it tells
FAULTS = {  # what is looked for, in the words of a table; any of it makes `byol check` end with 1
    "unreadable": "unreadable",
    "truncated": "truncated",
    "duplicate": "duplicates",
    "near-duplicate": "near-duplicates",
    "tiny": "tiny",
    "extreme-shape": "extreme shapes",
}
NOTES = {"deep": "more than 8 bits", "cmyk": "CMYK"}  # read all the same
CUT_OFF = re.compile(r"truncat|data end before|too short|end of (file|data|stream)|broken data stream", re.I)
SIDE, BITS = 32, 128
SIGNIFICANT = 3.0  # not 0: what smooth pictures lack would be the noise of JPEG and of rounding
NEAR = 12  # of the 128 bits may differ, and no mean of a channel by more than 10 of 255
NEAR_COLOUR = 10
COMPARED = 2_000  # likenesses at most that share a band and are compared with each
FACTS = np.dtype(
    [("content", "S16"), ("likeness", "u2", 8), ("colour", "i2", 3), ("height", "u4"), ("width", "u4")]
)


class Look(NamedTuple):
    """What one image is like."""

    content: bytes = b""  # a digest of what the source holds
    fault: str = ""  # why it cannot be read
    format: str = ""
    mode: str = ""  # Pillow's, or the type of an array's samples
    size: tuple[int, int] = (0, 0)  # height, width
    ends: tuple[float, float] | None = None  # smallest and largest sample of more than 8 bits
    likeness: Array | None = None  # uint16 (8,)
    colour: Array | None = None  # (3,) mean of each channel


@dataclass(frozen=True)
class Inspection:
    """What became of looking at every image."""

    images: int
    formats: dict[str, int]  # how many of each, the most frequent first; so are modes
    modes: dict[str, int]
    sizes: dict[str, list[int]]  # height and width: the smallest, the median and the largest, in pixels
    deep: tuple[float, float] | None  # smallest and largest sample of all images of more than 8 bits
    classes: dict[str, int] | None  # images of each class; None without labels
    found: dict[str, dict[int, str]]  # of each of FAULTS and NOTES: which images, and what there is to say
    groups: dict[str, int]  # of duplicates and near-duplicates
    mixed: int  # groups of either whose images have different labels

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; 16 bits and CMYK are not."""
        return not any(self.found[kind] for kind in FAULTS)


def inspect(
    images: Images,
    *,
    workers: int = 0,
    tiny: int = 16,
    ratio: float = 4.0,
    progress: Progress = lambda done, total: None,
) -> Inspection:
    """Read and decode every image in so many processes, and compare them.

    An image whose shorter side has fewer than `tiny` pixels counts as tiny, one whose longer side is more
    than `ratio` times the shorter as of extreme shape. Duplicates hold the same bytes; near-duplicates
    look alike, as after another compression or size. Memory is about 60 bytes an image, and the names of
    what is found. `progress` is told how many images of how many are done; it may raise, to stop.
    """
    total, done = len(images), 0

    def work(rows: range) -> Made:
        looks = []
        for row in rows:
            part_done()
            looks.append(look_at(images, row))
        return torch.empty(0, dtype=torch.uint8), looks

    facts = np.zeros(total, dtype=FACTS)
    readable = np.zeros(total, dtype=bool)
    formats, modes = Counter[str](), Counter[str]()
    found: dict[str, dict[int, str]] = {kind: {} for kind in (*FAULTS, *NOTES)}
    ends: list[tuple[float, float]] = []
    chunks = (range(first, min(first + CHUNK, total)) for first in range(0, total, CHUNK))
    progress(0, total)
    arriving = in_workers(work, chunks, workers=workers, room=1, poll=lambda: progress(done, total))
    with closing(arriving) as looked:
        for _, looks in looked:
            for row, look in enumerate(looks, done):
                if look.fault:
                    found["truncated" if CUT_OFF.search(look.fault) else "unreadable"][row] = look.fault
                    continue
                readable[row] = True
                facts[row] = (look.content, look.likeness, look.colour, *look.size)
                formats[look.format] += 1
                modes[look.mode] += 1
                short, long = sorted(look.size)
                shape = f"{look.size[1]}x{look.size[0]} pixels"
                if short < tiny:
                    found["tiny"][row] = shape
                if long > ratio * short:
                    found["extreme-shape"][row] = shape
                if look.mode == "CMYK":
                    found["cmyk"][row] = look.format
                if look.ends is not None:
                    found["deep"][row] = "samples from {:,g} to {:,g}".format(*look.ends)
                    ends = [(min(e[0] for e in (*ends, look.ends)), max(e[1] for e in (*ends, look.ends)))]
            done += len(looks)
            progress(done, total)
    sizes = {side: facts[side][readable] for side in ("height", "width")}
    rows = np.flatnonzero(readable)
    _, first, same = np.unique(facts["content"][rows], return_index=True, return_inverse=True)
    own = np.sort(first)  # the first image of each content
    alike = near_groups(facts[rows[own]], lambda: progress(done, total))
    labels, groups, mixed = images.labels, {}, 0
    for kind, words, places in (
        ("duplicate", "same as", groups_of(first[same])),
        ("near-duplicate", "like", [own[part] for part in alike]),
    ):
        members = [rows[part] for part in places]
        groups[kind] = len(members)
        for part in members:
            for row in part[1:].tolist():
                found[kind][row] = f"{words} {images.name(int(part[0]))}"
            mixed += labels is not None and len(np.unique(labels[part])) > 1
    return Inspection(
        images=total,
        formats=dict(formats.most_common()),
        modes=dict(modes.most_common()),
        sizes={
            side: [int(f(of)) for f in (np.min, np.median, np.max)] for side, of in sizes.items() if len(of)
        },
        deep=ends[0] if ends else None,
        classes=balance(images),
        found=found,
        groups=groups,
        mixed=mixed,
    )


def look_at(images: Images, row: int) -> Look:
    """Everything that one image is asked for; what is wrong with it is in `fault`."""
    reading = images.reading
    try:
        raw = images.reader.read(int(images.rows[row]))
        kind, mode = header(raw)
        picture = reading.picture(raw)
        found = reading.extremes(raw)
    except BadImage as failure:
        return Look(fault=str(failure))
    size = picture.shape[:2] if isinstance(picture, np.ndarray) else (picture.height, picture.width)
    if isinstance(raw, bytes):
        data = raw
    else:
        array = np.ascontiguousarray(to_numpy(raw))
        data = f"{array.shape} {array.dtype} ".encode() + array.tobytes()
    ends = None if found is None else (float(found[0]), float(found[1]))
    content = blake2b(data, digest_size=15).digest() + b"."  # numpy strips what is zero at the end
    return Look(content, "", kind, mode, (size[0], size[1]), ends, *likeness(picture))


def likeness(picture: Image.Image | Pixels) -> tuple[Array, Array]:
    """What stays nearly the same when a picture is scaled or compressed: 128 bits, uint16 (8,), and its mean
    colour, int16 (3,).

    The bits are the signs of the lowest frequencies of its gray levels, as in pHash: of the DCT of 32 x 32.
    """
    if isinstance(picture, np.ndarray):
        several = picture.shape[2] == 3
        picture = Image.fromarray(picture if several else picture.mean(axis=2).astype(np.uint8))
    small = picture.convert("RGB") if picture.mode != "RGB" else picture
    small = small.resize((SIDE, SIDE), Image.Resampling.HAMMING, reducing_gap=2.0)
    pixels = np.asarray(small, dtype=np.float32)
    coefficients = _DCT @ (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)) @ _DCT.T
    bits = np.packbits(coefficients.reshape(-1)[_LOWEST] > SIGNIFICANT)
    return bits.view(np.uint16), pixels.mean(axis=(0, 1)).round().astype(np.int16)


def near_groups(facts: Array, poll: Callable[[], object]) -> list[Rows]:
    """Groups of rows of pictures that look alike, the largest first: a chain, each is like some other one.

    Only those are compared that have 16 neighbouring bits of their 128 in common, each with so many at most:
    N x N comparisons would take weeks for a million.
    """
    ones = np.unpackbits(np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1)
    ones = ones.astype(np.uint8)  # in every number of 16 bits
    looks = np.concatenate([facts["likeness"], facts["colour"].astype(np.uint16)], axis=1)
    looks, first, same = np.unique(looks, axis=0, return_index=True, return_inverse=True)
    group, colours = np.arange(len(looks)), looks[:, 8:].astype(np.int64)
    for band in range(8):
        columns = [looks[:, (band + more) % 8] for more in range(8)]
        order = np.lexsort(columns[::-1])  # by this band, then by the next ones
        keys, left = columns[0][order], np.arange(len(order))
        for shift in range(1, COMPARED):
            poll()
            left = left[left + shift < len(order)]
            left = left[keys[left] == keys[left + shift]]
            if len(left) == 0:
                break
            one, other = order[left], order[left + shift]
            near = ones[looks[one, :8] ^ looks[other, :8]].sum(axis=1, dtype=np.int64) <= NEAR
            near &= (np.abs(colours[one] - colours[other]) <= NEAR_COLOUR).all(axis=1)
            join(group, one[near], other[near])
    whole = np.arange(len(facts))
    join(whole, first[same.reshape(-1)], whole.copy())
    join(whole, first[group], first)
    return groups_of(whole)


def balance(images: Images) -> dict[str, int] | None:
    """How many images each class has, of multi-label images too; None without labels."""
    if images.y is None or images.classes is None:
        return None
    several, count = images.y.ndim == 2, len(images.classes)
    counts = images.y.sum(axis=0) if several else np.bincount(images.y, minlength=count)
    return dict(zip(images.classes, counts.tolist(), strict=True))


def _cosines() -> Array:
    """The matrix of the orthonormal DCT-II."""
    steps = np.arange(SIDE)
    matrix = np.cos(np.pi * (2 * steps + 1) * steps[:, None] / (2 * SIDE)) * np.sqrt(2 / SIDE)
    matrix[0] /= np.sqrt(2)
    cosines: Array = matrix.astype(np.float32)
    return cosines


def _lowest() -> Array:
    """Places of the lowest frequencies but the mean in the flattened DCT."""
    down, across = np.indices((SIDE, SIDE)).reshape(2, -1)
    places: Array = np.lexsort((down, down + across))[1 : BITS + 1]
    return places


_DCT: Any = _cosines()
_LOWEST = _lowest()
