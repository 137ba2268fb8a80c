"""Figures as SVG: drawn here, so that a page needs no library and a paper gets the same drawing."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, floor, isfinite, log10
from pathlib import Path

from byol.report.markup import Html, element, joined

STATIC = Path(__file__).parent / "static"
# Eight hues that differ for colour-blind people too, in this order; runs also differ by their dashes.
LIGHT = {
    "page": "#f7f7f5", "card": "#ffffff", "ink": "#1b1b19", "soft": "#5b5a55", "line": "#e2e1dc",
    "good": "#0a6b2d", "bad": "#b3261e", "warn": "#8a5300", "heat": "#4a85d1",
    "s0": "#2a6fc9", "s1": "#c2541d", "s2": "#0f7f5c", "s3": "#8a4fc0", "s4": "#a8741a", "s5": "#c23b78",
    "s6": "#3f7d1f", "s7": "#56606b",
}  # fmt: skip
DARK = {
    "page": "#141413", "card": "#1e1e1c", "ink": "#f1f0ec", "soft": "#b4b2aa", "line": "#3a3935",
    "good": "#6fd08c", "bad": "#ff8f85", "warn": "#f0b95a", "heat": "#40669b",
    "s0": "#6aa5f2", "s1": "#f08a57", "s2": "#3fc39a", "s3": "#bd93ea", "s4": "#d9ab4e", "s5": "#ee85b2",
    "s6": "#8fc66a", "s7": "#a9b2bd",
}  # fmt: skip
DASHES = (None, "7 4", "2 3", "10 3 2 3")
WIDTH, HEIGHT = 420, 236  # of a chart, pixels at its own size
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 34, 40  # margins of its plane
EDGE = 8  # margin of what is not a chart
LEGEND, COLUMNS = 18, 2  # height of a line of the legend, and entries in it
MOST = 240  # points of a curve; of more the means of neighbours are drawn


@dataclass(frozen=True)
class Figure:
    """A drawing: on a page in the page's colours, in a file of its own in light ones."""

    name: str  # of its file
    title: str
    words: str  # what it shows, for those who do not see it
    drawing: Html
    width: int = WIDTH
    height: int = HEIGHT
    plot: str | None = None  # JSON: what the page's script shows under the pointer

    def inline(self, style: str | None = None) -> Html:
        """As a part of a page."""
        box = f"0 0 {self.width} {self.height}"
        label = f"{self.title}. {self.words}"
        said = {"role": "img", "aria_label": label, "data_plot": self.plot}
        return element("svg", self.drawing, viewBox=box, style=style, **said)

    def file(self) -> str:
        """As a file for papers and slides, which needs nothing else."""
        rules = re.sub(r"var\(--(\w+)\)", lambda found: LIGHT[found[1]], style())
        parts = (
            element("title", self.title), element("desc", self.words), element("style", Html(rules)),
            element("rect", width="100%", height="100%", fill="#ffffff"), self.drawing,
        )  # fmt: skip
        size = {"width": self.width, "height": self.height, "viewBox": f"0 0 {self.width} {self.height}"}
        return element("svg", *parts, xmlns="http://www.w3.org/2000/svg", **size)


@dataclass(frozen=True)
class Curve:
    """A number of a run over its epochs."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()  # x, low, high
    pale: bool = False  # behind the others, as something to compare them with


@dataclass(frozen=True)
class Range:
    """A score and its 95 % interval, as fractions."""

    name: str
    value: float
    low: float
    high: float
    ours: bool = False

    def words(self) -> str:
        return f"{100 * self.value:.1f} %, {100 * self.low:.1f} to {100 * self.high:.1f}"


@cache
def style() -> str:
    """The rules of figures, in which colours are var(--name)."""
    return (STATIC / "figures.css").read_text(encoding="utf-8")


def chart(
    name: str,
    title: str,
    curves: Sequence[Curve],
    *,
    unit: str = "",
    epochs: float = 0.0,
    levels: Sequence[tuple[str, float]] = (),
) -> Figure | None:
    """Curves over epochs, and horizontal lines to compare them with; None when there is no point to draw.

    The axis ends at so many `epochs` at least.
    """
    curves = [replace(one, points=thinned(one.points)) for one in curves]
    xs = [x for one in curves for x, _ in one.points]
    if not any(one.points and not one.pale for one in curves):
        return None
    ys = [y for one in curves for _, y in one.points] + [value for _, value in levels]
    ys += [end for one in curves for _, *ends in one.band for end in ends]
    x_range = min(0.0, *xs), max(1e-9, epochs, *xs)
    x_marks = marks(*x_range, 5, outside=False)
    y_marks = marks(min(ys), max(ys), 4)
    rows = ceil(len(curves) / COLUMNS) if len(curves) > 1 else 0
    y_range = y_marks[0], y_marks[-1]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(x: float) -> str:
        return f"{LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (right - LEFT):.1f}"

    def up(y: float) -> str:
        return f"{bottom - (y - y_range[0]) / (y_range[1] - y_range[0]) * (bottom - TOP):.1f}"

    shown = f"{title}, {unit}" if unit else title
    parts = [element("text", shown, x=8, y=18, class_="title")]
    for y, label in zip(y_marks, labels(y_marks), strict=True):
        parts.append(element("line", x1=LEFT, x2=right, y1=up(y), y2=up(y), class_="grid"))
        parts.append(element("text", label, x=LEFT - 7, y=up(y), dy="0.35em", class_="tick end"))
    for x, label in zip(x_marks, labels(x_marks), strict=True):
        parts.append(element("text", label, x=across(x), y=bottom + 17, class_="tick middle"))
    parts.append(element("text", "epoch", x=right, y=HEIGHT - 8, class_="tick end"))
    for _, value in levels:
        parts.append(element("line", x1=LEFT, x2=right, y1=up(value), y2=up(value), class_="level"))
    told = []
    for place, one in sorted(enumerate(curves), key=lambda pair: not pair[1].pale):  # which lie behind
        if not one.points:
            continue
        colour, dash = f"s{place % 8}", DASHES[place % len(DASHES)]
        colour, dash = ("pale", None) if one.pale else (colour, dash)
        if one.band:
            around = [
                *((x, high) for x, _, high in one.band),
                *((x, low) for x, low, _ in reversed(one.band)),
            ]
            corners = " ".join(f"{across(x)},{up(y)}" for x, y in around)
            parts.append(element("polygon", points=corners, class_=f"band {colour}"))
        path = " ".join(f"{across(x)},{up(y)}" for x, y in one.points)
        parts.append(element("polyline", points=path, class_=f"curve {colour}", stroke_dasharray=dash))
        (first, began), (last, ended) = one.points[0], one.points[-1]
        if not one.pale:
            dot = element("circle", cx=across(last), cy=up(ended), r=3.5, class_=f"dot {colour}")
            parts.append(dot)
        if rows:
            x, y = 8 + place % COLUMNS * WIDTH // COLUMNS, HEIGHT + 12 + place // COLUMNS * LEGEND
            sample = {"x1": x, "x2": x + 26, "y1": y - 4, "y2": y - 4}
            parts.append(element("line", **sample, class_=f"curve {colour}", stroke_dasharray=dash))
            parts.append(element("text", shortened(one.name, 24), x=x + 33, y=y, class_="tick"))
        who = f"{one.name}: " if rows else ""
        told.append(f"{who}{digits(began)} at epoch {digits(first)}, {digits(ended)} at epoch {digits(last)}")
    for word, value in levels:  # over the curves
        parts.append(element("text", word, x=right, y=up(value), dy="-0.4em", class_="tick end halo"))
    words = "; ".join([*told, *(f"{word}: {digits(value)}" for word, value in levels)])
    plane = {"left": LEFT, "right": right, "top": TOP, "bottom": bottom, "x": x_range, "y": y_range}
    runs = [{"name": c.name if rows else "", "points": [*map(rounded, c.points)]} for c in curves]
    plot = json.dumps({**plane, "unit": unit, "runs": runs}, separators=(",", ":"))
    return Figure(name, shown, f"{words}.", joined(*parts), WIDTH, HEIGHT + rows * LEGEND, plot)


def ranges(name: str, title: str, groups: Sequence[tuple[str, Sequence[Range]]]) -> Figure:
    """Scores with their intervals, below one another on one scale from 0 to 100 %."""
    y, span = 30, WIDTH - 2 * EDGE
    parts, told = [element("text", title, x=EDGE, y=18, class_="title")], []
    for heading, rows in groups:
        parts.append(element("text", shortened(heading, 64), x=EDGE, y=y + 16, class_="tick"))
        y += 32
        for one in rows:
            kind, value = "s0" if one.ours else "s7", one.words()
            low, middle, high = (f"{EDGE + x * span:.1f}" for x in (one.low, one.value, one.high))
            parts += [
                element("text", shortened(one.name, 40), x=EDGE, y=y + 12),
                element("text", value.split(",")[0], x=WIDTH - EDGE, y=y + 12, class_="end"),
                element("line", x1=EDGE, x2=WIDTH - EDGE, y1=y + 22, y2=y + 22, class_="grid"),
                element("line", x1=low, x2=high, y1=y + 22, y2=y + 22, class_=f"range {kind}"),
                element("circle", cx=middle, cy=y + 22, r=5, class_=f"dot {kind}"),
            ]
            told.append(f"{heading}, {one.name}: {value}")
            y += 36
        y += 8
    for mark in (0, 25, 50, 75, 100):
        side = {0: "tick", 100: "tick end"}.get(mark, "tick middle")
        parts.append(element("text", f"{mark} %", x=EDGE + mark / 100 * span, y=y + 6, class_=side))
    return Figure(name, title, "; ".join(told), joined(*parts), WIDTH, y + 14)


def bar(name: str, title: str, shares: Sequence[tuple[str, float, str]]) -> Figure:
    """Shares of a whole as one bar, each named below it with its amount in words; they sum to 1."""
    x, parts, told = float(EDGE), [element("text", title, x=EDGE, y=18, class_="title")], []
    for place, (word, share, amount) in enumerate(shares):
        long, kind, below = share * (WIDTH - 2 * EDGE + 2), f"fill s{place % 8}", 78 + 22 * place
        size = {"x": f"{x:.1f}", "width": f"{max(long - 2, 0.5):.1f}", "y": 32, "height": 22, "rx": 3}
        percent = f"{100 * share:.1f} %"
        parts += [
            element("rect", **size, class_=kind),
            element("rect", x=EDGE, y=below - 11, width=12, height=12, rx=2, class_=kind),
            element("text", word, x=EDGE + 20, y=below),
            element("text", percent, x=WIDTH - EDGE - 82, y=below, class_="end"),
            element("text", amount, x=WIDTH - EDGE, y=below, class_="tick end"),
        ]
        told.append(f"{percent} {word}, {amount}")
        x += long
    return Figure(name, title, "; ".join(told), joined(*parts), WIDTH, 70 + 22 * len(shares))


def matrix(name: str, title: str, names: Sequence[str], shares: Sequence[Sequence[float]]) -> Figure:
    """Shares of rows, from 0 to 1, as squares of one colour: the more, the stronger, and with its percent."""
    side, left, top = max(26, min(44, 640 // len(names))), 130, 112
    wide, parts = side * len(names), [element("text", title, x=EDGE, y=18, class_="title")]
    for place, word in enumerate(shortened(one, 18) for one in names):
        middle = (place + 0.5) * side
        parts.append(element("text", word, x=left - 7, y=top + middle, dy="0.35em", class_="tick end"))
        x, y = left + middle, top - 8
        turned = {"transform": f"rotate(-45 {x:g} {y:g})", "class_": "tick"}
        parts.append(element("text", word, x=f"{x:g}", y=f"{y:g}", **turned))
    for row, some in enumerate(shares):
        for column, share in enumerate(some):
            x, y = left + column * side, top + row * side
            box = {"x": x, "y": y, "width": side - 2, "height": side - 2, "rx": 3}
            # The root: a few percent of mistakes are to be seen too.
            strength = f"{max(0.05, share**0.5):.2f}"
            said = element("title", f"{names[row]} taken for {names[column]}: {100 * share:.1f} %")
            parts.append(element("rect", said, **box, class_="heat", fill_opacity=strength))
            if share >= 0.005:
                at = {"x": f"{x + side / 2 - 1:g}", "y": f"{y + side / 2 - 1:g}", "dy": "0.36em"}
                parts.append(element("text", f"{100 * share:.0f}", **at, class_="cell"))
    told = (
        f"{one} {100 * some[place]:.0f} %"
        for place, (one, some) in enumerate(zip(names, shares, strict=True))
    )
    words = f"Right of each class: {', '.join(told)}."
    return Figure(name, title, words, joined(*parts), left + wide + 80, top + wide + 6)


def marks(low: float, high: float, count: int, *, outside: bool = True) -> list[float]:
    """Round numbers, about `count` steps: from below the lowest to above the highest value, or in between."""
    least = 1e-4 if high > low else 0.5  # of a single value the order of magnitude is told
    span = max(high - low, abs(high) * least, 1e-9)
    step = 10.0 ** floor(log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count + 1e-9)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    if outside:
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        last += first == last  # all values are the same round number
    return [place * step for place in range(first, last + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """Round numbers in words, with as many digits as tell them apart."""
    step = values[1] - values[0] if len(values) > 1 else 1
    places = max(0, -floor(log10(step) + 1e-9))
    return [f"{value:,.{places}f}" for value in values]


def digits(value: float) -> str:
    """A number for people."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def rounded(point: tuple[float, float]) -> list[float]:
    return [float(f"{value:.5g}") for value in point]


def shortened(name: str, most: int) -> str:
    """A name's end, which tells paths apart."""
    return name if len(name) <= most else "…" + name[1 - most :]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST finite points: of more, means of as many neighbours each."""
    finite = [point for point in points if all(map(isfinite, point))]
    size = ceil(len(finite) / MOST) or 1
    parts = [finite[first : first + size] for first in range(0, len(finite), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
