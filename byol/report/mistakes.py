"""Where the classifiers on a run's encoder err: a table as a picture, and how often each class is right."""

import numpy as np

from byol.evaluation.confusion import Confusion, score_key
from byol.evaluation.metrics import wilson
from byol.report.figures import Figure, Range, matrix, ranges
from byol.report.markup import Html, element, folded, scrolled, section, table
from byol.report.record import Record

DRAWN = 20  # classes at most; of more those with the most mistakes
LISTED, SHOWN = 1000, 50  # classes in a table, of more the lowest; scores, the best
NAMED = 3  # classes that another is most often taken for


def confusions_of(record: Record) -> list[Confusion]:
    """Those of the newest scores of the run's encoder, the best score first."""
    newest = {}
    for score in record.scores:
        if score.encoder_name and score.encoder_checksum == record.checksum:
            newest[score.data_set, score.protocol, score.metric] = score
    best = sorted(newest.values(), key=lambda score: -score.value)
    return [record.confusions[key] for key in map(score_key, best) if key in record.confusions]


def mistake_section(record: Record) -> tuple[Html | None, list[Figure]]:
    """The section, and its figures; None where no labels have told of mistakes."""
    parts, figures = [], list[Figure]()
    for number, one in enumerate(confusions_of(record)[:SHOWN]):
        title, suffix = f"{one.data_set} {one.protocol}".strip(), f"-{number + 1}" if number else ""
        drawn = drawn_matrix(one, f"confusion{suffix}", title)
        right = class_accuracies(one, f"class-accuracy{suffix}", title)
        figures += [drawn, right]
        pictures = [wide(drawn), element("figure", right.inline(), class_="wide")]
        whole = [
            element("div", *pictures, class_="beside"),
            class_table(one),
        ]
        parts += whole if not number else [folded(f"The same of {title}", *whole)]
    if not parts:
        return None, []
    words = "Of the test images of each class (a row) the percent taken for each class (a column). What is "
    words += "right lies on the diagonal."
    return section("Mistakes", element("p", words), *parts), figures


def drawn_matrix(one: Confusion, name: str, title: str) -> Figure:
    wrong = dict.fromkeys(range(len(one.names)), 0)
    for true, said, times in one.mistakes():
        wrong[true] += times
        wrong[said] += times
    classes = sorted(sorted(wrong, key=lambda place: -wrong[place])[:DRAWN])
    some = f", the {DRAWN} classes with the most mistakes of {len(wrong):,}" if len(wrong) > DRAWN else ""
    return matrix(
        name,
        f"Confusion, {title}{some}",
        [one.names[place] for place in classes],
        one.shares(classes).tolist(),
    )


def class_accuracies(one: Confusion, name: str, title: str) -> Figure:
    """How often each class is right, the worst first."""
    rows = []
    for word, count, right in zip(one.names, one.counts.tolist(), one.right.tolist(), strict=True):
        if count:
            rows.append(Range(word, right / count, *wilson(right / count, count), ours=True))
    rows.sort(key=lambda row: row.value)
    some = f"the {DRAWN} lowest of {len(rows):,} classes" if len(rows) > DRAWN else "the lowest first"
    return ranges(name, f"Right by class, {title}", [(f"{some}, with 95 % intervals", rows[:DRAWN])])


def class_table(one: Confusion) -> Html:
    """All classes, of very many the lowest: how many, how often right, what they are taken for."""
    counts, right = one.counts, one.right
    tested = np.flatnonzero(counts)
    lowest = tested[np.argsort(right[tested] / counts[tested], kind="stable")]
    some = f"The {LISTED:,} lowest of {len(tested):,} classes" if len(tested) > LISTED else "Every class"
    taken = dict[int, list[str]]()
    for true, said, times in one.mistakes():
        taken.setdefault(true, []).append(f"{one.names[said]} {times:,}")
    rows = []
    for at in sorted(lowest[:LISTED].tolist()):
        others = ", ".join(taken.get(at, ["-"])[:NAMED])
        percent = f"{100 * right[at] / counts[at]:.1f} %"
        rows.append([one.names[at], f"{counts[at]:,}", f"{right[at]:,}", percent, others])
    heads = ["class", "test images", "right", "percent", "most often taken for"]
    return folded(f"{some} in numbers", table(heads, rows, some))


def wide(figure: Figure) -> Html:
    """A figure that scrolls by itself on a narrow screen instead of shrinking until nobody can read it."""
    size = f"min-width:{0.7 * figure.width:.0f}px;max-width:{figure.width}px"
    return element("figure", scrolled(figure.inline(style=size), figure.title))
