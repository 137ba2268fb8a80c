"""A picture sheet: groups of images in a grid, with a few words under each."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from byol.data.decode import BadImage
from byol.data.images import Images
from byol.disk import check_writable, replacing
from byol.errors import ByolError, ConfigError, DataError, printable
from byol.features.features import Features

SIDE, GAP, LINE = 128, 10, 15  # pixels: of a picture, between pictures, of a line of text
COLUMNS = 10
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet."""

    picture: Image.Image | None  # None: there is none to show
    words: tuple[str, ...]  # lines of text under it
    framed: bool = False  # the one that its group is compared with


def check_sheet(path: Path) -> None:
    """Raise ConfigError for a file that a sheet cannot be written to."""
    if path.suffix.lower() not in SUFFIXES or os.path.isdir(path):
        raise ConfigError(f"The sheet is {path}; expected a file's name that ends in {', '.join(SUFFIXES)}.")
    check_writable(path.parent, name=path.name)


def write_sheet(groups: Sequence[Sequence[Cell]], path: Path) -> None:
    """Draw each group from a new line on, COLUMNS pictures to a line; missing folders are made."""
    check_sheet(path)
    font = ImageFont.load_default(LINE - 3)
    wide, tall = SIDE + GAP, SIDE + GAP + LINE * max(len(cell.words) for group in groups for cell in group)
    columns, lines = min(COLUMNS, max(map(len, groups))), sum(-(-len(group) // COLUMNS) for group in groups)
    page = Image.new("RGB", (GAP + wide * columns, GAP + tall * lines), "white")
    draw, start = ImageDraw.Draw(page), GAP
    for group in groups:
        if start > GAP:
            draw.line([(0, start - GAP // 2), (page.width, start - GAP // 2)], "lightgray")
        for place, cell in enumerate(group):
            left, top = GAP + place % COLUMNS * wide, start + place // COLUMNS * tall
            page.paste(tile(cell.picture), (left, top))
            if cell.framed:
                draw.rectangle([left - 3, top - 3, left + SIDE + 2, top + SIDE + 2], outline="black", width=2)
            for below, text in enumerate(cell.words):
                draw.text((left, top + SIDE + 1 + below * LINE), shortened(text, font), "black", font)
        start += -(-len(group) // COLUMNS) * tall
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary:
            page.save(temporary)
    except ValueError as failure:  # more pixels than the format can hold
        raise ByolError(f"{path} cannot be written: {failure}. Take a .png: it has no limit.") from failure


def tile(picture: Image.Image | None) -> Image.Image:
    """A picture as a square of SIDE pixels, whole, on light gray; a cross where there is none."""
    square = Image.new("RGB", (SIDE, SIDE), "whitesmoke")
    if picture is None:
        pen = ImageDraw.Draw(square)
        pen.line([(0, 0), (SIDE, SIDE)], "darkgray")
        pen.line([(0, SIDE), (SIDE, 0)], "darkgray")
        return square
    small = ImageOps.contain(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square


def shortened(text: str, font: Any) -> str:
    """A line no wider than a picture, on which any character can be drawn; of a long one the end is kept."""
    kept = printable(text)[-SIDE:]  # no letter is narrower than a pixel
    while font.getlength(kept) > SIDE:
        kept = "…" + kept[2:]
    return kept


def pictures(images: Images, features: Features, rows: set[int]) -> dict[int, Image.Image]:
    """The readable pictures of some rows: by name among the images, by number when features have no names.

    Raises DataError when none of the rows is found.
    """
    found = {}
    for row, index in places(images, features, rows).items():
        with suppress(BadImage):
            found[row] = tile(images[index])
    if not found:
        raise none_there(images, len(rows))
    return found


def places(images: Images, features: Features, rows: Iterable[int]) -> dict[int, int]:
    """The index among `images` of each of the rows that is found there."""
    if not features.names:
        return {row: row for row in rows if len(images) == len(features.x)}
    names = {row: features.names[row] for row in rows}
    wanted = {*names.values()}
    place_of = {name: index for index in range(len(images)) if (name := images.name(index)) in wanted}
    return {row: place_of[name] for row, name in names.items() if name in place_of}


def none_there(images: Images, count: int) -> DataError:
    """The failure to find any of so many images."""
    return DataError(
        f"None of the {count:,} images to show is in {images.description}. Give the images that the "
        "features are of, as they were given to `byol embed`."
    )
