"""Two views of an image: ours beside lightly, torchvision's transforms.v2 and kornia, on one core and all.

    pip install 'byol[bench]'
    python benchmarks/views.py PHOTOS/ [SMALL.parquet]    # photographs; small images (else random)

Ours is timed as a run works: crops one image at a time, as workers do, the rest batch by batch.
"""

import io
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import alternate, machine, table
from PIL import Image

from byol import ViewConfig, Views, open_images
from byol.data.batches import Batches, BatchPlan, cut, resident_batches
from byol.data.decode import Reading
from byol.machine import usable_cores
from byol.method.crops import crop_draws
from byol.world import World

BATCH = 64
CONFIG = ViewConfig()


def lightly_views(size: int) -> Callable[[Image.Image], Any]:
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    return BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))


def torchvision_views(size: int) -> Callable[[Image.Image], Any]:
    """The paper's Table 6 in torchvision's words, as its documentation says: uint8 first, floats late."""
    from torchvision.transforms import v2

    def view(blur: float, solarize: float) -> Any:
        jitter = v2.ColorJitter(CONFIG.brightness, CONFIG.contrast, CONFIG.saturation, CONFIG.hue)
        return v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(
                    size, CONFIG.crop_area, CONFIG.crop_ratio, v2.InterpolationMode.BICUBIC, antialias=True
                ),
                v2.RandomHorizontalFlip(CONFIG.flip),
                v2.RandomApply([jitter], CONFIG.jitter),
                v2.RandomGrayscale(CONFIG.grayscale),
                v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, CONFIG.blur_sigma)], blur),
                v2.RandomSolarize(128, solarize),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(CONFIG.mean, CONFIG.std),
            ]
        )

    first, second = (view(*shares) for shares in zip(CONFIG.blur, CONFIG.solarize, strict=True))
    return lambda image: (first(image), second(image))


def kornia_finish(size: int) -> Callable[[torch.Tensor], Any]:
    """The photometric part on batches (B, 2, C, h, w), a draw per image."""
    import kornia.augmentation as K

    def view(blur: float, solarize: float) -> Any:
        return K.AugmentationSequential(
            K.ColorJitter(CONFIG.brightness, CONFIG.contrast, CONFIG.saturation, CONFIG.hue, p=CONFIG.jitter),
            K.RandomGrayscale(p=CONFIG.grayscale),
            K.RandomGaussianBlur(
                (2 * (size // 20) + 1,) * 2, CONFIG.blur_sigma, p=blur, border_type="constant"
            ),
            K.RandomSolarize(0.0, 0.0, p=solarize),
            K.Normalize(CONFIG.mean, CONFIG.std),
        )

    first, second = (view(*shares) for shares in zip(CONFIG.blur, CONFIG.solarize, strict=True))
    return lambda crops: (first(crops[:, 0].float() / 255), second(crops[:, 1].float() / 255))


class Ours:
    """Cutting and finishing as a run does, a new draw at every call."""

    def __init__(self, size: int) -> None:
        self.views = Views(size, CONFIG)
        self.drawn = 0

    def crops(self, pictures: list[Image.Image]) -> torch.Tensor:
        self.drawn += 1
        epochs, indices = torch.full((len(pictures),), self.drawn), torch.arange(len(pictures))
        draws = torch.stack([crop_draws(0, epochs, indices, view) for view in (0, 1)], dim=1)
        return torch.stack(
            [cut(picture, self.views, draw) for picture, draw in zip(pictures, draws, strict=True)]
        )

    def finish(self, crops: torch.Tensor) -> Any:
        self.drawn += 1
        return self.views.finish(crops, seed=0, step=self.drawn)

    def __call__(self, pictures: list[Image.Image]) -> None:
        for first in range(0, len(pictures), BATCH):
            self.finish(self.crops(pictures[first : first + BATCH]))


def each(transform: Callable[[Any], Any], images: list[Any]) -> Callable[[], None]:
    """Apply a transform of one image to all and make batches, as a loader does."""

    def run() -> None:
        for first in range(0, len(images), BATCH):
            views = [transform(image) for image in images[first : first + BATCH]]
            for view in zip(*views, strict=True):
                torch.stack(view)

    return run


def photographs(folder: Path) -> dict[str, dict[str, Callable[[], object]]]:
    """Ways from decoded photographs, from crops (the photometric part) and from JPEG bytes to two views."""
    files = [
        path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")
    ][: 2 * BATCH]
    decoded = [Reading(3, 2**26).picture(data) for data in files]
    ours, lightly, torchvision, kornia = (
        Ours(224),
        lightly_views(224),
        torchvision_views(224),
        kornia_finish(224),
    )
    crops = ours.crops(decoded[:BATCH])
    crops = crops.repeat(len(decoded) // BATCH, 1, 1, 1, 1)

    def from_bytes() -> None:
        ours([Reading(3, 2**26).picture(data) for data in files])

    def decode_lightly(data: bytes) -> Any:
        return lightly(Image.open(io.BytesIO(data)).convert("RGB"))

    return {
        "decoded photographs to two 224-pixel views": {
            "byol": lambda: ours(decoded),
            "lightly": each(lightly, decoded),
            "torchvision v2": each(torchvision, decoded),
        },
        "crops to finished 224-pixel views (photometric part)": {
            "byol": lambda: [ours.finish(part) for part in crops.split(BATCH)],
            "kornia": lambda: [kornia(part) for part in crops.split(BATCH)],
        },
        "JPEG bytes to two 224-pixel views": {"byol": from_bytes, "lightly": each(decode_lightly, files)},
    }


def small_images(pixels: np.ndarray[Any, Any]) -> dict[str, dict[str, Callable[[], object]]]:
    """Ways from 32-pixel images in memory to two 32-pixel views."""
    size = pixels.shape[1]
    resident = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    plan = BatchPlan(0, len(resident), 4 * BATCH, 1, Views(size, CONFIG))
    batches = Batches(resident_batches(resident, plan), plan)

    def ours() -> None:
        for _ in islice(batches, len(pixels) // plan.batch_size):
            pass

    def picture(array: np.ndarray[Any, Any]) -> Any:
        return lightly(Image.fromarray(array))

    lightly = lightly_views(size)
    return {
        f"{size}-pixel images in memory to two views": {"byol": ours, "lightly": each(picture, list(pixels))}
    }


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    pixels = np.random.default_rng(0).integers(256, size=(1024, 32, 32, 3), dtype=np.uint8)
    if len(sys.argv) > 2:
        images = open_images(sys.argv[2])
        pixels = np.stack([images.array(index) for index in range(1024)])
    World.join(None)  # as a run does: freed memory is kept for what comes next, by all that are compared
    for threads in sorted({1, usable_cores()}):
        torch.set_num_threads(threads)
        print(machine("lightly", "torchvision", "kornia", "pillow"))
        for title, ways in {**photographs(Path(sys.argv[1])), **small_images(pixels)}.items():
            count = 1024 if "memory" in title else 2 * BATCH
            seconds = alternate(ways, repeats=5)
            rows = [
                [name, f"{1000 * time / count:.2f}", f"{count / time:,.0f}", f"{time / seconds['byol']:.2f}"]
                for name, time in seconds.items()
            ]
            table(title, ["", "ms per image", "images/s", "ours is faster by"], rows)


if __name__ == "__main__":
    main()
