"""How soon the explorer shows a map, and how smoothly it moves, in Chromium without graphics hardware.

python benchmarks/explore.py [--points 50000 1000000]

Synthetic points in clusters, no thumbnails. First picture: from the request until the page says that it is
ready. Frames: how many the browser draws in three seconds of dragging the map to and fro.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from measure import machine, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))
from browser import Browser, browser

from byol.features.neighbours import Neighbours
from byol.report.explorer import Column, Map, write_explorer

SECONDS = 3.0
PAINTERS = {"canvas": ("--disable-3d-apis",), "WebGL": ("--enable-unsafe-swiftshader", "--use-gl=angle")}


def made(folder: Path, count: int) -> None:
    """A map of so many points in a hundred clusters."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 100, count)
    points = np.float32(draws.normal(size=(100, 2))[labels] + draws.normal(size=(count, 2)) / 10)
    rows = draws.integers(0, count, (count, 12))
    near = Neighbours(rows, np.sort(np.float32(draws.random((count, 12))))[:, ::-1])
    classes = tuple(f"class {number}" for number in range(100))
    names = [f"{row:07}.jpg" for row in range(count)]
    maps = [Map("points", points, "PCA", 0.0, near)]
    write_explorer(folder, "points", maps, names, [Column("label", labels, classes)])


def measured(page: Browser, address: str) -> tuple[float, float]:
    """Seconds to the first picture, and frames a second."""
    began = time.perf_counter()
    page.open(address)
    first = time.perf_counter() - began
    page.js("window.frames_seen = 0; (function next() { frames_seen++; requestAnimationFrame(next); })()")
    page.mouse("mousePressed", 400, 400)
    before, began, turn = page.js("frames_seen"), time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        turn += 1
        page.ask("Input.dispatchMouseEvent", type="mouseMoved", x=400 + 4 * (turn % 40), y=400, button="left",
                 buttons=1)  # fmt: skip
    frames = (page.js("frames_seen") - before) / (time.perf_counter() - began)
    page.mouse("mouseReleased", 400, 400)
    return first, frames


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, nargs="+", default=[50_000, 1_000_000])
    options = parser.parse_args()
    machine()
    lines = []
    with TemporaryDirectory() as root:
        for count in options.points:
            folder = Path(root) / str(count)
            folder.mkdir()
            made(folder, count)
            for painter, flags in PAINTERS.items():
                with browser(*flags) as page:
                    words = "?draw=webgl" if painter == "WebGL" else ""
                    first, frames = measured(page, (folder / "index.html").as_uri() + words)
                lines.append([f"{count:,}", painter, f"{first:.2f}", f"{frames:.0f}"])
    table("the explorer", ["points", "drawn by", "first picture, s", "frames/s"], lines)


if __name__ == "__main__":
    main()
