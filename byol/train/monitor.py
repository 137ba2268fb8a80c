"""How good the representation is while it trains: kNN on held-out images, and whether it collapses."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.sources import Images
from byol.evaluation.knn import knn_correct
from byol.evaluation.scores import Score, scored
from byol.features.extract import Features
from byol.method.health import health
from byol.train.config import KnnConfig
from byol.train.plan import Plan
from byol.train.step import autocast
from byol.weights.files import Encoder

BANK = 5_000  # training images that vote: enough to rank runs, cheap enough to ask often and to keep
BYTES = 512 * 2**20  # of prepared pictures kept for scoring


class Monitor:
    """Scores an encoder on occasion. Its pictures are decoded once and kept, prepared as evaluation prepares them."""

    def __init__(
        self, encoder: Encoder, images: Images, train_rows: Tensor, held_out_rows: Tensor, plan: Plan, knn: KnnConfig
    ) -> None:
        self.encoder, self.plan, self.knn = encoder, plan, knn
        self.score: Score | None = None  # the latest, when there are labels
        height, width = plan.eval_size
        room = max(64, BYTES // (plan.channels * height * width))
        queries = _spread(held_out_rows, room // 4)
        bank = _spread(train_rows, min(BANK, room - len(queries)) if len(queries) else 512)
        self.classes = images.classes
        self.bank, self.bank_labels = self._read(images, bank)
        self.queries, self.query_labels = self._read(images, queries)

    def due(self, step: int) -> bool:
        """Whether this step is an occasion: `knn.times` in a run, the last step included."""
        return step % self.plan.look_every_steps == 0 or step == self.plan.total_steps

    def look(self, step: int) -> dict[str, Any]:
        """Metrics of now: collapse signals of the representation, and kNN top-1 when there are labels."""
        started = time.perf_counter()
        metrics: dict[str, Any] = {"step": step, "epoch": step * self.plan.batch_size / self.plan.images}
        bank = self._embed(self.bank)
        metrics |= {f"representation_{name}": float(value) for name, value in health(bank[:2048]).items()}
        if len(self.queries) and len(bank):
            votes = Features(bank.numpy(), self.bank_labels, classes=self.classes)
            held_out = Features(self._embed(self.queries).numpy(), self.query_labels, classes=self.classes)
            correct = knn_correct(votes, held_out, k=self.knn.k, temperature=self.knn.temperature)
            settings = {"k": self.knn.k, "temperature": self.knn.temperature, "images": "held out of training"}
            seconds = time.perf_counter() - started
            self.score = scored("knn", correct, votes, settings, self.plan.seed, seconds)
            metrics["knn_top1"] = self.score.top1
        return metrics

    def _embed(self, images: Tensor) -> Tensor:
        device = next(self.encoder.parameters()).device
        with autocast(device, self.plan.precision):
            return torch.cat([self.encoder(part.to(device)).cpu() for part in images.split(500)])

    def _read(self, images: Images, rows: Tensor) -> tuple[Tensor, np.ndarray[Any, np.dtype[np.int64]]]:
        """The readable ones of some images, as the encoder is fed them but not normalised: uint8 (n, C, h, w), and labels."""
        pictures: list[Tensor] = []
        kept: list[int] = []
        for row in rows.tolist():
            if len(kept) % 1024 == 0:
                images.release()  # what was read before is not needed as it was read
            try:
                pixels = torch.from_numpy(np.ascontiguousarray(images.array(row)))
            except BadImage:  # the training batches list it; here it is one vote less
                continue
            prepared = self.encoder.prepare(pixels.permute(2, 0, 1)[None])
            pictures.append(prepared.mul(255).round_().to(torch.uint8))
            kept.append(row)
        labels = np.full(len(kept), -1, dtype=np.int64) if images.labels is None else images.labels[kept]
        empty = torch.empty((0, self.plan.channels, *self.plan.eval_size), dtype=torch.uint8)
        return torch.cat([empty, *pictures]), labels


def _spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).long()]
