"""What suits which images: how their kind is told, and the views of each kind."""

from dataclasses import replace
from typing import Any, Literal

from byol.method.views import ViewConfig

Kind = Literal["paper", "photos", "gray", "textures", "aerial"]
SMALL_SIDE = 64  # pixels: up to this side images and views count as small
GRAY_SHARE = 0.9  # of the pictures are gray: then colour does not tell them apart
# Fine detail and its place tell surfaces and gray pictures apart: crops and blurs of the paper's hide them.
GENTLE: dict[str, Any] = {
    "crop_area": (0.5, 1.0),
    "saturation": 0.1,
    "hue": 0.0,
    "grayscale": 0.0,
    "solarize": (0.0, 0.0),
    "blur": (0.1, 0.1),
}
NO_UP = {"vertical_flip": 0.5, "turn": 0.5}
# Where these differ from the paper's views.
CHANGES = {"paper": {}, "photos": {}, "gray": GENTLE, "textures": GENTLE | NO_UP, "aerial": NO_UP}


def kind_of(channels: int, gray_share: float) -> Kind:
    """The kind of images with so many channels, of which a share is gray."""
    return "gray" if channels == 1 or (channels == 3 and gray_share >= GRAY_SHARE) else "photos"


def views_of(kind: Kind, requested: ViewConfig, side: int) -> ViewConfig:
    """The views of a kind of images, of so many pixels a side. Only the paper's numbers give way to it."""
    changes = CHANGES[kind]
    if side <= SMALL_SIDE and kind != "paper":
        # As in the field's recipes for CIFAR-10: of few pixels a blur, or a crop of 8 %, leaves nothing.
        changes = {"crop_area": (0.2, 1.0)} | changes | {"blur": (0.0, 0.0)}
    paper, values = ViewConfig(), vars(requested)
    return replace(
        requested, **{name: new for name, new in changes.items() if values[name] == getattr(paper, name)}
    )


def in_words(kind: Kind, views: ViewConfig) -> str:
    """For people: "photos: crops of 20 to 100 %, brightness 0.4, ..."; what is never done is left out."""
    low, high = views.crop_area
    words = [f"crops of {100 * low:g} to {100 * high:g} %"]
    for name in ("flip", "vertical_flip", "turn", "brightness", "contrast", "saturation", "hue", "grayscale"):
        words += [f"{name.replace('_', ' ')} {value:g}"] if (value := getattr(views, name)) else []
    for name in ("blur", "solarize"):
        value = getattr(views, name)
        words += [f"{name} {value[0]:g} and {value[1]:g}"] if any(value) else []
    what = f"for {kind}" if kind != "paper" else "the paper's" if views == ViewConfig() else "as set"
    return f"{what}: {', '.join(words)}"
