"""Which figures the files of runs give: their curves, scores and time."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from byol.disk import write_text
from byol.evaluation.metrics import interval
from byol.evaluation.tables import TITLES
from byol.evaluation.verdict import BASELINES
from byol.report.figures import Curve, Figure, Range, bar, chart, ranges
from byol.report.mistakes import mistake_section
from byol.report.raster import write_png
from byol.report.record import Record
from byol.report.reference import Reference, reference_of
from byol.train.log import duration
from byol.train.monitor import unpacked
from byol.train.outcome import COLLAPSED

# The metric, the figure's file, its title, its unit, what it tells.
CURVES = (
    ("knn_top1", "knn", "kNN on the hold-out set", "%",
     "Held-out images whose nearest training images name their class, with the 95 % interval."),
    ("representation_retrieval", "retrieval", "Views that find their partner", "%",
     "Views whose nearest among many others is the other view of their image. Up is good."),
    ("loss", "loss", "Loss", "",
     "Distance of predictions from the target: 4 by chance. Alone it says little: a collapse lowers it too."),
    ("representation_std", "std", "Std of representations", "",
     "How far apart different images lie. A collapse lets it fall to 0; training may lower it a little."),
    ("representation_effective_rank", "rank", "Effective rank of representations", "",
     "About how many dimensions are in use."),
    ("projection_std", "projection-std", "Std of projections", "", "The same where the loss is computed."),
    ("projection_effective_rank", "projection-rank", "Effective rank of projections", "",
     "Here a collapse of some dimensions shows first."),
    ("lr", "learning-rate", "Learning rate", "", "Up in the warm-up, then down along a cosine."),
    ("tau", "tau", "Tau", "", "The share of the target that a step keeps; at 1 the target stands still."),
)  # fmt: skip
RIVALS = {"knn_top1": "pixels_top1", "representation_retrieval": "pixels_retrieval"}
# What a run's time is spent on, in words.
SPENT = {
    "waiting": "Waiting for images to be read",
    "views": "Making views",
    "online": "Online network, with its gradients",
    "target": "Target network",
    "optimizer": "Optimizer and moving average",
    "looks": "Looks: scores, signs of health",
    "saving": "Saving",
    "rest": "The rest, such as planning",
}
Group = tuple[str, list[Range]]  # scores of the same test images
MOST_DRAWN = 100  # scores; the others are in the table alone


def curves(records: Sequence[Record]) -> list[tuple[Figure, str]]:
    """What was measured over the epochs, each figure with what it tells."""
    epochs = max((line["epoch"] for one in records for line in one.lines), default=0.0)
    reference, found = common_reference(records), []
    for metric, name, title, unit, words in CURVES:
        scale, knn = 100 if unit == "%" else 1, metric == "knn_top1"
        lines = [one.scored if knn else [x for x in one.lines if metric in x] for one in records]
        every = [
            Curve(
                one.name,
                [(line["epoch"], scale * line[metric]) for line in some],
                [(x["epoch"], scale * x["knn_low"], scale * x["knn_high"]) for x in some if knn],
            )
            for one, some in zip(records, lines, strict=True)
        ]
        if reference is not None:
            behind = [(x["epoch"], scale * x[metric]) for x in reference.lines if metric in x]
            every += [Curve(f"reference of {reference.preset}", behind, pale=True)] if behind else []
        levels = [("collapsed", COLLAPSED)] if metric.endswith("_std") else []
        if len(records) == 1 and lines[0] and RIVALS.get(metric) in lines[0][0]:
            levels = [("by raw pixels", scale * lines[0][0][RIVALS[metric]])]
        if (drawn := chart(name, title, every, unit=unit, epochs=epochs, levels=levels)) is not None:
            found.append((drawn, words))
    return found


def common_reference(records: Sequence[Record]) -> Reference | None:
    """The reference of the preset that all of the runs were made with."""
    first, *others = (reference_of(one.plan) for one in records)
    return first if all(one is first for one in others) else None


def score_groups(records: Sequence[Record]) -> list[Group]:
    """The scores to compare: of the hold-out sets, and what `byol evaluate` found, the newest of each."""
    groups: dict[str, dict[str, Range]] = {}
    for record in records:
        own = held_out(record)
        title = "kNN on the hold-out set" + (f" of {record.name}" if len(records) > 1 else "")
        groups |= {title: {one.name: one for one in own}} if own else {}
    for record in records:
        for score in filter(lambda score: score.encoder_name, record.scores):
            title = f"{score.data_set} {score.protocol}".strip() + f", {TITLES[score.metric]}"
            title += f", {score.test_images:,} test images of {score.classes} classes"
            ours, name = score.encoder_checksum == record.checksum, score.encoder_name
            name = record.name if ours else BASELINES.get(name, name)
            groups.setdefault(title, {})[name] = Range(name, score.value, score.low, score.high, ours)
    return [(title, [*rows.values()]) for title, rows in groups.items()]


def held_out(record: Record) -> list[Range]:
    """kNN on a run's hold-out set, beside its untrained network and raw pixels."""
    looks = record.scored
    if len(looks) < 2 or looks[0]["step"] > 0:
        return []
    names, found = (BASELINES["untrained"], record.name), list[Range]()
    for name, look in zip(names, (looks[0], looks[-1]), strict=True):
        found.insert(0, Range(name, look["knn_top1"], look["knn_low"], look["knn_high"], name == record.name))
    with suppress(KeyError, ValueError, TypeError):  # lost or damaged
        said = np.where(unpacked(looks[0]["pixels_right"], looks[0]["knn_images"]), 0, -1)[:, None]
        ends = interval("top1", [said], np.zeros(len(said), dtype=np.int64))
        found.append(Range(BASELINES["pixels"], looks[0]["pixels_top1"], *ends))
    return found


def scores(records: Sequence[Record]) -> Figure | None:
    groups, room = list[Group](), MOST_DRAWN
    for title, rows in score_groups(records):
        groups += [(title, rows[:room])] if room else []
        room -= len(rows[:room])
    return ranges("scores", "Scores with their 95 % intervals", groups) if groups else None


def time(record: Record) -> Figure | None:
    """What the time was spent on."""
    whole = sum(record.spent.values())
    if whole <= 0:
        return None
    speed = record.step * record.plan.batch_size / whole
    parts = [
        (SPENT[part], seconds / whole, duration(seconds) if seconds >= 10 else f"{seconds:.1f}s")
        for part, seconds in record.spent.items()
    ]
    return bar("time", f"About {duration(whole)}, {speed:,.0f} images/s", parts)


def write_figures(records: Sequence[Record], folder: Path, more: Sequence[Figure] = ()) -> list[Path]:
    """Each figure as SVG and as PNG; missing folders are made. Returns the files."""
    drawn = [*(figure for figure, _ in curves(records)), *more]
    drawn += [score for score in [scores(records)] if score is not None]
    drawn += mistake_section(records[0])[1] if len(records) == 1 else []
    for number, record in enumerate(records, 1):
        if (figure := time(record)) is not None:
            drawn.append(figure if len(records) == 1 else replace(figure, name=f"time-{number}"))
    folder.mkdir(parents=True, exist_ok=True)
    for figure in drawn:
        write_text(folder / f"{figure.name}.svg", figure.file())
        write_png(figure, folder / f"{figure.name}.png")
    return [folder / f"{figure.name}.{kind}" for figure in drawn for kind in ("svg", "png")]
