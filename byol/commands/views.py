"""`byol views`"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from byol.data.images import Images
from byol.data.readers.reader import evenly_spaced
from byol.errors import DataError, show
from byol.features.neighbours import check_at_least_one
from byol.features.sheet import Cell, check_sheet, write_sheet
from byol.method.views import ViewConfig
from byol.report.pictures import views_of_each
from byol.settings import parse
from byol.train.config import ExtraConfig, TrainConfig
from byol.train.recipe import Kind, in_words
from byol.train.setup import Setup


@dataclass(frozen=True)
class ShowViews:
    images: tyro.conf.Positional[str]
    """Folder (nested to any depth), text file of paths, .csv, .parquet, .tar, .zip, .npy or .npz."""
    out: str = "views.png"
    """File of the sheet: .png, .jpg or .webp."""
    kind: Kind | None = None
    """What the images are like: photos, gray, textures, aerial, or paper for the paper's own views."""
    image_size: int | None = None
    """Side of the views in pixels."""
    views: ViewConfig = field(default_factory=ViewConfig)
    extra: ExtraConfig = field(default_factory=ExtraConfig)
    count: int = 15
    """How many images."""
    seed: int = 0
    """Number from which all randomness follows."""


def views(arguments: Sequence[str]) -> int:
    """Draw some images beside their views, as `byol train` with the same flags would learn from them."""
    description = "Draw images beside the views that `byol train` would make of them."
    command = parse(ShowViews, arguments, prog="byol views", description=description)
    check_at_least_one("count", command.count)
    check_sheet(Path(command.out))
    names = ("kind", "image_size", "views", "extra", "seed")
    config = TrainConfig(out=command.out, **{name: getattr(command, name) for name in names})
    setup = Setup.of(None, command.images, config)
    plan, images = setup.new_plan(), setup.images
    assert isinstance(images, Images)  # no command brings views of its own
    cells: list[Cell] = []
    width = 3
    for row, every in views_of_each(images, evenly_spaced(len(images), command.count), plan):
        cells += [Cell(images[row], (images.name(row),), framed=True)]
        cells += [Cell(view, (name,)) for name, view in every]
        width = 1 + len(every)
    if not cells:
        raise DataError(f"None of {command.count} images in {images.description} can be read.")
    width *= max(1, 9 // width)  # of a row, which holds whole images
    write_sheet([cells[first : first + width] for first in range(0, len(cells), width)], Path(command.out))
    show(f"views      {in_words(plan.kind, plan.views)}; {plan.image_size[0]}x{plan.image_size[1]} pixels")
    show(f"written    {command.out}")
    return 0
