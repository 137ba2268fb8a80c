"""What a run has left in its folder. Nothing there is changed, so a run can be looked at while it runs."""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from byol.disk import MOST_OF_A_RUN, read_json
from byol.encoders.encoder import DESCRIPTION
from byol.errors import CheckpointError
from byol.evaluation.confusion import Confusion, read_confusions
from byol.evaluation.score import Score, read_scores
from byol.settings import flat
from byol.train.log import MOST_LOOKS, Thinned, metrics_in
from byol.train.outcome import FEW, Line, Verdict, is_look, looks_of, trouble, verdict_of
from byol.train.plan import Plan
from byol.train.run_folder import FORMAT, RunFolder
from byol.train.stopwatch import from_metrics, whole_time

MOST_POINTS = 2**14  # of a curve: more do not show


@dataclass(frozen=True)
class Record:
    """A run as its files tell it."""

    name: str
    folder: RunFolder
    plan: Plan
    images: str  # in words
    fingerprint: str  # of the images
    lines: list[Line]
    scores: list[Score]
    confusions: Mapping[tuple[Any, ...], Confusion]  # by `score_key`
    state: Literal["finished", "running", "unfinished"]
    config: dict[str, Any]  # what was requested, by dotted names
    environment: dict[str, Any]
    checksum: str | None  # of its encoder, by which its scores are known

    @property
    def verdict(self) -> Verdict | None:
        """Of a finished run; of another one that something is wrong with it, if there is."""
        return verdict_of(self.lines, self.plan) if self.state == "finished" else trouble(self.lines)

    @property
    def images_at(self) -> str | None:
        """Where the images were read from, if something is there now."""
        where = self.environment.get("images")
        return where if isinstance(where, str) and os.path.exists(where) else None

    @property
    def step(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    @property
    def scored(self) -> list[Line]:
        """The looks at enough labelled images for a kNN score."""
        names = {"knn_top1", "knn_low", "knn_high", "knn_images"}
        return [x for x in looks_of(self.lines) if x.keys() >= names and x["knn_images"] >= FEW]

    @property
    def spent(self) -> dict[str, float]:
        """Seconds that each part of the run took, until all was saved or its last line of metrics."""
        told = next((found for line in reversed(self.lines) if (found := from_metrics(line))), {})
        return whole_time(told, self.folder.time)


def read_record(path: str) -> Record:
    """Read a run's folder. Raises CheckpointError for one that holds no run, or a run's damaged files."""
    folder = RunFolder(path)
    if not folder.plan.exists():
        there = (
            "has no plan.json" if folder.path.is_dir() else "is not there" if not folder.path.exists() else ""
        )
        raise CheckpointError(
            f"{path} {there or 'is a file'}; expected the folder of a run, as `byol train --out` was given."
        )
    try:
        stored = read_json(folder.plan, MOST_OF_A_RUN)
        if stored["format"] != FORMAT:
            raise ValueError(f"format {stored['format']!r:.20}, expected {FORMAT}")
        plan, config = Plan(**stored["plan"]), flat(stored["config"])
        images, fingerprint = str(stored["images"]), str(stored["data"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(
            f"{folder.plan} cannot be read ({failure}): edited, damaged, or of another version. Restore it."
        ) from failure
    environment: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # it tells where a run ran, no more
        environment = dict(read_json(folder.environment, MOST_OF_A_RUN))
    checksum = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        checksum = str(read_json(folder.path / DESCRIPTION, MOST_OF_A_RUN)["blake2b"])
    scores = read_scores(folder.scores) if folder.scores.exists() else []
    running = folder.in_use()
    finished = not running and folder.encoder.exists()
    return Record(
        name=str(path), folder=folder, plan=plan, images=images, fingerprint=fingerprint,
        lines=metrics(folder.metrics, plan),
        scores=scores,
        confusions=read_confusions(folder.confusions, [s for s in scores if s.encoder_checksum == checksum]),
        state="running" if running else "finished" if finished else "unfinished",
        config=config, environment=environment, checksum=checksum,
    )  # fmt: skip


def metrics(path: Path, plan: Plan) -> list[Line]:
    """The lines of metrics.jsonl, of finite numbers; what a kill left there is passed over.

    Very many are thinned out evenly, the looks and the others, but for the last look and the last three.
    """
    looks, others = Thinned(MOST_LOOKS), Thinned(MOST_POINTS, last=3)
    for place, values in enumerate(metrics_in(path, plan.total_steps)):  # as where a run reads them
        line = {k: v for k, v in values.items() if isinstance(v, str) or math.isfinite(v)}
        if "epoch" not in line:
            continue
        (looks if is_look(line) else others).add((place, line))
    return [line for _, line in sorted([*looks, *others], key=itemgetter(0))]
