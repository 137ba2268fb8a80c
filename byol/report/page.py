"""The report: one HTML file that tells what became of a run, or of several beside one another."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from byol import __version__
from byol.disk import write_text
from byol.evaluation.tables import in_words
from byol.report import plots
from byol.report.document import document, static
from byol.report.figures import digits, style
from byol.report.markup import Html, coded, element, folded, joined, section, table
from byol.report.mistakes import mistake_section
from byol.report.record import Record
from byol.settings import flat, to_plain
from byol.train.log import duration
from byol.train.outcome import accuracy

NONE = "-"
SIGNS = {
    "learning": ("good", "✓"),
    "finished": ("plain", "✓"),
    "running": ("plain", "…"),
    "slow": ("warn", "!"),
    "too short": ("warn", "!"),
    "unfinished": ("warn", "!"),
}  # of a state; all others are bad


def write_report(records: Sequence[Record], out: Path, pictures: Sequence[Html] = ()) -> None:
    """Write the page; missing folders are made. `pictures` are sections made of a run's images."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page(records, pictures))


def page(records: Sequence[Record], pictures: Sequence[Html] = ()) -> str:
    """The whole page."""
    alone = len(records) == 1
    title = f"Run {records[0].name}" if alone else f"{len(records)} runs compared"
    brand = element("p", "byol report", class_="brand")
    parts: list[Html | None] = [element("header", brand, element("h1", title))]
    parts += [facts(records[0]) if alone else side_by_side(records)]
    parts += [verdict_section(record, alone) for record in records]
    mistakes, _ = mistake_section(records[0]) if alone else (None, [])
    parts += [curve_section(records), score_section(records), mistakes, *pictures, time_section(records)]
    parts += [settings_section(records[0]) if alone else differing(records)]
    said = f"Written by byol {__version__}. This file needs no network and sends nothing."
    parts += [element("footer", element("p", said))]
    return document(f"{title} - byol", *parts, style=style() + static("page.css"), script=static("page.js"))


def summary(record: Record) -> dict[str, str]:
    """What a run was, in a few numbers."""
    plan, seconds = record.plan, sum(record.spent.values())
    return {
        "Images": f"{plan.images:,}",
        "Encoder": plan.encoder,
        "Epochs": f"{plan.epoch(record.step):.4g} of {plan.epochs:.4g}",
        "Steps": f"{record.step:,} of {plan.total_steps:,}",
        "Time": f"about {duration(seconds)}" if seconds else NONE,
    }


def facts(record: Record) -> Html:
    every = (element("div", element("dt", name), element("dd", v)) for name, v in summary(record).items())
    return element("dl", *every, class_="facts")


def side_by_side(records: Sequence[Record]) -> Html:
    rows = []
    for one in records:
        knn = accuracy(one.scored[-1]).removeprefix("kNN ") if one.scored else NONE
        rows.append([one.name, (one.verdict or one).state, knn, *summary(one).values()])
    heads = ["run", "verdict", "kNN on the hold-out set", *map(str.lower, summary(records[0]))]
    return section("Side by side", table(heads, rows, "What each run was and what it reached"))


def verdict_section(record: Record, alone: bool) -> Html:
    """What became of a run and what to try next, in words."""
    verdict, place = record.verdict, f"step {record.step:,} of {record.plan.total_steps:,}"
    state = verdict.state if verdict else record.state
    kind, sign = SIGNS.get(state, ("bad", "✕"))
    said: list[Any] = []
    if record.state == "running":
        left = next((line["seconds_left"] for line in reversed(record.lines) if "seconds_left" in line), None)
        said.append(f"It runs: {place}" + ("." if left is None else f", about {duration(left)} more."))
    elif record.state == "unfinished":
        said.append(f"It was stopped or broke off at {place}.")
    if verdict:
        said += [f"{verdict.evidence[:1].upper()}{verdict.evidence[1:]}.", verdict.knn]
    elif record.state == "running":
        said.append("No sign of trouble so far.")
    elif record.state == "finished":
        said.append("Nothing was measured that would tell whether it has learned.")
    parts = [element("p", words) for words in said if words]
    if verdict:
        advice = element("h3", "What to try next"), element("p", coded(verdict.remedy))
        parts.append(element("div", *advice, class_="next"))
    elif record.state == "unfinished":
        command = element("pre", element("code", repeats(record, str(record.folder.path))))
        parts += [element("p", "The same command continues it where it last saved:"), command]
    chip = element("span", sign, aria_hidden="true"), " ", element("strong", state.capitalize())
    heading = element("h2", "Verdict" if alone else record.name)
    return element("section", heading, element("p", *chip, class_=f"chip {kind}"), *parts, class_="verdict")


def curve_section(records: Sequence[Record]) -> Html:
    drawn = plots.curves(records)
    if not drawn:
        return section("Curves", element("p", "Nothing has been measured yet."))
    reference, said = plots.common_reference(records), None
    if reference is not None:
        words = f"The broad pale line is a run to compare with, of the preset {reference.preset}: "
        said = element("p", f"{words}{reference.made}.", class_="soft")
    figures = (element("figure", one.inline(), element("figcaption", words)) for one, words in drawn)
    numbers = (folded(f"The numbers of {one.name}", look_table(one)) for one in records)
    return section("Curves", said, element("div", *figures, class_="grid-of-figures"), *numbers)


def look_table(record: Record) -> Html:
    """What the curves show, as numbers: a row for each look."""
    titles = {name: title for name, _, title, *_ in plots.CURVES if any(name in x for x in record.lines)}
    rows, latest = [], dict[str, Any]()
    for line in record.lines:
        latest |= line
        if "representation_retrieval" in line:
            shown = (digits(latest[name]) if name in latest else NONE for name in titles)
            rows.append([f"{line['step']:,}", f"{line['epoch']:.4g}", *shown])
    return table(["step", "epoch", *titles.values()], rows, "Each look of the run; accuracies are fractions")


def score_section(records: Sequence[Record]) -> Html:
    figure = plots.scores(records)
    if figure is None:
        none = element("p", "None: the images carry no labels, or too few were held out. With some labels:")
        return section("Scores", none, element("pre", "byol evaluate RUN --train LABELLED --test 0.3"))
    rows = [
        [f"{one.name}: {title}", *one.words().split(", ")]
        for title, ranges in plots.score_groups(records)
        for one in ranges
    ]
    caption = "Each interval is a bootstrap over the test images"
    numbers = table(["score", "value", "95 % interval"], rows, caption)
    notes = dict.fromkeys(f"{s.protocol}: {in_words(s.settings)}" for r in records for s in r.scores)
    more = folded(
        "The numbers and their settings", numbers, element("ul", *(element("li", n) for n in notes))
    )
    return section("Scores", element("figure", figure.inline(), class_="wide"), more)


def time_section(records: Sequence[Record]) -> Html | None:
    parts = []
    for one in records:
        if (figure := plots.time(one)) is not None:
            title = None if len(records) == 1 else element("h3", one.name)
            parts.append(joined(title, element("figure", figure.inline(), class_="wide")))
    return section("Where the time went", *parts) if parts else None


def settings_section(record: Record) -> Html:
    """What the run was, in full, and how to repeat it."""
    lines = (line.split(maxsplit=1) for line in record.plan.lines())
    plan = (joined(element("dt", name), element("dd", words)) for name, words in lines)
    return section(
        "Settings",
        element("dl", *plan, class_="plan"),
        element("h3", "The command that repeats it"),
        element("pre", element("code", repeats(record, "NEW_FOLDER"))),
        element("h3", "Made with"),
        setting_table("Versions and hardware when it began", record.environment),
        folded("Every number of the plan", setting_table("The plan", to_plain(record.plan))),
        folded("What was requested", setting_table("As it was requested", record.config)),
    )


def setting_table(caption: str, values: Mapping[str, Any]) -> Html:
    rows = [[name, NONE if value is None else value] for name, value in flat(dict(values)).items()]
    return table(["what", "value"], rows, caption)


def repeats(record: Record, out: str) -> str:
    """The command of a run with the same settings."""
    words = ["byol", "train", record.images_at or "IMAGES", "--preset", str(record.folder.config)]
    return shlex.join([*words, "--out", out])


def differing(records: Sequence[Record]) -> Html:
    """The settings in which the runs differ."""
    plans = [flat(to_plain(one.plan) | {"image set": one.images}) for one in records]
    names = dict.fromkeys(name for plan in plans for name in plan)
    every = [[name, *(plan.get(name, NONE) for plan in plans)] for name in names]
    rows = [row for row in every if len(set(map(str, row[1:]))) > 1]
    if not rows:
        return section("Settings", element("p", "The runs were planned alike in every number."))
    heads = ["setting", *(one.name for one in records)]
    return section("Settings", table(heads, rows, "What differs between the runs; all else is equal"))
