"""Views beside the two, of later papers: local and cutout views, and more views for the target alone.

Local and cutout views (MULAN, De Plaen et al. 2026, arXiv 2602.05845) are seen by the online network alone.
Each kind has a predictor of its own, because one for all is what makes small crops fail in BYOL. More views
of the target (FastSiam, Pototzky et al. 2022) make what is predicted a mean, which varies less.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from byol.method.crops import Pair, Size, crop_boxes, to_device
from byol.method.draws import Stream, uniforms
from byol.method.views import ViewConfig, Views

LOCAL, CUTOUT, TARGET = "local", "cutout", "target"
LOCAL_SCALE, LOCAL_AREA = 3 / 7, (0.08, 0.25)  # of the views' side, which is 96 of 224; of the image's area
HOLE_AREA, HOLE_RATIO = (0.2, 0.4), (3 / 4, 4 / 3)


@dataclass(frozen=True)
class ExtraViews:
    """Further views of each image, of one kind, and what their draws follow from beside the seed."""

    name: str
    count: int
    views: Views
    crops: Stream
    colors: Stream
    hole: Pair | None = None  # smallest and largest share of the view that is blanked

    def finish(self, crops: Tensor, *, seed: int, step: int, first_row: int = 0) -> tuple[Tensor, ...]:
        """Everything behind the crop, as in `Views.finish`: (B, V, C, h, w) to V times (B, C, h, w)."""
        draws = {"seed": seed, "step": step, "first_row": first_row}
        views = self.views.finish_all(crops, **draws, stream=self.colors)
        if self.hole is not None:
            rows = torch.arange(first_row, first_row + len(crops))
            for number, view in enumerate(views):
                drawn = uniforms((seed, Stream.CUTOUT_HOLES, step, rows, number), 5)
                blank_(view, self.hole, drawn)
        return views


def extra_views(views: Views, local: int, cutout: int, targets: int) -> tuple[ExtraViews, ...]:
    """So many local and cutout views beside two, and views for the target alone."""
    # As often blurred as both together, never solarized.
    plain = replace(views.config, blur=(sum(views.config.blur) / 2,) * 2, solarize=(0.0, 0.0))
    small = replace(plain, crop_area=LOCAL_AREA)

    def drawn(size: Size, config: ViewConfig) -> Views:
        return Views(size, config, views.channels)

    every = (
        ExtraViews(
            LOCAL, local, drawn(local_size(views.size), small), Stream.LOCAL_CROPS, Stream.LOCAL_VIEWS
        ),
        ExtraViews(
            CUTOUT, cutout, drawn(views.size, plain), Stream.CUTOUT_CROPS, Stream.CUTOUT_VIEWS, HOLE_AREA
        ),
        ExtraViews(TARGET, targets, views, Stream.TARGET_CROPS, Stream.TARGET_VIEWS),
    )
    return tuple(kind for kind in every if kind.count)


def local_size(size: Size) -> Size:
    """The size of local views beside views of a size: an even number of pixels, 8 at least."""
    height, width = (max(8, 2 * round(LOCAL_SCALE * side / 2)) for side in size)
    return height, width


def blank_(view: Tensor, area: Pair, drawn: Tensor) -> None:
    """Set a rectangle of each normalised image (B, C, h, w) to the mean colour, from its draws (B, 5)."""
    heights, widths = (torch.full((len(view),), side) for side in view.shape[2:])
    boxes = crop_boxes(drawn, heights, widths, area, HOLE_RATIO, 0.0).boxes
    tops, lefts, tall, wide = to_device(boxes, view.device)[:, :, None].unbind(1)  # (B, 1) each
    rows, columns = (torch.arange(side, device=view.device) for side in view.shape[2:])
    in_rows, in_columns = (rows >= tops) & (rows < tops + tall), (columns >= lefts) & (columns < lefts + wide)
    view.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)
