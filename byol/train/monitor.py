"""How good the representation is while it trains: kNN on the hold-out set, and whether it collapses."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.images import Images
from byol.data.workers import Poll, never
from byol.encoders.encoder import Encoder
from byol.errors import TrainingError
from byol.evaluation.inputs import Predictions
from byol.evaluation.knn import knn_predict
from byol.evaluation.online import OnlineProbe
from byol.evaluation.score import Score, score_of
from byol.features.embed import Features, prepared_batches
from byol.method.draws import Stream, uniforms
from byol.method.health import health
from byol.train.config import KnnConfig
from byol.train.plan import BANK, Plan
from byol.world import autocast

HEALTH = 2_048  # of them show whether the representation collapses
BYTES = 512 * 2**20  # of prepared images kept for scoring
Pictures = tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]  # uint8 (n, C, h, w), and labels


@dataclass
class Monitor:
    """Scores an encoder several times in a run, on the same images: they are read once and kept prepared."""

    encoder: Encoder
    images: Images
    rows: tuple[Tensor, Tensor]  # that are trained on, that are held out
    plan: Plan
    knn: KnnConfig
    bad: Callable[[str, str], None]  # is told the name of an unreadable image, and why
    probe: OnlineProbe | None = None

    def __post_init__(self) -> None:
        self.scores: dict[str, Score] = {}  # the latest, when there are labels
        room = max(64, BYTES // (self.plan.channels * math.prod(self.plan.eval_size)))
        queries = sample(self.rows[1], room // 4, self.plan.seed)
        bank = sample(self.rows[0], min(BANK, room - len(queries)) if len(queries) else 512, self.plan.seed)
        self.scored = bank, queries
        self.kept: list[Pictures] = []  # of the bank and of the queries, once they are read
        self.classes: tuple[str, ...] = ()

    def due(self, step: int) -> bool:
        """Whether to look after this step: `knn.times` in a run, the last step included."""
        return step % self.plan.look_every_steps == 0 or step == self.plan.total_steps

    def look(self, step: int, poll: Poll = never) -> dict[str, Any]:
        """Metrics of now: collapse signals of the representation, and kNN top-1 when there are labels.

        `poll` is called while images are read. Raises TrainingError when something is not finite.
        """
        self.kept = self.kept or [self._read(rows, poll) for rows in self.scored]
        (bank_pixels, bank_labels), (query_pixels, query_labels) = self.kept
        started, plan = time.perf_counter(), self.plan
        bank = self._embed(bank_pixels)
        if not bank.isfinite().all():
            which = f"After step {step} the representation of some images is not finite"
            causes = "a learning rate that is too high, or BatchNorm statistics that overflowed"
            raise TrainingError(f"{which}. Usual causes: {causes}.")
        spread_out = bank[:: -(-len(bank) // HEALTH) or 1]  # rows are sorted, in a folder by class
        metrics = {"step": step, "epoch": plan.epoch(step)}
        metrics |= {f"representation_{name}": float(value) for name, value in health(spread_out).items()}
        if not all(len(labels) and labels.min() >= 0 for labels in (bank_labels, query_labels)):
            return metrics
        queries = self._embed(query_pixels)
        votes: dict[str, Any] = {"k": self.knn.k, "temperature": self.knn.temperature}
        predicted = knn_predict(bank, torch.from_numpy(bank_labels), queries, **votes).numpy()
        seconds = time.perf_counter() - started
        self._score("knn", predicted == query_labels, len(bank), seconds, votes)
        if self.probe is not None:
            correct = self.probe.correct(Features(queries.numpy(), query_labels))
            self._score("online", correct, plan.images, 0.0, {"optimizer": plan.optimizer})
        return metrics | {f"{name}_top1": score.top1 for name, score in self.scores.items()}

    def _score(self, name: str, correct: Any, train_images: int, seconds: float, settings: Any) -> None:
        """Keep a score; `correct` tells of the hold-out set which classes were predicted right, bool (N,)."""
        labels, settings = self.kept[1][1], settings | {"images": "held out of training"}
        predicted = Predictions(np.where(correct, labels, -1)[:, None], labels, settings, train_images)
        known: dict[str, Any] = {"seeds": (self.plan.seed,), "seconds": seconds}
        self.scores[name] = score_of(name, [predicted], metric="top1", classes=len(self.classes), **known)

    def _embed(self, images: Tensor) -> Tensor:
        device = next(self.encoder.parameters()).device
        with autocast(device, self.plan.precision):
            return torch.cat([self.encoder(part.to(device)).cpu() for part in images.split(500)])

    def _read(self, rows: Tensor, poll: Poll) -> Pictures:
        """Those of the images that can be read."""
        images = self.images.subset(rows)
        parts = [torch.empty((0, self.plan.channels, *self.plan.eval_size), dtype=torch.uint8)]
        kept: list[int] = []
        with closing(prepared_batches(images, self.encoder, self.plan.workers, poll=poll)) as batches:
            for pixels, (indices, bad) in batches if len(images) else ():
                for index, reason in bad:
                    self.bad(images.name(index), reason)
                parts.append(pixels.mul(255).round_().to(torch.uint8))
                kept += indices
                images.release()  # what was read before is not needed as it was read
        images = images.subset(kept)
        self.classes = max(self.classes, images.classes or (), key=len)
        labels = np.full(len(kept), -1, dtype=np.int64) if images.labels is None else images.labels
        return torch.cat(parts), labels


def sample(rows: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of the rows, drawn by the seed: evenly spread ones could all be of one class."""
    order = uniforms((seed, Stream.SCORED, rows), 1)[:, 0].argsort(stable=True)
    return rows[order[:count]].sort().values
