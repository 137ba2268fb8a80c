"""What the network saw and what it made of it: sections of a page, of few enough images to take seconds."""

import logging
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from byol.data.batches import BatchPlan, cut
from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.readers.reader import evenly_spaced
from byol.encoders.encoder import Encoder, device_of
from byol.encoders.load import untrained
from byol.errors import ByolError, ConfigError, complaint
from byol.features.features import Rows, Values
from byol.features.neighbours import near_duplicates, outliers, search
from byol.features.project import share_kept
from byol.method.crops import crop_draws
from byol.method.health import settle
from byol.method.views import Views
from byol.models.whitening import HalfWhitening
from byol.report.figures import Figure, shortened
from byol.report.markup import Html, element, joined, scrolled, section, void
from byol.report.page import write_report
from byol.report.record import Record, read_record
from byol.train.plan import Plan

logger = logging.getLogger("byol")
VIEWED, EMBEDDED, PART = 12, 1000, 64  # images: shown with their views, embedded at most, and at once
SECONDS = 5.0  # after which no more are read
MOST_PIXELS = 2**24  # of all views of an image
QUERIES, NEAR, FAR = 8, 5, 10
SETTLED = 256  # images whose statistics an untrained network gets
ALIKE = (0.97, 0.98, 0.99, 0.995, 0.999)  # cosines of near-duplicates: the first that tells images apart
GROUPS, MEMBERS = 6, 6  # of near-duplicates that are shown
SIDE, THUMB = 88, 36  # pixels: of a picture, of one on the map
WIDTH, HEIGHT = 880, 600  # of the map


@dataclass(frozen=True)
class Seen:
    """A random sample of a run's images as its encoder was fed them, and what it made of them."""

    pixels: Tensor  # uint8 (n, C, h, w)
    x: Values  # (n, D)
    before: Values | None  # by the untrained network; None where it cannot be built
    names: list[str]
    labels: Rows | None
    classes: tuple[str, ...]

    def picture(self, row: int, side: int = SIDE) -> Html:
        return picture(shown(self.pixels[row]), self.words(row), side)

    def words(self, row: int) -> str:
        return self.names[row] + (f", {self.kind(row)}" if self.labels is not None else "")

    def kind(self, row: int) -> str:
        """The class of an image, in words."""
        assert self.labels is not None
        return self.classes[self.labels[row]] if self.classes else str(self.labels[row])


def picture_sections(
    record: Record, images: Images | str, encoder: Encoder | str
) -> tuple[list[Html], list[Figure]]:
    """Sections of a page, and the figures among them; for images or an encoder why there is none will do."""
    if isinstance(images, str):
        return [section("What the network saw", element("p", f"No pictures: {images}"))], []
    sections = [view_section(images, record.plan)]
    if isinstance(encoder, str):
        return [
            *sections,
            section("What it learned", element("p", f"No neighbours and no map: {encoder}")),
        ], []
    seen = looked_at(images, encoder, record.plan.seed)
    if len(seen.x) < 2 * QUERIES or not np.isfinite(seen.x).all():
        return sections, []
    drawn, words = drawn_map(seen)
    figure = element(
        "figure", scrolled(drawn.inline(style="min-width:640px"), drawn.title), element("figcaption", words)
    )
    return [*sections, neighbour_section(seen), section("Map", figure), odd_section(seen)], [drawn]


def report_at_the_end(
    folder: Path, images: Images | None = None, encoder: Encoder | None = None
) -> Path | None:
    """Write a run's report into its folder. A report that fails is warned of: the run itself is whole."""
    try:
        record = read_record(str(folder))
        given = images_of(record) if images is None else images
        sections, _ = picture_sections(record, given, encoder or "the run has none.")
        write_report([record], record.folder.report, sections)
    except Exception as failure:  # whatever it is, it is no reason to call a run failed that has ended well
        again = "The run itself is not touched by that; `byol report` tries again."
        logger.warning("There is no report of %s (%s). %s", folder, complaint(failure), again)
        return None
    return record.folder.report


def images_of(record: Record, given: str | None = None) -> Images | str:
    """The run's images, from where they were or are said to be; else why there are none."""
    where = given or record.images_at
    advice = "Give them to byol report with --data."
    if where is None:
        return f"the run's images ({record.images}) are not to be found. {advice}"
    names = ("channels", "max_pixels", "min_side", "truncated", "black", "white")
    try:
        images = open_images(where, **{name: record.config.get(f"data.{name}") for name in names})
    except ByolError as failure:
        return f"{failure} {advice}"
    if images.fingerprint() != record.fingerprint or images.channels != record.plan.channels:
        return f"{where} does not hold the images that the run was trained on. {advice}"
    return images


def views_of_each(
    images: Images, rows: Sequence[int], plan: Plan
) -> list[tuple[int, list[tuple[str, Image.Image]]]]:
    """The views of each image that can be read, by their names, as the run draws them."""
    views, found = Views(plan.image_size, plan.views, plan.channels), []
    what = BatchPlan(plan.seed, len(images), 1, 1, views, extra_views=plan.extra_views(views))
    mean, std = (torch.tensor(values)[:, None, None] for values in (views.mean, views.std))
    for row in rows:
        with suppress(BadImage):
            picture, crops = images.picture(row), []
            for drawn, count, stream in what.parts:
                same = torch.zeros(count, dtype=torch.int64)
                draws = crop_draws(plan.seed, same, same + row, torch.arange(count), stream)
                crops.append(cut(picture, drawn, draws)[None])
            pair = views.finish(crops[0], seed=plan.seed, step=row)
            every = {f"view {number}": view for number, view in enumerate(pair, 1)}
            for kind, cropped in zip(what.extra_views, crops[1:], strict=True):
                made = kind.finish(cropped, seed=plan.seed, step=row)
                every |= {f"{kind.name} {number}": view for number, view in enumerate(made, 1)}
            pixels = {name: (view[0] * std + mean).mul(255).round() for name, view in every.items()}
            found.append((row, [(name, shown(x.clamp(0, 255).byte())) for name, x in pixels.items()]))
    return found


def shown(pixels: Tensor) -> Image.Image:
    """Pixels, uint8 (C, h, w), as a picture: of many channels the first three."""
    some = pixels[:3] if len(pixels) > 2 else pixels[:1].expand(3, -1, -1)
    return Image.fromarray(some.permute(1, 2, 0).contiguous().numpy())


def picture(image: Image.Image, words: str, side: int) -> Html:
    """A picture in the page itself, at most twice the size at which it is shown."""
    return void("img", src=address(image, 2 * side), alt=words, title=words, loading="lazy",
                class_="small" if max(image.size) < side else None)  # fmt: skip


def address(image: Image.Image, side: int) -> str:
    stream, image = BytesIO(), image.convert("RGB")
    small = image if max(image.size) <= side else ImageOps.contain(image, (side, side))
    small.save(stream, "JPEG", quality=86, subsampling=0)
    return f"data:image/jpeg;base64,{b64encode(stream.getvalue()).decode()}"


def view_section(images: Images, plan: Plan) -> Html:
    """Some images beside the views of each."""
    count = 2 + plan.local_views + plan.cutout_views + plan.target_views
    if count * prod(plan.image_size) > MOST_PIXELS:  # of a run that somebody else has made up
        return section("What the network saw", element("p", "Its views are too large to be drawn here."))
    found = []
    for row, views in views_of_each(images, evenly_spaced(len(images), VIEWED), plan):
        every = [("original", images[row]), *views]
        parts = (picture(image, f"{kind} of {images.name(row)}", SIDE) for kind, image in every)
        found.append(
            element(
                "figure",
                element("div", *parts, class_="strip"),
                element("figcaption", images.name(row)),
                class_="views",
            )
        )
    words = "Each image and its views of one step. What both have in common is what is learned."
    return section("What the network saw", element("p", words), element("div", *found, class_="gallery"))


def looked_at(images: Images, encoder: Encoder, seed: int) -> Seen:
    """A random sample through the encoder and through an untrained one."""
    order, device = np.random.default_rng(seed).permutation(len(images))[:EMBEDDED], device_of(encoder)
    began = monotonic()
    rows, pixels, x = list[int](), list[Tensor](), list[Tensor]()
    for first in range(0, len(order), PART):
        part = []
        for row in order[first : first + PART].tolist():
            with suppress(BadImage):
                part.append(encoder.prepare(torch.from_numpy(images.array(row)).permute(2, 0, 1)[None]))
                rows.append(row)
        if part:
            x.append(encoder(torch.cat(part).to(device)).cpu())
            pixels.append(torch.cat(part).mul(255).round_().byte())
        if monotonic() - began > SECONDS:
            break
    before = None
    with suppress(ConfigError):  # code of the user's own, which only the user can build
        fresh = untrained(encoder, seed=seed)
        settle(fresh.network, fresh.prepare(torch.cat(pixels)[:SETTLED].to(device), normalised=True))
        found = torch.cat([fresh(part.to(device)).cpu() for part in pixels])
        if encoder.info.options.get("whiten"):
            found = HalfWhitening.of(found)(found)
        before = found.numpy()
    some = images.subset(rows)
    images.release()
    names = [some.name(place) for place in range(len(rows))]
    labels = None if some.labels is None or some.labels.min() < 0 else some.labels
    return Seen(torch.cat(pixels), torch.cat(x).numpy(), before, names, labels, some.classes or ())


def neighbour_section(seen: Seen) -> Html:
    """The nearest neighbours of a few images, after training and by an untrained network."""
    queries, sides, said = range(QUERIES), [("After training", seen.x)], []
    sides += [("Untrained", seen.before)] if seen.before is not None else []
    found = [search(x, rows=range(len(x)), k=NEAR).rows for _, x in sides]
    if seen.labels is not None:
        shares = [(seen.labels[rows] == seen.labels[:, None]).mean() for rows in found]
        said = [
            f"{100 * share:.0f} % {title.lower()}" for (title, _), share in zip(sides, shares, strict=True)
        ]
        said = [
            element(
                "p",
                f"Of the {NEAR} nearest of each image, of its own class: {', '.join(said)}. ✓ marks them.",
            )
        ]
    lines = []
    for query in queries:
        cells = [element("div", element("h3", "Image"), element("div", seen.picture(query), class_="strip"))]
        for (title, _), rows in zip(sides, found, strict=True):
            strip = (neighbour(seen, query, row) for row in rows[query].tolist())
            cells.append(element("div", element("h3", title), element("div", *strip, class_="strip")))
        lines.append(element("div", *cells, class_="neighbours"))
    words = f"Sample images and the {NEAR} most similar of {len(seen.x):,}, the most similar first."
    return section("Nearest neighbours", element("p", words), *said, *lines)


def neighbour(seen: Seen, query: int, row: int) -> Html:
    same = seen.labels is not None and seen.labels[row] == seen.labels[query]
    return element(
        "span",
        seen.picture(row),
        element("span", "✓", title="same class", class_="mark") if same else None,
        class_="thumb",
    )


def drawn_map(seen: Seen) -> tuple[Figure, str]:
    """All images in a plane, by the two directions in which their features differ most (PCA)."""
    x = torch.from_numpy(seen.x).double()
    x = torch.nn.functional.normalize(x)
    centred = x - x.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    plane = vectors[:, -2:].flip(1) * values[-2:].flip(0).clamp_min(0).sqrt()
    share = float(values[-2:].clamp_min(0).sum() / values.clamp_min(0).sum().clamp_min(1e-12))
    k = min(10, len(x) - 1)
    kept = share_kept(plane.numpy(), search(seen.x, rows=(rows := np.arange(len(x))), k=k).rows, rows)
    low, high = plane.quantile(0.01, dim=0), plane.quantile(0.99, dim=0)
    inside = torch.tensor([WIDTH - 2 * THUMB, HEIGHT - 2 * THUMB])
    spots = (((plane - low) / (high - low).clamp_min(1e-9)).clamp(0, 1) * inside + THUMB).tolist()
    kinds = [] if seen.labels is None else sorted({*seen.labels.tolist()})
    colours = {kind: f"s{place}" for place, kind in enumerate(kinds)} if len(kinds) <= 8 else {}
    dots, thumbs, placed = [], [], list[tuple[float, float]]()
    for row, (left, top) in enumerate(spots):
        kind = colours.get(int(seen.labels[row]), "s7") if seen.labels is not None else "s0"
        title = element("title", seen.words(row))
        if all(max(abs(left - a), abs(top - b)) > THUMB + 3 for a, b in placed):
            placed.append((left, top))
            box = {
                "x": f"{left - THUMB / 2:.1f}",
                "y": f"{top - THUMB / 2:.1f}",
                "width": THUMB,
                "height": THUMB,
            }
            thumbs.append(element("image", title, href=address(shown(seen.pixels[row]), 2 * THUMB), **box))
            thumbs += [element("rect", **box, class_=f"frame {kind}")] if colours else []
        else:
            dots.append(
                element("circle", title, cx=f"{left:.1f}", cy=f"{top:.1f}", r=3.5, class_=f"dot {kind}")
            )
    legend = []
    for place, (kind, colour) in enumerate(colours.items()):
        at, below = 12 + place % 4 * 216, HEIGHT + 14 + place // 4 * 20
        legend.append(element("circle", cx=at, cy=below - 4, r=5, class_=f"dot {colour}"))
        name = seen.classes[kind] if seen.classes else str(kind)
        legend.append(element("text", shortened(name, 26), x=at + 12, y=below))
    tall = HEIGHT + 20 * -(-len(colours) // 4) + 6
    words = f"{len(seen.x):,} images by the two main directions of their features (PCA), which hold "
    words += (
        f"{100 * share:.0f} % of the variance. Of the {k} nearest of an image {100 * kept:.0f} % stay so."
    )
    return Figure("map", "Map of the images", words, joined(*dots, *thumbs, *legend), WIDTH, tall), words


def odd_section(seen: Seen) -> Html:
    """Groups of near-duplicates, and outliers."""
    for similarity in ALIKE:
        groups = near_duplicates(seen.x, similarity)
        if not groups or len(groups[0]) <= max(2, len(seen.x) // 20):
            break
    parts = [element("h3", f"Near-duplicates, similarity from {similarity:g}")]
    for rows in groups[:GROUPS]:
        strip = (seen.picture(row) for row in rows[:MEMBERS].tolist())
        parts.append(
            element(
                "div",
                element("p", f"{len(rows):,} images"),
                element("div", *strip, class_="strip"),
                class_="group",
            )
        )
    parts += [] if groups else [element("p", f"None among {len(seen.x):,} images.")]
    far = outliers(seen.x, FAR)
    parts += [
        element("h3", "Least like all others"),
        element("div", *map(seen.picture, far.rows.tolist()), class_="strip"),
    ]
    words = f"Among {len(seen.x):,} images. In all of them: byol embed, then byol search --duplicates 0.97."
    return section("Near-duplicates and outliers", element("p", words), *parts)
