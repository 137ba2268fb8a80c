"""`byol explore`"""

import csv
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from byol.data import workers
from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.readers.table import DELIMITERS, PATHS
from byol.disk import check_writable, filling
from byol.errors import ConfigError, DataError, printable, show
from byol.features import project
from byol.features.features import Features
from byol.features.neighbours import Neighbours, check_at_least_one, search
from byol.features.select import clusters
from byol.features.sheet import none_there, places
from byol.machine import usable_cores
from byol.report.embeddings_file import FILE, can_be_written, write_embeddings
from byol.report.explorer import Column, Map, write_explorer
from byol.settings import parse

MOST_TSNE = 200_000  # rows that t-SNE is made of without --map: of more it takes hours
BLOCK = 2048  # rows whose neighbours are looked for between two words of progress
JUDGED, KEPT = 1000, 10  # rows by which a map is judged, and the neighbours of each
COMPUTED = CLUSTER, OUTLIER = "cluster", "outlier score"  # columns


@dataclass(frozen=True)
class Explore:
    features: tyro.conf.Positional[tuple[str, ...]]
    """What `byol embed` wrote. Of two files, of the same images before and after, two maps are drawn."""
    data: str | None = None
    """The images that were embedded, for thumbnails."""
    out: str = "map"
    """Folder to write the page and its data to; one that is there must be empty, or a map of before."""
    table: str | None = None
    """.csv or .tsv with a column of file names: its other columns, such as predictions, are colours too."""
    clusters: int = 10
    """Clusters to colour by (k-means); 0 for none. Needs scikit-learn."""
    k: int = 12
    """Nearest neighbours that are shown of every image."""
    map: Literal["auto", "tsne", "pca"] = "auto"
    """tsne needs openTSNE. auto takes it where it is installed, for up to 200,000 images."""
    seed: int = 0
    """Of the map and the clusters."""
    device: str | None = None
    """cpu, cuda, cuda:N or mps, to compare all images with all. By default the GPU when there is one."""
    serve: bool = False
    """Serve the page to this machine alone, until Ctrl-C. Without it the page opens from disk."""
    port: int = 0
    """Port of --serve; by default one that is free."""


def explore(arguments: Sequence[str]) -> int:
    """Write a page that a set of images is walked through with."""
    what = (
        "Draw a map of images by their features: a page to zoom, search, filter and select in, with the "
        "neighbours and near-duplicates of every image. It opens from disk and needs no network."
    )
    command = parse(Explore, arguments, prog="byol explore", description=what, switches=True)
    out = Path(os.path.abspath(command.out))
    check(command, out)
    every = [Features.load(path, mapped=True) for path in command.features]
    last = every[-1]
    names = same_images(every, command.features)
    known = columns_of(last, command, names)
    images = None if command.data is None else open_images(command.data)
    place_of = {} if images is None else places(images, last, range(len(last)))
    if images is not None and not place_of:
        raise none_there(images, len(last))
    titles = [Path(path).stem for path in command.features]
    titles = [*command.features] if len({*titles}) < len(titles) else titles
    out.parent.mkdir(parents=True, exist_ok=True)
    with bar() as part:
        maps = [mapped(one, title, command, part) for one, title in zip(every, titles, strict=True)]
        known += computed(last, maps[-1].near, command)
        picture = None if images is None else partial(picture_of, images, place_of)
        with replaced(out) as folder:
            title = " and ".join(titles)
            write_explorer(folder, title, maps, names, known, picture, part("thumbnails"))
            if can_be_written():
                write_embeddings(folder / FILE, last, maps, names, known, root_of(command.data, names))
    for one in maps:
        kept = f"keeps {one.kept:.0%} of the {min(KEPT, one.near.rows.shape[1])} nearest neighbours"
        show(f"map        {one.title}: {one.method}, {kept}")
    if images is not None and (missing := len(last) - len(place_of)):
        show(f"note       {missing:,} of {len(last):,} images are not among {command.data}")
    if command.map == "auto" and not project.tsne_is_here() and len(last) > project.LEAST:
        show("note       a map by t-SNE keeps more of them. Run: pip install 'byol[map]'")
    if not can_be_written():
        show(f"note       {FILE}, for other programs, needs pyarrow. Run: pip install 'byol[parquet]'")
    show(f"written    {command.out}/: {len(last):,} images")
    if command.serve:
        serve(out, command.port)
    else:
        show(f"next       open {command.out}/index.html in a browser")
    return 0


def check(command: Explore, out: Path) -> None:
    """Raise ConfigError for invalid values, before any work."""
    if not 1 <= len(command.features) <= 2:
        came = f"{len(command.features)} files of features"
        raise ConfigError(f"{came} were given; expected one, or two of the same images before and after.")
    check_at_least_one("k", command.k)
    if command.clusters < 0:
        raise ConfigError(f"--clusters is {command.clusters}; expected 0 or more.")
    if not 0 <= command.port < 65536:
        raise ConfigError(f"--port is {command.port}; expected 0 to 65535.")
    if command.map == "tsne" and not project.tsne_is_here():
        raise ConfigError("--map tsne needs openTSNE. Run: pip install 'byol[map]', or give --map pca.")
    if os.path.exists(out) and not (out.is_dir() and (is_map(out) or not any(out.iterdir()))):
        raise ConfigError(f"--out is {command.out}, which is there and is not a map. Give another folder.")
    check_writable(out.parent, "Choose another folder with --out.", out.name)


def is_map(folder: Path) -> bool:
    """Whether this command wrote a folder, and nobody put anything beside what it wrote."""
    own = {"index.html", "data", "sheets", FILE}
    return (folder / "data" / "map0.js").is_file() and {path.name for path in folder.iterdir()} <= own


def same_images(every: Sequence[Features], paths: Sequence[str]) -> list[str]:
    """The names of the images. Raises DataError for files of several image sets, or of one image."""
    first, last = every[0], every[-1]
    if len(first) != len(last) or (first.names and last.names and first.names != last.names):
        came = " and ".join(paths)
        raise DataError(f"{came} are not features of the same images in the same order. Embed them again.")
    if len(last) < 3:
        raise DataError(f"There are {len(last)} images; expected at least 3 for a map.")
    return last.names or first.names or [str(row) for row in range(len(last))]


def mapped(features: Features, title: str, command: Explore, part: Callable[[str], workers.Progress]) -> Map:
    """The neighbours of every row, and the rows in a plane."""
    count = len(features)
    tsne = command.map == "tsne" or (
        command.map == "auto" and project.tsne_is_here() and project.LEAST < count <= MOST_TSNE
    )
    k = min(count - 1, max(command.k, KEPT, int(3 * project.PERPLEXITY) if tsne else 0))
    parts, told = [], part("neighbours")
    for first in range(0, count, BLOCK):
        rows = range(first, min(first + BLOCK, count))
        parts.append(search(features, rows=rows, k=k, device=command.device))
        told(rows.stop, count)
    wide = Neighbours(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "similarities"))
    )
    points = project.pca(features)
    if tsne:
        points = project.tsne(wide, points, seed=command.seed, threads=usable_cores(), progress=part("map"))
    judged = np.sort(np.random.default_rng(command.seed).permutation(count)[:JUDGED])
    kept = project.share_kept(points, wide.rows[judged, :KEPT], judged)
    near = Neighbours(wide.rows[:, : command.k], wide.similarities[:, : command.k])
    return Map(title, points, "t-SNE" if tsne else "PCA", kept, near)


def columns_of(features: Features, command: Explore, names: Sequence[str]) -> list[Column]:
    """What is known of the images: their labels, and a table's columns, each by a name of its own."""
    found, y = [], features.y
    if y is not None and y.ndim == 1:
        classes = features.classes or tuple(str(number) for number in range(int(y.max()) + 1))
        found.append(Column.of_words("label", [classes[number] for number in y.tolist()]))
        if found[0].classes is None:  # classes named by numbers are classes
            found = [Column("label", y, classes)]
    elif y is not None:
        classes = features.classes or tuple(map(str, range(y.shape[1])))
        found.append(
            Column.of_words("label", [", ".join(classes[n] for n in np.flatnonzero(row)) for row in y])
        )
    if command.table is not None:
        table = Path(command.table)
        taken = {*(one.name for one in found), *COMPUTED}
        for column in table_columns(table, names):
            others = chain([f"{column.name} in {table.name}"], (f"{column.name} {n}" for n in count(2)))
            name = next(one for one in chain([column.name], others) if one not in taken)
            taken.add(name)
            found.append(replace(column, name=name))
    return found


def computed(features: Features, near: Neighbours, command: Explore) -> list[Column]:
    """What the features say of the images: clusters, and how unlike all others each is."""
    found = []
    if command.clusters:
        with suppress(ConfigError):  # without scikit-learn
            count = min(command.clusters, len(features))
            labels = clusters(features, count, seed=command.seed).labels
            found.append(Column(CLUSTER, labels, tuple(f"cluster {place}" for place in range(count))))
    return [*found, Column(OUTLIER, 1 - near.similarities.mean(axis=1))]


def table_columns(path: Path, names: Sequence[str]) -> list[Column]:
    """The columns of a table of file names and what is known of them, by its first line's titles."""
    if path.suffix.lower() not in DELIMITERS:
        raise ConfigError(f"--table is {path}; expected a file that ends in {' or '.join(DELIMITERS)}.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            titles, *rows = csv.reader(file, delimiter=DELIMITERS[path.suffix.lower()])
    except (OSError, ValueError, csv.Error) as failure:
        raise DataError(
            f"{path} cannot be read ({failure}); expected a table with a line of titles."
        ) from failure
    place = next((n for n, title in enumerate(titles) if title.strip().lower() in (*PATHS, "name")), None)
    if place is None:
        came, expected = ", ".join(map(printable, titles)), ", ".join((*PATHS, "name"))
        raise DataError(f"{path} has the columns {came}; expected one of file names, titled {expected}.")
    by_name = {row[place]: row for row in rows if len(row) == len(titles)}
    if not any(name in by_name for name in names):
        raise DataError(f"{path} names none of the {len(names):,} images, such as {printable(names[0])}.")
    empty = [""] * len(titles)
    every = [by_name.get(name, empty) for name in names]
    return [
        Column.of_words(title.strip() or f"column {n + 1}", [row[n] for row in every])
        for n, title in enumerate(titles) if n != place
    ]  # fmt: skip


def root_of(data: str | None, names: Sequence[str]) -> Path | None:
    """The folder that the names of files begin at; None where they are no files of one."""
    root = None if data is None else Path(os.path.abspath(data))
    return root if root is not None and (root / names[0]).is_file() else None


def picture_of(images: Images, place_of: dict[int, int], row: int) -> Image.Image | None:
    """The image of a row, where there is one that can be read."""
    with suppress(BadImage):
        if row in place_of:
            found: Image.Image = images[place_of[row]]
            return found
    return None


@contextmanager
def bar() -> Iterator[Callable[[str], workers.Progress]]:
    """A bar on a terminal for each part of the work; it is told how far that part is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:

        def part(what: str) -> workers.Progress:
            task = progress.add_task(what, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield part


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of one that is a map of before, or empty, or not there."""
    with filling(fresh := folder.with_name(f".{folder.name}-{os.getpid()}")) as temporary:
        yield temporary
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def serve(folder: Path, port: int) -> None:
    """Serve a folder's files to this machine alone, until the process is interrupted."""

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            host = self.headers.get("Host", "").partition(":")[0]  # of port 80 browsers tell no number
            if host not in ("127.0.0.1", "localhost"):  # a page from elsewhere, by a name that leads here
                return self.send_error(403)
            if not Path(self.translate_path(self.path)).resolve().is_relative_to(folder.resolve()):
                return self.send_error(404)  # a link that leads elsewhere
            return super().send_head()

        def list_directory(self, path: Any) -> Any:
            """What has no name in the page is nobody's business."""
            return self.send_error(404)

        def log_message(self, format: str, *values: Any) -> None:
            """Nothing: every look at the map asks for many files."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))
    except OSError as failure:
        said = f"--port {port} cannot be used ({failure.strerror}). Take another one, or leave it out."
        raise ConfigError(said) from failure
    with server, suppress(KeyboardInterrupt):
        show(f"serving    http://127.0.0.1:{server.server_port}/ to this machine alone; Ctrl-C ends it")
        server.serve_forever()
