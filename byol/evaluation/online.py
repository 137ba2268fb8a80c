"""The official online probe: a linear classifier that learns beside BYOL (official byol_experiment.py: _update_fn).

It learns from the representation of view 1 behind a stop-gradient, with the optimizer, rate and decay of everything else,
and teaches the encoder nothing. It is a gauge that costs next to nothing, not a protocol with settings of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from byol.data.images import Images
from byol.errors import DataError
from byol.evaluation.sgd import new_classifier
from byol.evaluation.train_batches import UNREADABLE, cross_entropy
from byol.features.embed import Features
from byol.method.byol import BYOL
from byol.method.crops import to_device


class OnlineProbe(nn.Module):
    """Beside a learner that is trained on labelled images: (B, D) representations to (B, classes) logits.

    Put its parameters into the learner's optimizer; between the learner's pass and the optimizer's step call `backward`.
    Its first weights follow from the seed. Raises DataError for images without labels.
    """

    def __init__(self, learner: BYOL, images: Images, seed: int) -> None:
        super().__init__()
        if images.labels is None or images.classes is None:
            raise DataError(
                f"{images.description} carry no labels, which the online probe learns from. Leave it off."
            )
        device = next(learner.parameters()).device
        self.classifier = new_classifier(learner.representation_size, len(images.classes), seed).to(device)
        self._labels = torch.tensor(images.labels, device=device)  # int64 (N,)
        self._correct, self._seen = torch.zeros(2, dtype=torch.int64, device=device)
        self.representation: Tensor | None = (
            None  # of view 1, and perhaps of view 2 behind it, in the pass just made
        )

    def forward(self, representation: Tensor) -> Tensor:
        """The logits (B, classes), float32."""
        logits: Tensor = self.classifier(representation.float())
        return logits

    def leave_out(self, index: int) -> None:
        """Learn nothing from an unreadable image: another one stands in for it, perhaps one of another class."""
        self._labels[index] = UNREADABLE

    def backward(self, indices: Tensor, accumulation: int = 1) -> None:
        """Add the gradient of the cross-entropy of the pass just made: of images `indices`, int64 (B,) on the host."""
        assert self.representation is not None
        y = self._labels[to_device(indices, self._labels.device)]
        logits = self(self.representation[: len(y)])  # both views are in it when they share one pass
        (cross_entropy(logits, y) / accumulation).backward()
        self.representation = None
        self._correct += (logits.argmax(dim=1) == y).sum()
        self._seen += (y != UNREADABLE).sum()

    @torch.no_grad()
    def correct(self, features: Features) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which images get their own class from their representation: bool (N,)."""
        x = torch.from_numpy(features.x).to(self._labels.device)
        return np.asarray(self(x).argmax(dim=1).cpu().numpy() == features.y)

    def metrics(self) -> dict[str, float]:
        """Accuracy on the augmented training images since the metrics before. Waits for the device."""
        correct, seen = int(self._correct), int(self._seen)
        self._correct.zero_()
        self._seen.zero_()
        return {"online_train_top1": correct / max(1, seen)}


@contextmanager
def watching(learner: BYOL, probe: OnlineProbe | None) -> Iterator[None]:
    """For a while, give a probe the first representation in every pass of a learner, which is view 1's."""
    if probe is None:
        yield
        return

    def begin(module: nn.Module, inputs: Any) -> None:
        probe.representation = None

    def take(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if probe.representation is None:
            probe.representation = output.detach()  # nothing that the probe does reaches the encoder

    handles = learner.register_forward_pre_hook(begin), learner.online.encoder.register_forward_hook(take)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
