"""How good the representation is while it trains: kNN on held-out images, and whether it collapses."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.images import Images
from byol.encoders.encoder import Encoder
from byol.errors import TrainingError
from byol.evaluation.knn import knn_correct
from byol.evaluation.online import OnlineProbe
from byol.evaluation.score import Score, scored
from byol.features.embed import Features, prepared_batches
from byol.method.health import health
from byol.train.config import KnnConfig
from byol.train.plan import Plan
from byol.world import autocast

BANK = 5_000  # training images that vote: enough to rank runs, cheap enough to ask often and to keep
Pictures = tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]  # uint8 (n, C, h, w), and labels
BYTES = 512 * 2**20  # of prepared pictures kept for scoring


class Monitor:
    """Scores an encoder on occasion. Its pictures are decoded at the first and kept, prepared as evaluation prepares them."""

    def __init__(
        self,
        encoder: Encoder,
        images: Images,
        train_rows: Tensor,
        held_out_rows: Tensor,
        plan: Plan,
        knn: KnnConfig,
        probe: OnlineProbe | None = None,
    ) -> None:
        self.encoder, self.plan, self.knn, self.probe = encoder, plan, knn, probe
        self.scores: dict[str, Score] = {}  # the latest, when there are labels
        height, width = plan.eval_size
        room = max(64, BYTES // (plan.channels * height * width))
        queries = _spread(held_out_rows, room // 4)
        bank = _spread(train_rows, min(BANK, room - len(queries)) if len(queries) else 512)
        self.images, self.rows = images, (bank, queries)
        self.pictures: tuple[Pictures, Pictures] | None = (
            None  # of the bank and the queries, once they are read
        )

    def due(self, step: int) -> bool:
        """Whether this step is an occasion: `knn.times` in a run, the last step included."""
        return step % self.plan.look_every_steps == 0 or step == self.plan.total_steps

    def look(self, step: int, give_up: Callable[[], bool] | None = None) -> dict[str, Any]:
        """Metrics of now: collapse signals of the representation, and kNN top-1 when there are labels.

        `give_up` is asked while pictures are read; when it says so there are no metrics. Raises TrainingError for a
        representation that is not finite.
        """
        if self.pictures is None:
            self.pictures = self._read(give_up)
        if self.pictures is None:
            return {}
        started = time.perf_counter()
        metrics: dict[str, Any] = {"step": step, "epoch": step * self.plan.batch_size / self.plan.images}
        (bank_pixels, bank_labels), (query_pixels, query_labels) = self.pictures
        bank = self._embed(bank_pixels)
        if not bank.isfinite().all():
            raise TrainingError(
                f"After step {step} the representation of some images is not finite. Usual causes: a learning rate that is "
                "too high for this optimizer, or statistics of BatchNorm that overflowed."
            )
        metrics |= {f"representation_{name}": float(value) for name, value in health(bank[:2048]).items()}
        if len(query_pixels) and len(bank):
            votes = Features(bank.numpy(), bank_labels, classes=self.images.classes)
            held_out = Features(self._embed(query_pixels).numpy(), query_labels, classes=self.images.classes)
            correct = knn_correct(votes, held_out, k=self.knn.k, temperature=self.knn.temperature)
            settings = {
                "k": self.knn.k,
                "temperature": self.knn.temperature,
                "images": "held out of training",
            }
            seconds = time.perf_counter() - started
            self.scores["knn"] = scored("knn", correct, votes, settings, self.plan.seed, seconds)
            if self.probe is not None:
                settings = {"optimizer": self.plan.optimizer, "images": "held out of training"}
                online = scored("online", self.probe.correct(held_out), votes, settings, self.plan.seed, 0.0)
                self.scores["online"] = replace(online, train_images=self.plan.images)
            metrics |= {f"{name}_top1": score.top1 for name, score in self.scores.items()}
        return metrics

    def _embed(self, images: Tensor) -> Tensor:
        device = next(self.encoder.parameters()).device
        with autocast(device, self.plan.precision):
            return torch.cat([self.encoder(part.to(device)).cpu() for part in images.split(500)])

    def _read(self, give_up: Callable[[], bool] | None) -> tuple[Pictures, Pictures] | None:
        """The readable ones of the bank and of the queries; the training batches list the others."""
        found = []
        for rows in self.rows:
            images = self.images.subset(rows)
            parts = [torch.empty((0, self.plan.channels, *self.plan.eval_size), dtype=torch.uint8)]
            kept: list[int] = []
            with closing(prepared_batches(images, self.encoder, self.plan.workers)) as batches:
                for indices, pixels, _ in batches if len(images) else ():
                    if give_up is not None and give_up():
                        return None
                    if pixels is not None:
                        parts.append(pixels.mul(255).round_().to(torch.uint8))
                        kept += indices
                    images.release()  # what was read before is not needed as it was read
            labels = np.full(len(kept), -1, dtype=np.int64) if images.labels is None else images.labels[kept]
            found.append((torch.cat(parts), labels))
        return found[0], found[1]


def _spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).long()]
