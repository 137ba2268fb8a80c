"""byol-pytorch's trainer and its data set of noise, so that code written for it runs."""

from typing import Any

import torch
from torch import Tensor, nn

from byol.errors import ConfigError
from byol.train.config import KnnConfig, ModelConfig, OptimConfig, TrainConfig
from byol.train.log import say
from byol.train.run import Run, pretrain

OPTIMIZERS = {"Adam": "adamw", "AdamW": "adamw", "SGD": "sgd", "LARS": "lars"}
# What else byol-pytorch's trainer takes: which of it has an equal here, and what that is.
BYOL_KWARGS = {"projection_size", "projection_hidden_size", "moving_average_decay", "sync_batchnorm"}
OPTIMIZER_KWARGS = {"betas", "momentum", "weight_decay"}


class BYOLTrainer:
    """byol-pytorch's trainer: called, it is `pretrain`, into `checkpoint_folder`. `config` shows the equals.

    Rate and tau follow `pretrain`'s schedules: `learning_rate` is the peak of a cosine after a warm-up, and
    tau rises from `moving_average_decay` to 1. Raises ConfigError for an argument without an equal.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        image_size: int,
        hidden_layer: str | int,
        learning_rate: float,
        dataset: Any,
        num_train_steps: int,
        batch_size: int = 16,
        optimizer_klass: type = torch.optim.Adam,
        checkpoint_every: int = 1000,
        checkpoint_folder: str = "./checkpoints",
        byol_kwargs: dict[str, Any] | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
        accelerator_kwargs: dict[str, Any] | None = None,
    ) -> None:
        kind, learner, optim = optimizer_klass.__name__, byol_kwargs or {}, optimizer_kwargs or {}
        elsewhere = "Use byol.BYOL in a loop of your own, or byol.steps"
        refused = [
            (
                "optimizer_klass",
                {kind} - OPTIMIZERS.keys(),
                f"There are {', '.join(OPTIMIZERS)}. {elsewhere}",
            ),
            ("byol_kwargs", learner.keys() - BYOL_KWARGS, elsewhere),
            ("optimizer_kwargs", optim.keys() - OPTIMIZER_KWARGS, elsewhere),
            ("accelerator_kwargs", {*(accelerator_kwargs or {})}, "Give TrainConfig's device and precision"),
        ]
        decay = optim.get("weight_decay", 0.01 if kind == "AdamW" else 0.0)
        if kind == "Adam" and decay:
            refused.append(("optimizer_kwargs", {"weight_decay"}, "Adam's is not here; give AdamW"))
        if learner.get("sync_batchnorm") is False:
            refused.append(("byol_kwargs", {"sync_batchnorm=False"}, "Processes always share statistics"))
        for argument, names, instead in refused:
            if names:
                raise ConfigError(f"{argument} has {', '.join(sorted(names))}: no equal here. {instead}.")
        betas = optim.get("betas", (0.9, 0.999))
        model = {name: learner[name] for name in learner if name.startswith("projection")}
        self.net, self.dataset = net, dataset
        self.config = TrainConfig(
            out=checkpoint_folder, image_size=image_size, hidden_layer=str(hidden_layer),
            epochs=(num_train_steps + 0.5) * batch_size / len(dataset), batch_size=batch_size,
            save_every_steps=checkpoint_every, model=ModelConfig(**model),
            optim=OptimConfig(
                name=OPTIMIZERS[kind], base_lr=learning_rate * 256 / batch_size, predictor_lr=1.0,  # type: ignore[arg-type]
                weight_decay=decay, beta2=betas[1],
                momentum=betas[0] if kind.startswith("Adam") else optim.get("momentum", 0.0),
                base_tau=learner.get("moving_average_decay", 0.99),
            ),
            knn=KnnConfig(hold_out_share=0.0),  # every image is trained on, as there
        )  # fmt: skip

    def __call__(self) -> Run:
        """Train; `net` is trained in place, and a stopped run is continued."""
        return pretrain(self.net, self.dataset, self.config)

    forward = __call__

    def print(self, message: str) -> None:
        """Print on the first process."""
        say(*str(message).splitlines())

    def wait(self) -> None:
        """Nothing: a call returns when all processes are done."""


class MockDataset(torch.utils.data.Dataset[Tensor]):
    """Noise (3, image_size, image_size) from 0 to 1, the same each time, to try a program on."""

    def __init__(self, image_size: int, length: int) -> None:
        self.image_size, self.length = image_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"image {index} of {self.length}")
        shape = 3, self.image_size, self.image_size
        return torch.rand(shape, generator=torch.Generator().manual_seed(index))
