"""Figures as PNG, by matplotlib from the very SVG: one drawing, whatever it is kept as."""

import re
import warnings
import xml.etree.ElementTree as ET
from base64 import b64decode
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from byol.disk import replacing
from byol.errors import library
from byol.report.figures import LIGHT, Figure, style

SCALE = 3  # pixels of a file for each of the figure's own: enough for print
FONT = 13  # pixels, of text whose class says nothing else
Style = dict[str, str]


def check_installed() -> None:
    """Raise ConfigError where matplotlib is missing."""
    library("matplotlib", "figures", "figures as PNG")


def write_png(figure: Figure, path: Path) -> None:
    """Write it, three times as large as on the page."""
    from matplotlib.figure import Figure as Sheet  # no pyplot: nothing is shown, nothing is global

    root = ET.fromstring(figure.file())
    sheet = Sheet(figsize=(figure.width / 72, figure.height / 72))
    plane = sheet.add_axes((0, 0, 1, 1))
    plane.set(xlim=(0, figure.width), ylim=(figure.height, 0))
    plane.axis("off")
    for order, part in enumerate(root):
        _draw(plane, part, order)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks
        with replacing(path) as new:
            sheet.savefig(new, format="png", dpi=72 * SCALE, facecolor="white")


def _draw(plane: Any, part: Any, order: int) -> None:
    """One element of a figure. Lengths are pixels, of which matplotlib is told that they are points."""
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

    kind, told = part.tag.rpartition("}")[2], _style(part)
    number = {name: float(value) for name, value in part.attrib.items() if re.fullmatch(r"-?[\d.]+", value)}
    fill, edge = _colour(told, "fill", "black"), _colour(told, "stroke", "none")
    width = float(told.get("stroke-width", 1))
    paint = {"facecolor": fill, "edgecolor": edge, "linewidth": width, "zorder": order}
    if kind == "text":
        _write(plane, part, told, fill, order)
    elif kind in ("line", "polyline"):
        ends = [(number.get(f"x{end}", 0.0), number.get(f"y{end}", 0.0)) for end in (1, 2)]
        spots = _points(part) if kind == "polyline" else ends
        dashes = told.get("stroke-dasharray")
        kinds = (0, [float(step) for step in dashes.split()]) if dashes else "solid"
        caps = "round" if told.get("stroke-linecap") == "round" else "butt"
        plane.add_collection(
            LineCollection([spots], colors=[edge], linewidths=width, linestyles=[kinds], capstyle=caps,
                           joinstyle="round", zorder=order)
        )  # fmt: skip
    elif kind == "polygon":
        plane.add_patch(Polygon(_points(part), **paint))
    elif kind == "circle":
        plane.add_patch(Circle((number["cx"], number["cy"]), number["r"], **paint))
    elif kind == "rect" and "x" in number:
        spot, size = (number["x"], number["y"]), (number["width"], number["height"])
        if round_by := min(number.get("rx", 0), *(side / 2 for side in size)):
            corners = f"round,pad=0,rounding_size={round_by}"
            plane.add_patch(FancyBboxPatch(spot, *size, boxstyle=corners, **paint))
        else:
            plane.add_patch(Rectangle(spot, *size, **paint))
    elif kind == "image":
        pixels = np.asarray(Image.open(BytesIO(b64decode(part.get("href").partition(",")[2]))))
        tall, wide = pixels.shape[:2]
        scale = min(number["width"] / wide, number["height"] / tall)  # as browsers fit it in
        left = number["x"] + (number["width"] - scale * wide) / 2
        top = number["y"] + (number["height"] - scale * tall) / 2
        box = left, left + scale * wide, top + scale * tall, top
        plane.imshow(pixels, extent=box, aspect="auto", zorder=order)


def _write(plane: Any, part: Any, told: Style, colour: Any, order: int) -> None:
    from matplotlib.patheffects import Normal, Stroke

    size = float(told.get("font-size", f"{FONT}px").removesuffix("px"))
    down = size * float((part.get("dy") or "0em").removesuffix("em"))
    turned = re.match(r"rotate\((\S+)", part.get("transform") or "")
    side = {"end": "right", "middle": "center"}.get(told.get("text-anchor", ""), "left")
    x, y = float(part.get("x")), float(part.get("y")) + down
    turned_by = -float(turned[1]) if turned else 0.0
    text = plane.text(
        x, y, part.text or "", fontsize=size, color=colour, ha=side, va="baseline", rotation=turned_by,
        rotation_mode="anchor", parse_math=False, zorder=order,
        fontweight="bold" if told.get("font-weight") == "600" else "normal",
    )  # fmt: skip
    if told.get("paint-order") == "stroke":
        text.set_path_effects([Stroke(linewidth=4, foreground=LIGHT["card"]), Normal()])


def _points(part: Any) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in part.get("points").split())
    return [(float(x), float(y)) for x, y in pairs]


def _colour(told: Style, what: str, usual: str) -> Any:
    """A colour with the opacity of its element."""
    from matplotlib.colors import to_rgba

    named = told.get(what, usual)
    clear = float(told.get("opacity", 1)) * float(told.get(f"{what}-opacity", 1))
    return "none" if named == "none" else to_rgba(named, clear)


def _style(part: Any) -> Style:
    """What the figures' rules of style and its own attributes say of an element; later rules win."""
    kind, classes = part.tag.rpartition("}")[2], {*(part.get("class") or "").split()}
    told: Style = {}
    for tag, needed, found in _rules():
        if tag in ("", kind) and needed <= classes:
            told |= found
    own = ("fill", "fill-opacity", "stroke-dasharray")
    return told | {name: part.get(name) for name in own if part.get(name) is not None}


@cache
def _rules() -> list[tuple[str, set[str], Style]]:
    """The rules of figures.css: of which element, with which classes, what holds."""
    plain = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], style())
    rules = []
    for selectors, body in re.findall(r"([^{}]+)\{([^{}]*)\}", plain):
        pairs = (line.partition(":") for line in body.split(";") if line.strip())
        found = {name.strip(): value.strip().removesuffix("px") for name, _, value in pairs}
        for selector in selectors.split(","):
            tag, *needed = selector.strip().split(".")
            rules.append((tag, {*needed}, found))
    return rules
