"""How good the representation is while it trains: kNN on held-out images, and whether it collapses."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from byol.data.decode import BadImage
from byol.data.sources import Images
from byol.evaluate.knn import knn_score
from byol.features.extract import Features
from byol.method.byol import BYOL
from byol.method.health import health
from byol.method.views import prepare
from byol.train.config import KnnConfig
from byol.train.plan import Plan
from byol.train.step import autocast

BANK = 10_000  # training images that vote: enough to rank runs, cheap enough to ask often
BYTES = 512 * 2**20  # of prepared pictures kept for scoring


class Monitor:
    """Scores the learner on occasion. Its pictures are decoded once and kept, prepared as evaluation prepares them."""

    def __init__(self, images: Images, train_rows: Tensor, held_out_rows: Tensor, plan: Plan, knn: KnnConfig) -> None:
        self.plan, self.knn = plan, knn
        self.knn_top1: float | None = None
        room = max(64, BYTES // (plan.channels * plan.image_size[0] * plan.image_size[1]))
        queries = _spread(held_out_rows, room // 4)
        bank = _spread(train_rows, min(BANK, room - len(queries)) if len(queries) else 512)
        self.bank, self.bank_labels = _read(images, bank, plan)
        self.queries, self.query_labels = _read(images, queries, plan)

    def due(self, step: int) -> bool:
        """Whether this step is an occasion: `knn.times` in a run, the last step included."""
        every = -(-self.plan.total_steps // self.knn.times)
        return step % every == 0 or step == self.plan.total_steps

    def look(self, learner: BYOL, step: int) -> dict[str, Any]:
        """Metrics of now: collapse signals of the representation, and kNN top-1 when there are labels."""
        bank = self._embed(learner, self.bank)
        metrics = {"step": step, "epoch": step * self.plan.batch_size / self.plan.images}
        metrics |= {f"representation_{name}": float(value) for name, value in health(bank[:2048]).items()}
        if len(self.queries):
            queries = self._embed(learner, self.queries)
            score = knn_score(
                _features(bank, self.bank_labels), _features(queries, self.query_labels),
                k=self.knn.k, temperature=self.knn.temperature,
            )  # fmt: skip
            metrics["knn_top1"] = self.knn_top1 = score.top1
        return metrics

    def _embed(self, learner: BYOL, images: Tensor) -> Tensor:
        device = next(learner.parameters()).device
        with autocast(device, self.plan.precision):
            return torch.cat([learner.embed(part.to(device)).cpu() for part in images.split(500)])


def _spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).long()]


def _read(images: Images, rows: Tensor, plan: Plan) -> tuple[Tensor, np.ndarray[Any, Any]]:
    """The readable ones of some images, as evaluation sees them but not yet normalised: uint8 (n, C, h, w), and labels."""
    pictures, kept = [], []
    for row in rows.tolist():
        try:
            pixels = torch.from_numpy(images.array(row)).permute(2, 0, 1)[None]
        except BadImage:  # the training batches list it; here it is one vote less
            continue
        pictures.append(prepare(pixels, plan.image_size))
        kept.append(row)
    labels = np.full(len(kept), -1) if images.labels is None else images.labels[kept]
    if not pictures:
        return torch.empty((0, plan.channels, *plan.image_size), dtype=torch.uint8), labels
    return torch.cat(pictures).mul(255).round_().clamp_(0, 255).to(torch.uint8), labels


def _features(x: Tensor, y: np.ndarray[Any, Any]) -> Features:
    return Features(x=x.numpy(), y=y, names=[])
