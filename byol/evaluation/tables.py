"""Scores as tables for people, in percent."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from byol.evaluation.score import Score

WIDTH = 100  # letters, of a line of settings
TITLES = {"top1": "top-1", "mean_per_class": "mean per class", "map11": "11-point mAP"}


class Scores(dict[str, Score]):
    """The scores of one encoder by the names of their protocols: a dict that is shown as the table."""

    def __repr__(self) -> str:
        """A row for each score, and below them the settings of each."""
        notes: list[str] = []
        rows = [["protocol", "metric", "value", "95 % interval", "top-5", "std"]]
        for name, score in self.items():
            top5, std = ("-" if value is None else f"{100 * value:.2f}" for value in (score.top5, score.std))
            value, interval = f"{100 * score.value:.2f} %", f"{100 * score.low:.2f} to {100 * score.high:.2f}"
            rows.append([name, TITLES[score.metric], value, interval, top5, std])
            words = f"{name}: {in_words(score.settings)}"
            notes += textwrap.wrap(words, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        seeds = max((score.seeds for score in self.values()), key=len, default=())
        if len(seeds) > 1:
            notes.append(f"std: standard deviation over the seeds {', '.join(map(str, seeds))}")
        return "\n".join([*aligned(rows), *notes, *counts(self)])


def comparison(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """Several encoders side by side: a row for each protocol, a column for each encoder."""
    every = {name: score for column in scores.values() for name, score in column.items()}
    rows, words = [["protocol", "metric", *scores]], "percent,"
    for name, some in every.items():
        row = [name, TITLES[some.metric], *("-" for _ in scores)]
        for place, score in enumerate((column.get(name) for column in scores.values()), start=2):
            if score is not None:
                std = "" if score.std is None else f" ± {100 * score.std:.2f}"
                row[place] = f"{100 * score.value:.2f}{std}  {100 * score.low:.1f}-{100 * score.high:.1f}"
                words = "percent, ± the standard deviation over the seeds," if std else words
        rows.append(row)
    legend = f"{words} and the 95 % interval over the test images; settings are in scores.jsonl"
    return "\n".join([*aligned(rows), legend, *counts(every)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first two columns begin below one another, the others end so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "   ".join(f"{{:{'<' if place < 2 else '>'}{width}}}" for place, width in enumerate(widths))
    return [line.format(*row).rstrip() for row in rows]


def counts(scores: Mapping[str, Score]) -> list[str]:
    """How many images and classes: a line, or several that say for which scores each holds."""
    found: dict[str, list[str]] = {}
    for name, score in scores.items():
        words = f"{score.test_images:,} test images of {score.classes} classes, learned from "
        words += f"{score.train_images:,}"
        if score.overlap:
            meant = "meaningless" if score.overlap == score.test_images else "too high"
            words += f" ({score.overlap:,} of them train images too, so these scores are {meant})"
        found.setdefault(words, []).append(name)
    return [words if len(found) == 1 else f"{', '.join(names)}: {words}" for words, names in found.items()]


def in_words(settings: Mapping[str, Any]) -> str:
    """The settings in a few words; those that are not used, and long ones, are left to scores.jsonl."""
    words = {name: rounded(value) for name, value in settings.items() if value is not None}
    return ", ".join(f"{name} {word}" for name, word in words.items() if len(word) <= 40)


def rounded(value: Any) -> str:
    """A setting for people; of several seeds a list."""
    if isinstance(value, list):
        return f"[{', '.join(map(rounded, value))}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
