"""Small labelled images, and an encoder to train on them, that the tests of training on labels share."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from byol.data.images import Images, open_images
from byol.encoders.encoder import Encoder
from byol.evaluation.train_batches import TrainImages
from byol.method.draws import Stream, seed_of

HUES = ((200, 60, 60), (60, 190, 70), (70, 80, 200), (180, 170, 60))


class Net(nn.Module):
    """A convolution, BatchNorm and dropout: everything that training on labels could get wrong."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def net(dropout: float = 0.0, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    made = Net(dropout)
    made(torch.randn(64, 3, 16, 16))  # running statistics that are no longer 0 and 1
    return made


def pixels(count: int, classes: int = 4, seed: int = 0, noise: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures (N, 16, 16, 3), each of nearly its class's hue, and the classes."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % classes
    tint = np.array(HUES)[y] + generator.normal(0, noise, (count, 3))
    grain = generator.normal(0, 40, (count, 16, 16, 3))
    return (tint[:, None, None] + grain).clip(0, 255).astype(np.uint8), y


def enlarged(x: np.ndarray) -> np.ndarray:
    """Pictures that are too large to be kept in memory: 144 pixels a side."""
    return x.repeat(9, axis=1).repeat(9, axis=2)


def images(count: int, classes: int = 4, seed: int = 0) -> Images:
    x, y = pixels(count, classes, seed)
    return open_images(x, labels=y)


def labelled(count: int, seed: int = 0) -> TrainImages:
    return TrainImages.open(images(count, seed=seed), torch.device("cpu"))


def state(encoder: Encoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def plain_torch(
    encoder: Encoder,
    classifier: nn.Linear,
    part: TrainImages,
    *,
    lr: float,
    decay: float,
    batch_size: int,
    steps: int,
    frozen: bool,
    seed: int,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> None:
    """Train as any tutorial does: torch.optim.SGD and torch's own cosine, on the very same crops."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.info.mean, encoder.info.std))
    network = encoder.network.train(not frozen)
    parameters = [*classifier.parameters(), *([] if frozen else network.parameters())]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step, (crops, y) in enumerate(
        part.batches(encoder.info.image_size, batch_size, steps, (0.08, 1.0), seed)
    ):
        torch.manual_seed(seed_of(seed, Stream.DROPOUT, step))
        view = (crops.float() - mean) / std
        representation = network(view).detach() if frozen else network(view)
        optimizer.zero_grad()
        loss(classifier(representation), y).backward()
        optimizer.step()
        schedule.step()
    network.eval()
