"""The official online probe, a linear classifier that learns beside BYOL (official byol_experiment.py).

It learns from the representation of view 1 behind a stop-gradient, with the optimizer, rate and weight decay
of everything else, and teaches the encoder nothing. It is a gauge that costs next to nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from byol.data.images import Images
from byol.data.samples import Samples
from byol.errors import DataError
from byol.evaluation.sgd import new_classifier
from byol.evaluation.train_batches import UNREADABLE, cross_entropy
from byol.features.embed import Features
from byol.method.byol import BYOL
from byol.method.crops import to_device
from byol.method.shared_norm import several_processes


class OnlineProbe(nn.Module):
    """The classifier of the images that a learner is trained on: (B, D) to (B, classes) logits.

    Its first weights follow from the seed. Raises DataError for images without labels.
    """

    def __init__(self, learner: BYOL, images: Images | Samples, seed: int) -> None:
        super().__init__()
        if images.labels is None or images.classes is None:
            raise DataError(
                f"{images.description} carry no labels, which the online probe learns from. Leave it off."
            )
        device = next(learner.parameters()).device
        self.classifier = new_classifier(learner.representation_size, len(images.classes), seed).to(device)
        self._labels = torch.tensor(images.labels, device=device)  # int64 (N,)
        # Since the metrics before. Buffers, so that a resumed run goes on counting.
        self.correct_count: Tensor
        self.seen_count: Tensor
        for name in ("correct_count", "seen_count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))

    def forward(self, representation: Tensor) -> Tensor:
        """The logits (B, classes), float32."""
        with torch.autocast(representation.device.type, enabled=False):
            logits: Tensor = self.classifier(representation.float())
        return logits

    def leave_out(self, index: int) -> None:
        """Learn nothing from an unreadable image: another stands in for it, perhaps of another class."""
        self._labels[index] = UNREADABLE

    def loss(self, representation: Tensor, indices: Tensor) -> Tensor:
        """The cross-entropy of the representation (B, D) of images `indices`, int64 (B,) on the host."""
        y = self._labels[to_device(indices, self._labels.device)]
        logits = self(representation)
        counts = torch.stack([(logits.argmax(dim=1) == y).sum(), (y != UNREADABLE).sum()])
        if several_processes():
            torch.distributed.all_reduce(counts)  # the processes' images are one batch
        self.correct_count += counts[0]
        self.seen_count += counts[1]
        return cross_entropy(logits, y)

    @torch.no_grad()
    def correct(self, features: Features) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which images get their own class from their representation: bool (N,)."""
        x = torch.from_numpy(features.x).to(self._labels.device)
        return np.asarray(self(x).argmax(dim=1).cpu().numpy() == features.y)

    def metrics(self) -> dict[str, float]:
        """Accuracy on the augmented training images since the metrics before. Waits for the device."""
        correct, seen = int(self.correct_count), int(self.seen_count)
        self.correct_count.zero_()
        self.seen_count.zero_()
        return {"online_train_top1": correct / max(1, seen)}


class ProbedLearner(nn.Module):
    """A learner with the probe that learns beside it, if there is one: all that a step takes gradients of.

    One module, because DDP averages the gradients of what its own forward pass has used, and of nothing else.
    """

    def __init__(self, learner: BYOL, probe: OnlineProbe | None = None) -> None:
        super().__init__()
        self.learner, self.probe = learner, probe

    def forward(
        self, view1: Any, view2: Any, indices: Tensor, extra: Mapping[str, Sequence[Any]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The learner's loss, and what to differentiate: with the probe's, whose gradients are its own."""
        if self.probe is None:
            loss: Tensor = self.learner(view1, view2, extra=extra)
            return loss, loss
        loss, representation = self.learner(view1, view2, extra=extra, return_representation=True)
        return loss, loss + self.probe.loss(representation, indices)
