"""What byol-pytorch calls the parts of a learner, so that code written for it runs; and what is not here."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.method.hidden import HiddenLayer

logger = logging.getLogger("byol")
NO_SEM = (
    "They put a Linear, BatchNorm and softmaxes in front of the projector, which is not BYOL. Leave them out "
    "(byol-pytorch: use_simplicial_embeddings=False), or make them a part of the network: "
    "BYOL(nn.Sequential(net, embeddings), image_size, hidden_layer='output')."
)


class NetWrapper(nn.Module):
    """A learner's encoder and projector, the same objects, by byol-pytorch's names and calls."""

    def __init__(self, encoder: HiddenLayer, projector: nn.Module) -> None:
        super().__init__()
        self.net, self.projector, self.training = encoder.net, projector, projector.training
        object.__setattr__(self, "encoder", encoder)  # no part of its own: its tensors are those of `net`

    def get_representation(self, x: Any) -> Tensor:
        """The representation (B, D)."""
        encoder: Any = self.encoder
        representation: Tensor = encoder(x)
        return representation

    def forward(self, x: Any, return_projection: bool = True) -> Any:
        """The projection and the representation, or the representation alone."""
        representation = self.get_representation(x)
        return (self.projector(representation), representation) if return_projection else representation


class TargetUpdater:
    """Where byol-pytorch keeps the target's tau, under the name of beta."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner

    @property
    def beta(self) -> float:
        """The learner's `moving_average_decay`."""
        return float(self._learner.moving_average_decay)

    @beta.setter
    def beta(self, value: float) -> None:
        self._learner.moving_average_decay = value

    def update_average(self, old: Tensor | None, new: Tensor) -> Tensor:
        """beta * old + (1 - beta) * new."""
        return new if old is None else torch.lerp(old, new, 1 - self.beta)


def refuse_simplicial_embeddings(used: bool, *sizes: float | None) -> None:
    """Raise ConfigError for byol-pytorch's simplicial embeddings (Lavoie et al., arXiv 2204.00616)."""
    if used or any(size is not None for size in sizes):
        raise ConfigError(f"Simplicial embeddings (use_simplicial_embeddings, sem_*) were chosen. {NO_SEM}")


def tell_of_torchvision(*functions: Any) -> None:
    """Warn of torchvision's transforms, which draw once for a whole batch."""
    for function in functions:
        parts = [*function.modules()] if isinstance(function, nn.Module) else [function]
        found = [type(part).__name__ for part in parts if type(part).__module__.startswith("torchvision.")]
        if found:
            logger.warning(
                f"augment_fn has torchvision's {', '.join(found)}: one draw for all images of a batch. Give "
                "lambda images: torch.stack([transform(image) for image in images])."
            )
