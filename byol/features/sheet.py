"""A picture sheet: groups of images in a grid, with a few words under each."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"The sheet is {path.name}; expected a name that ends in {', '.join(SUFFIXES)}.")
    if os.path.isdir(path) or not os.path.isdir(path.parent):
        raise ConfigError(
            f"The sheet is {path}, which is a folder or in a folder that is not there. Give the name of a file."
        )
    check_writable(path.parent)


def write_sheet(groups: Sequence[Sequence[Cell]], path: Path) -> None:
    """Draw each group from a new line on, COLUMNS pictures to a line; the file appears as a whole or not at all."""
    check_sheet(path)
    font = ImageFont.load_default(LINE - 3)
    cells = [cell for group in groups for cell in group]
    wide, tall = SIDE + GAP, SIDE + GAP + LINE * max(len(cell.words) for cell in cells)
    columns = min(COLUMNS, max(map(len, groups)))
    lines = sum(-(-len(group) // COLUMNS) for group in groups)
    page = Image.new("RGB", (GAP + wide * columns, GAP + tall * lines), "white")
    draw = ImageDraw.Draw(page)
    top = GAP
    for group in groups:
        if top > GAP:
            draw.line([(0, top - GAP // 2), (page.width, top - GAP // 2)], "lightgray")
        for place, cell in enumerate(group):
            corner = GAP + place % COLUMNS * wide, top + place // COLUMNS * tall
            page.paste(tile(cell.picture), corner)
            if cell.framed:
                draw.rectangle(
                    [corner[0] - 3, corner[1] - 3, corner[0] + SIDE + 2, corner[1] + SIDE + 2],
                    outline="black",
                    width=2,
                )
            for number, text in enumerate(cell.words):
                draw.text(
                    (corner[0], corner[1] + SIDE + 1 + number * LINE), shortened(text, font), "black", font
                )
        top += -(-len(group) // COLUMNS) * tall
    try:
        with replacing(path) as temporary:
            page.save(temporary)
    except ValueError as failure:  # more pixels than the format can hold
        raise ByolError(
            f"The sheet cannot be written to {path}: {failure}. Take a .png, which may be of any size."
        ) from failure


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
    """A line that is no wider than a picture, on which any character can be drawn; of a long one the end is kept."""
    text = printable(text)
    kept = text[-SIDE:]  # no letter is narrower than a pixel
    while font.getlength(kept) > SIDE:
        kept = "…" + kept[2:]
    return kept


def pictures(images: Images, features: Features, rows: set[int]) -> dict[int, Image.Image]:
    """The pictures of some rows, found among the images by name; by number when the features have no names.

    Unreadable ones are left out. Raises DataError when none of the rows is found.
    """
    if features.names:
        wanted = {features.names[row] for row in rows}
        place_of = {name: index for index in range(len(images)) if (name := images.name(index)) in wanted}
        places = {row: place_of[features.names[row]] for row in rows if features.names[row] in place_of}
    else:
        places = {row: row for row in rows} if len(images) == len(features.x) else {}
    found = {}
    for row, index in places.items():
        try:
            found[row] = tile(drawable(images.picture(index)))
        except BadImage:
            continue
    if not found:
        raise DataError(
            f"None of the {len(rows)} images to show is in {images.description}. Give the images that the features are of, as "
            "they were given to `byol embed`."
        )
    return found


def drawable(picture: Image.Image | np.ndarray[Any, Any]) -> Image.Image:
    """An image of any number of channels as a Pillow image: the first three, or the first as gray."""
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(
        np.ascontiguousarray(picture[:, :, :3] if picture.shape[2] >= 3 else picture[:, :, 0])
    )
