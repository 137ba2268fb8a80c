"""The one line of a terminal or a notebook that moves while a run does."""

import html
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

# What is said beside the bar: what comes first stays longest where a terminal is narrow.
RANKS = ("state", "trouble", "left", "loss", "score", "waiting", "rate", "epoch", "verdict", "percent")
SHORTEST = 10  # columns of the bar itself
STEPS = "{task.completed:,.0f}/{task.total:,.0f}"


def progress_bar(console: Console, shown: bool) -> Progress:
    """A bar with the steps before it and a task's `parts` behind it, as many as fit."""
    columns = TextColumn(STEPS), Bar(console), Words(console)
    return Progress(*columns, console=console, transient=True, expand=True, disable=not shown)


class Words(ProgressColumn):
    """The parts that fit beside the steps and the shortest bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: Task) -> Text:
        parts = {"percent": f"{task.percentage:.0f}%", **task.fields["parts"]}
        room = self.console.width - len(STEPS.format(task=task)) - SHORTEST - 2  # spaces between columns
        return Text(fitting(parts, room), no_wrap=True)


class Bar(BarColumn):
    """The bar, of what the steps and the words leave: rich would cut words to widen it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console, self.words = console, Words(console)

    def render(self, task: Task) -> ProgressBar:
        taken = len(STEPS.format(task=task)) + len(self.words.render(task)) + 2
        self.bar_width = max(1, self.console.width - taken)
        return super().render(task)


def fitting(parts: Mapping[str, str], width: int) -> str:
    """The parts in their order, without the least important ones that are too many for so many columns."""
    kept = dict(parts)
    while kept and len("  ".join(kept.values())) > width:
        del kept[max(kept, key=RANKS.index)]
    return "  ".join(kept.values())


def in_a_notebook() -> bool:
    """Whether this is the code of a notebook's cells, whose outputs can be written over."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class NotebookBar:
    """The same in a notebook: one output of its cell, written over until the run ends, which empties it."""

    def start(self) -> None:
        from IPython.display import display

        self.total, self.done = 1.0, 0.0
        show: Any = display
        self.output = show({"text/plain": ""}, raw=True, display_id=True)

    def add_task(self, _: str, total: float, completed: float, parts: Mapping[str, str]) -> int:
        self.total = total
        self.update(0, completed, parts)
        return 0

    def update(
        self, task: int, completed: float | None = None, parts: Mapping[str, str] | None = None
    ) -> None:
        """Of one task. The output is written when there is something to say beside the steps."""
        self.done = self.done if completed is None else completed
        if parts is not None:
            share = f"{self.done / self.total:.0%}"
            words = "  ".join([f"{self.done:,.0f}/{self.total:,.0f}", share, *parts.values()])
            drawn = f'<progress value="{self.done:.0f}" max="{self.total:.0f}"></progress>'
            shown = {"text/plain": words, "text/html": f"{drawn} {html.escape(words)}"}
            self.output.update(shown, raw=True)

    def stop(self) -> None:
        self.output.update({"text/plain": "", "text/html": ""}, raw=True)
