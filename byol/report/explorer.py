"""The explorer: a page beside its data and thumbnails, in which a set of images is walked through as a map.

A page that is opened from disk may read nothing but scripts and images. So the data are scripts that call
`explorer(name, value)`, loaded when they are needed, and the thumbnails are sheets of images.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from byol import __version__
from byol.data.workers import Progress
from byol.errors import printable
from byol.features.features import Rows, Values
from byol.features.neighbours import Neighbours
from byol.report.document import document, static
from byol.report.markup import Html, element, joined

PART = 4096  # rows of names or of neighbours in a file
SIDES = ((5_000, 128), (20_000, 64), (200_000, 48))  # pixels of a thumbnail, by how many there are
LEAST_SIDE, SHEET = 32, 1024  # pixels: of thumbnails of more, of a sheet
OVERVIEW = 32  # so many by so many of the map's squares have a thumbnail in the first sheets
MOST_PAIRS = 200_000  # that a threshold of near-duplicates is chosen among
BINS = 60  # of the histogram of similarities
MOST_CLASSES = 1000  # of a column; the rarer ones share the last
TABS = {"image": "Image", "list": "List", "copies": "Near-duplicates", "picked": "Selection"}
REST, NONE = "(all others)", "(none)"


@dataclass(frozen=True)
class Map:
    """All images as points, and what is near what."""

    title: str
    points: Values  # (N, 2)
    method: str  # "t-SNE" or "PCA"
    kept: float  # share of the nearest neighbours that are so on the map
    near: Neighbours  # (N, k)


@dataclass(frozen=True)
class Column:
    """Something known of every image, that points are coloured by: classes, or numbers."""

    name: str
    values: Any  # (N,): places among the classes, or numbers
    classes: tuple[str, ...] | None = None

    @classmethod
    def of_words(cls, name: str, words: Sequence[str]) -> "Column":
        """Numbers when all are, of more than a few values; else classes, the most frequent ones first."""
        with suppress(ValueError):
            values = np.array([float(word) for word in words])
            if np.isfinite(values).all() and len(np.unique(values)) > 12:
                return cls(name, values)
        known = [word or NONE for word in words]
        kinds, places, counts = np.unique(known, return_inverse=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        if len(order) <= 30:  # few enough to be found by their names
            order = np.arange(len(kinds))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        names = [str(kinds[place]) for place in order]
        if len(names) > MOST_CLASSES:
            rank, names = rank.clip(max=MOST_CLASSES - 1), [*names[: MOST_CLASSES - 1], REST]
        return cls(name, rank[places], tuple(names))


def write_explorer(
    folder: Path,
    title: str,
    maps: Sequence[Map],
    names: Sequence[str],
    columns: Sequence[Column],
    picture: Callable[[int], Image.Image | None] | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the page and its data into an empty folder; `picture` gives a row's image, where there is one."""
    (folder / "data").mkdir()
    count = len(names)
    told: dict[str, Any] = {"title": title, "count": count, "part": PART, "version": __version__}
    told |= {"maps": [], "columns": [], "side": 0, "sheet": 0}
    for place, one in enumerate(maps):
        told["maps"].append(_write_map(folder, place, one))
    for place, column in enumerate(columns):
        told["columns"].append(_write_column(folder, place, column))
    for first in range(0, count, PART):
        part = [printable(name) for name in names[first : first + PART]]
        _write(folder, f"names-{first // PART}", part)
    if picture is not None:
        told["side"] = side = _side(count, picture)
        told["sheet"] = across = SHEET // side
        slots, told["overview"] = map_order(maps[-1].points)
        _write(folder, "slots", _coded(slots, np.int32))
        _write_sheets(folder, slots, side, across, picture, progress)
    about = json.dumps(told).replace("<", "\\u003c")  # no name ends the element
    data = Html(f'<script type="application/json" id="about">{about}</script>')
    script, style = static("explore.js"), static("explore.css")
    page = document(f"{title} - byol explore", _body(told), data, style=style, script=script, beside=True)
    (folder / "index.html").write_text(page, encoding="utf-8")


def map_order(points: Values) -> tuple[Rows, int]:
    """The place of every row's thumbnail (N,), and how many of the first are an overview of the whole map.

    Behind these, neighbours on the map are together, so that a look at a part of it loads few sheets.
    """
    unit = _unit(points)
    cells = np.minimum(unit * OVERVIEW, OVERVIEW - 1).astype(np.int64)
    mixed = np.random.default_rng(0).permutation(len(points))  # rows are often sorted by class
    _, first = np.unique((cells[:, 0] * OVERVIEW + cells[:, 1])[mixed], return_index=True)
    overview = mixed[first]
    bits = (unit * 65535).astype(np.int64)
    code = np.zeros(len(points), np.int64)
    for bit in range(16):  # Z-order: the bits of both coordinates in turn
        code |= ((bits[:, 0] >> bit & 1) << 2 * bit) | ((bits[:, 1] >> bit & 1) << 2 * bit + 1)
    code[overview] -= 2**40
    slots = np.empty(len(points), np.int64)
    slots[np.argsort(code, kind="stable")] = np.arange(len(points))
    return slots, len(overview)


def _unit(points: Values) -> Any:
    """Points in the unit square, float64, in proportion and in its middle."""
    wide = points.astype(np.float64)
    low, high = wide.min(axis=0), wide.max(axis=0)
    return ((wide - (low + high) / 2) / max((high - low).max(), 1e-12) + 0.5).clip(0, 1)


def _write_map(folder: Path, place: int, one: Map) -> dict[str, Any]:
    rows, cosines = one.near.rows, one.near.similarities
    unit = np.round(_unit(one.points) * 65535)
    _write(folder, f"map{place}", _coded(unit, np.uint16))
    for first in range(0, len(rows), PART):
        part = slice(first, first + PART)
        found = {"rows": _coded(rows[part], np.int32), "cosines": _coded(cosines[part], np.float32)}
        _write(folder, f"near{place}-{first // PART}", found)
    nearest = cosines[:, 0]
    low = float(np.floor(max(-1.0, float(nearest.min())) * 100) / 100)
    counts, _ = np.histogram(nearest.clip(low, 1), BINS, (low, 1.0))
    # Each pair once, the most similar first.
    order = np.argsort(-cosines, axis=None, kind="stable")[: 2 * MOST_PAIRS]
    pairs = np.stack((order // rows.shape[1], rows.reshape(-1)[order]))
    pairs = np.sort(pairs, axis=0)
    _, once = np.unique(pairs, axis=1, return_index=True)
    once = np.sort(once)[:MOST_PAIRS]
    values = cosines.reshape(-1)[order[once]]
    found = {"a": _coded(pairs[0, once], np.int32), "b": _coded(pairs[1, once], np.int32)}
    _write(folder, f"pairs{place}", found | {"cosines": _coded(values, np.float32)})
    return {
        "title": printable(one.title), "method": one.method, "kept": one.kept, "k": rows.shape[1],
        "histogram": {"low": low, "counts": counts.tolist()},
        "floor": float(values[-1]) if len(once) == MOST_PAIRS else low,
    }  # fmt: skip


def _write_column(folder: Path, place: int, column: Column) -> dict[str, Any]:
    values = np.asarray(column.values)
    told: dict[str, Any] = {"name": printable(column.name)}
    if column.classes is None:
        _write(folder, f"column{place}", _coded(values, np.float32))
        return told | {"low": float(values.min()), "high": float(values.max())}
    _write(folder, f"column{place}", _coded(values, np.uint16))
    counts = np.bincount(values, minlength=len(column.classes)).tolist()
    return told | {"classes": [printable(name) for name in column.classes], "counts": counts}


def _write_sheets(
    folder: Path, slots: Rows, side: int, across: int,
    picture: Callable[[int], Image.Image | None], progress: Progress,
) -> None:  # fmt: skip
    """Thumbnails by their slots; one sheet is in memory at a time."""
    (folder / "sheets").mkdir()
    rows, size = np.argsort(slots), across * across
    for first in range(0, len(rows), size):
        those = rows[first : first + size].tolist()
        sheet = Image.new("RGB", (across * side, -(-len(those) // across) * side), "#e8e7e2")
        for place, row in enumerate(those):
            image = picture(row)
            if image is not None:
                small = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
                left, top = place % across * side, place // across * side
                sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
            progress(first + place + 1, len(rows))
        sheet.save(folder / "sheets" / f"{first // size}.jpg", quality=85, subsampling=0)


def _side(count: int, picture: Callable[[int], Image.Image | None]) -> int:
    """Pixels of a thumbnail: no more than the images have, fewer of many images."""
    most = next((side for limit, side in SIDES if count <= limit), LEAST_SIDE)
    some = [image for row in range(min(count, 8)) if (image := picture(row)) is not None]
    return max(16, min(most, max((max(image.size) for image in some), default=most)))


def _write(folder: Path, name: str, value: Any) -> None:
    text = f"explorer({json.dumps(name)},{json.dumps(value)})\n"
    (folder / "data" / f"{name}.js").write_text(text, encoding="ascii")


def _coded(values: Any, kind: Any) -> str:
    """Numbers as base64 of their little-endian bytes."""
    return b64encode(np.ascontiguousarray(values).astype(np.dtype(kind).newbyteorder("<")).tobytes()).decode()


def _body(told: dict[str, Any]) -> Html:
    """What stands on the page before its script fills it."""
    canvases = [
        element(
            "figure",
            element("figcaption", element("strong", one["title"]), " ", element("span", _kept(one))),
            element("div", element("canvas", class_="points"), element("canvas", class_="over"), class_="map",
                    tabindex=0, role="application", aria_roledescription="map",
                    aria_label=f"Map of {told['count']:,} images, {one['title']}", aria_describedby="keys"),
        )
        for one in told["maps"]
    ]  # fmt: skip
    keys = [
        ("arrows", "the next image in that direction"), ("Shift + arrows", "move the map"),
        ("+ and -", "nearer and farther"), ("0", "the whole map"), ("Enter", "open the image"),
        ("n", "its next neighbour"), ("s", "select it, or not"), ("Escape", "let go"),
    ]  # fmt: skip
    listed = [joined(element("dt", key), element("dd", does)) for key, does in keys]
    tools = ("zoom-in", "+", "Nearer"), ("zoom-out", "-", "Farther"), ("whole", "⤢", "The whole map")
    buttons = [
        element("button", sign, id=name, type="button", title=says, aria_label=says)
        for name, sign, says in tools
    ]
    lasso = element("button", "Lasso", id="lasso", type="button", aria_pressed="false",
                    title="Draw around images to select them; Shift + drag does so too")  # fmt: skip
    shown = element("label", Html('<input id="thumbs" type="checkbox" checked>'), " Thumbnails")
    seen = element("button", "Select what is in view", id="select-seen", type="button")
    tabs = [
        element("button", words, id=f"tab-{name}", type="button", role="tab", aria_controls=f"panel-{name}",
                aria_selected="false", tabindex=-1)
        for name, words in TABS.items()
    ]  # fmt: skip
    panels = [
        element(
            "div", id=f"panel-{name}", role="tabpanel", aria_labelledby=f"tab-{name}", tabindex=0, hidden=""
        )
        for name in TABS
    ]
    search = element(
        "label", "File name", Html('<input id="search" type="search" autocomplete="off" spellcheck="false">')
    )
    colour = element("label", "Colour by", element("select", id="colour"))
    head = element(
        "header",
        element("div", element("p", "byol explore", class_="brand"), element("h1", told["title"])),
        element("div", search, colour, class_="controls"),
    )
    left = element(
        "section",
        element("div", *canvases, class_="maps", data_maps=len(canvases)),
        element("div", element("div", *buttons, lasso, seen, shown, class_="buttons"),
                element("p", id="count", role="status"), class_="bar"),
        element("details", element("summary", "Keys on the map"), element("dl", *listed, id="keys")),
        element("fieldset", element("legend", "Colours", id="legend-title"), element("div", id="legend")),
        aria_label="Map",
    )  # fmt: skip
    right = element(
        "section", element("div", *tabs, role="tablist", aria_label="Views"), *panels, class_="side",
        aria_label="Images",
    )  # fmt: skip
    said = f"Written by byol {told['version']}. This page needs no network and sends nothing."
    return joined(
        head, element("div", left, right, class_="columns"),
        element("p", id="said", class_="unseen", role="status", aria_live="polite"),
        element("div", id="tip", hidden="", aria_hidden="true"),
        element("footer", element("p", said)),
    )  # fmt: skip


def _kept(one: dict[str, Any]) -> str:
    k = min(10, one["k"])
    return f"{one['method']}; keeps {100 * one['kept']:.0f} % of the {k} nearest neighbours"
