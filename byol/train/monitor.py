"""How good the representation is while it trains: kNN on the hold-out set, and whether it collapses."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.images import Images
from byol.data.workers import never
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
from byol.train.plan import Plan
from byol.world import autocast

BANK = 5_000  # training images that vote: enough to rank runs, cheap enough to score often and to keep
HEALTH = 2_048  # of them show whether the representation collapses
BYTES = 512 * 2**20  # of prepared images kept for scoring
Pictures = tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]  # uint8 (n, C, h, w), and labels


class Monitor:
    """Scores an encoder several times in a run, always on the same images: they are decoded once and kept
    prepared.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        rows: "tuple[Tensor, Tensor]",  # that are trained on, that are held out
        plan: Plan,
        knn: KnnConfig,
        report: Callable[[str, str], None],  # is told the name of an unreadable image, and why
        probe: OnlineProbe | None = None,
    ) -> None:
        self.encoder, self.images, self.plan, self.knn = encoder, images, plan, knn
        self.report, self.probe = report, probe
        self.scores: dict[str, Score] = {}  # the latest, when there are labels
        height, width = plan.eval_size
        room = max(64, BYTES // (plan.channels * height * width))
        train, hold_out = rows
        queries = sample(hold_out, room // 4, plan.seed)
        self.rows = sample(train, min(BANK, room - len(queries)) if len(queries) else 512, plan.seed), queries
        self.classes: tuple[str, ...] = ()
        self.pictures: tuple[Pictures, Pictures] | None = (
            None  # of the bank and the queries, once they are read
        )

    def due(self, step: int) -> bool:
        """Whether to look after this step: `knn.times` in a run, the last step included."""
        return step % self.plan.look_every_steps == 0 or step == self.plan.total_steps

    def look(self, step: int, poll: Callable[[], object] = never) -> dict[str, Any]:
        """Metrics of now: collapse signals of the representation, and kNN top-1 when there are labels.

        `poll` is called while images are read; it may raise, to stop. Raises TrainingError for a
        representation that is not finite.
        """
        if self.pictures is None:
            self.pictures = self._read(poll)
        started = time.perf_counter()
        metrics: dict[str, Any] = {"step": step, "epoch": step * self.plan.batch_size / self.plan.images}
        (bank_pixels, bank_labels), (query_pixels, query_labels) = self.pictures
        bank = self._embed(bank_pixels)
        if not bank.isfinite().all():
            raise TrainingError(
                f"After step {step} the representation of some images is not finite. Usual causes: a "
                "learning rate that is too high for this optimizer, or statistics of BatchNorm that "
                "overflowed."
            )
        spread_out = bank[:: -(-len(bank) // HEALTH) or 1]  # rows are sorted, in a folder by class
        metrics |= {f"representation_{name}": float(value) for name, value in health(spread_out).items()}
        if (
            min(query_labels.min(initial=0), bank_labels.min(initial=0)) >= 0
            and len(query_pixels)
            and len(bank)
        ):
            queries = self._embed(query_pixels)
            k, temperature = self.knn.k, self.knn.temperature
            votes = torch.from_numpy(bank_labels)
            predicted = knn_predict(bank, votes, queries, k=k, temperature=temperature)
            seconds = time.perf_counter() - started
            settings: dict[str, Any] = {"k": k, "temperature": temperature}
            self._score("knn", predicted.numpy() == query_labels, query_labels, settings, len(bank), seconds)
            if self.probe is not None:
                correct = self.probe.correct(Features(queries.numpy(), query_labels))
                settings = {"optimizer": self.plan.optimizer}
                self._score("online", correct, query_labels, settings, self.plan.images, 0.0)
            metrics |= {f"{name}_top1": score.top1 for name, score in self.scores.items()}
        return metrics

    def _score(
        self,
        name: str,
        correct: np.ndarray[Any, np.dtype[np.bool_]],
        labels: np.ndarray[Any, np.dtype[np.int64]],
        settings: dict[str, Any],
        train_images: int,
        seconds: float,
    ) -> None:
        """Keep the score of classes that were predicted right or not."""
        predicted = np.where(correct, labels, -1)[:, None]
        found = Predictions(predicted, labels, {**settings, "images": "held out of training"}, train_images)
        classes, seeds = len(self.classes or ()), (self.plan.seed,)
        self.scores[name] = score_of(
            name, [found], metric="top1", classes=classes, seeds=seeds, seconds=seconds
        )

    def _embed(self, images: Tensor) -> Tensor:
        device = next(self.encoder.parameters()).device
        with autocast(device, self.plan.precision):
            return torch.cat([self.encoder(part.to(device)).cpu() for part in images.split(500)])

    def _read(self, poll: Callable[[], object]) -> tuple[Pictures, Pictures]:
        """The readable ones of the bank and of the queries."""
        found = []
        for rows in self.rows:
            images = self.images.subset(rows)
            parts = [torch.empty((0, self.plan.channels, *self.plan.eval_size), dtype=torch.uint8)]
            kept: list[int] = []
            with closing(prepared_batches(images, self.encoder, self.plan.workers, poll=poll)) as batches:
                for indices, pixels, bad in batches if len(images) else ():
                    for index, reason in bad:
                        self.report(images.name(index), reason)
                    parts.append(pixels.mul(255).round_().to(torch.uint8))
                    kept += indices
                    images.release()  # what was read before is not needed as it was read
            images = images.subset(kept)
            labels = np.full(len(kept), -1, dtype=np.int64) if images.labels is None else images.labels
            self.classes = max(self.classes, images.classes or (), key=len)
            found.append((torch.cat(parts), labels))
        return found[0], found[1]


def sample(rows: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of the rows, drawn by the seed, in their order: evenly spread ones could all be of
    one class.
    """
    order = uniforms((seed, Stream.SCORED, rows), 1)[:, 0].argsort(stable=True)
    return rows[order[:count]].sort().values
