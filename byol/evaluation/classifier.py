"""A classifier ready to use: an encoder with what tells the class from its features, in one file.

The file is an encoder file that holds a classifier too, so every command takes it as an encoder.
"""

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from byol.data.workers import Progress
from byol.disk import check_writable, opened_safetensors, parse_json, replacing
from byol.encoders.encoder import Encoder, EncoderFile, device_of, read, write
from byol.encoders.load import rebuilt
from byol.errors import CheckpointError, ConfigError
from byol.evaluation.knn import check_votes, knn_predictions
from byol.evaluation.metrics import likeliest, predict
from byol.evaluation.sgd import capped, finite
from byol.features.embed import Store, check_encoder, embed
from byol.features.features import Rows, Values, tensor_of

COLUMNS = ("path", "class", "probability")  # what `open_images` reads of a table are the first two
ODD = "surrogateescape"  # how names of files that are not UTF-8 are held


class LinearClassifier(nn.Module):
    """A linear map of features (N, D), standardised first where a mean and a std are given."""

    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        *,
        logit_cap: float | None = None,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())
        self.register_buffer("mean", torch.zeros_like(self.weight[0]) if mean is None else mean)
        self.register_buffer("std", torch.ones_like(self.weight[0]) if std is None else std)
        self.logit_cap, self.multi_label = logit_cap, multi_label

    def logits(self, x: Tensor) -> Tensor:
        """The logits (n, C) of features (n, D), on the features' device."""
        z = (x.to(self.weight.device) - self.mean) / self.std
        return capped(F.linear(z, self.weight, self.bias), self.logit_cap).to(x.device)

    def predict(self, x: Tensor, classes: Tensor | None) -> Tensor:
        """Predictions for features (N, D), of the classes int64 (C,): see `metrics.predict`."""
        return predict(x, self.logits, classes, width=sum(self.weight.shape))

    def scores(self, x: Tensor) -> Tensor:
        """The logits (N, C) of any number of features: those that `predict` goes by, to the bit."""
        return self.predict(x, None)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Softmax; multi-label the sigmoid of each class."""
        return scores.sigmoid() if self.multi_label else scores.softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """The probabilities (n, C) of features (n, D)."""
        return self.probabilities(self.logits(x))


class KnnClassifier(nn.Module):
    """The votes of the nearest train images, whose features it holds: `knn_predictions`, one label each."""

    multi_label, logit_cap = False, None
    bank: Tensor  # (N, D), float32: in half precision some predictions would be others than were scored
    columns: Tensor  # int64 (N,), from 0 to C - 1, each of which occurs

    def __init__(self, bank: Tensor, columns: Tensor, k: int, temperature: float) -> None:
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("columns", columns)
        self.k, self.temperature = k, temperature

    def scores(self, x: Tensor) -> Tensor:
        """The votes (N, C) for features (N, D), on the features' device; -infinity where there is none."""
        bank, columns, ks = self.bank, self.columns, (self.k,)
        return knn_predictions(bank, columns, x, ks, self.temperature, count=None)[0].to(x.device)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Each class's share of the votes."""
        votes = scores.clamp(min=0)
        return votes / votes.sum(dim=1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """The shares (n, C) for features (n, D)."""
        return self.probabilities(self.scores(x))


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of images, in their order; those that cannot be read are left out."""

    names: list[str]  # N
    classes: tuple[str, ...]  # C
    probabilities: Values  # (N, C)
    likeliest: Rows  # (N,) a place in the classes
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def found(self, row: int) -> list[int]:
        """The classes of an image: the likeliest; multi-label those of a probability of at least a half."""
        if self.multi_label:
            return np.flatnonzero(self.probabilities[row] >= 0.5).tolist()
        return [int(self.likeliest[row])]

    @property
    def labels(self) -> list[str]:
        """The class of every image; of multi-label ones all that were found, with | between them."""
        return ["|".join(self.classes[one] for one in self.found(row)) for row in range(len(self))]

    def save(self, path: str | Path, *, every_class: bool = False) -> None:
        """Write a CSV file of path, class and probability, perhaps with a column for every class.

        It appears as a whole or not at all; missing folders are made. Where it lies beside the images,
        `open_images` reads it as a table of labels.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", errors=ODD, newline="") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*COLUMNS, *(self.classes if every_class else ())])
            for row, (name, label) in enumerate(zip(self.names, self.labels, strict=True)):
                numbers = [f"{number:.6f}" for number in self.probabilities[row].tolist()]
                told = "|".join(numbers[one] for one in self.found(row))
                table.writerow([name, label, told, *(numbers if every_class else ())])


class Classifier(nn.Module):
    """An encoder and a classifier of its features: images (B, C, H, W), as an `Encoder` takes them, give
    the probabilities (B, classes).

    Of a linear classifier they are the softmax of its logits, multi-label their sigmoids; of kNN each
    class's share of the votes. They are not calibrated: of images with 0.9, more or fewer than nine in ten
    may be right.
    """

    def __init__(
        self,
        encoder: Encoder,
        of_features: LinearClassifier | KnnClassifier,
        classes: tuple[str, ...],
        *,
        protocol: str = "",
    ) -> None:
        super().__init__()
        check_encoder(encoder)
        self.encoder, self.of_features = encoder, of_features
        self.classes, self.protocol = classes, protocol

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The probabilities (B, classes) of images."""
        probabilities: Tensor = self.of_features(self.encoder(images))
        return probabilities

    @torch.no_grad()
    def predict(
        self,
        images: Any,
        *,
        workers: int = 0,
        store: Store | str | Path | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Predicted:
        """What it says of images, anything `open_images` takes; the other arguments are those of `embed`.

        Unreadable images are left out with a warning that names them. The images that it was scored on get
        the predictions that were scored.
        """
        features = embed(self.encoder, images, workers=workers, store=store, progress=progress)
        scores = self.of_features.scores(tensor_of(features.x))
        best = likeliest(scores, torch.arange(len(self.classes)), count=1)[:, 0]
        probabilities = self.of_features.probabilities(scores).numpy()
        multi_label = self.of_features.multi_label
        return Predicted(features.names, self.classes, probabilities, best.numpy(), multi_label)

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file with all of it. Raises ConfigError for a place that cannot take it."""
        path, held = Path(path), self.of_features
        check_place(path)
        description = {"protocol": self.protocol, "classes": self.classes, "multi_label": held.multi_label}
        if isinstance(held, KnnClassifier):
            description |= {"k": held.k, "temperature": held.temperature}
        else:
            description |= {"logit_cap": held.logit_cap}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(self.encoder, temporary, description, held.state_dict())


def load_classifier(
    path: str | Path, *, net: nn.Module | str | None = None, device: str | None = "cpu"
) -> Classifier:
    """The classifier in a file that `Classifier.save` or `byol evaluate --save-classifier` wrote.

    `net` is as in `load_encoder`. Raises CheckpointError when the file is missing, damaged, an encoder
    alone, or does not fit.
    """
    file, flag = Path(path), "`byol evaluate ... --save-classifier FILE`"
    if not os.path.isfile(file):
        raise CheckpointError(f"There is no classifier at {file}; expected a file that {flag} wrote.")
    held = read(file)
    if held.classifier is None:
        raise CheckpointError(f"{file} is an encoder without a classifier; expected what {flag} wrote.")
    try:
        classifier = of_features_in(held)
        classes, protocol = tuple(held.classifier["classes"]), str(held.classifier["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as failure:
        raise CheckpointError(
            f"{file} does not describe a classifier as this version of byol does ({failure}). "
            "Write it again with this version."
        ) from failure
    encoder = rebuilt(held, file, net, device)
    if device_of(encoder).type == "cuda":
        classifier.to(device_of(encoder))
    return Classifier(encoder, classifier, classes, protocol=protocol)


def of_features_in(held: EncoderFile) -> LinearClassifier | KnnClassifier:
    """The classifier of features in a file. What the file says is not believed: raises ValueError and others
    unless its names, numbers and shapes fit each other and the encoder."""
    said, parts, width = held.classifier, held.parts, held.info.features
    names, multi_label, cap = said["classes"], said["multi_label"], said.get("logit_cap")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of its classes are not a list of words")
    for name in names:
        name.encode(errors=ODD)  # else a table could not hold it
    knn, count = "bank" in parts, len(names)
    shapes = {"weight": (count, width), "bias": (count,), "mean": (width,), "std": (width,)}
    if knn:
        shapes = {"bank": (rows := len(parts["bank"]), width), "columns": (rows,)}
    if {name: tuple(part.shape) for name, part in parts.items()} != shapes:
        raise ValueError(f"its tensors have not the shapes of {count} classes and {width} features")
    kinds = {name: torch.int64 if name == "columns" else torch.float32 for name in shapes}
    if any(parts[name].dtype != kind for name, kind in kinds.items()):
        raise ValueError("its tensors are of other types")
    if type(multi_label) is not bool or (knn and multi_label):
        raise ValueError("it cannot be multi-label")
    found: LinearClassifier | KnnClassifier
    if knn:
        k, temperature = said["k"], float(said["temperature"])
        if type(k) is not int or not torch.equal(parts["columns"].unique(), torch.arange(count)):
            raise ValueError("its k or its labels cannot be")
        check_votes((k,), temperature)
        found = KnnClassifier(parts["bank"], parts["columns"], k, temperature)
    else:
        cap = None if cap is None else float(cap)
        if (cap is not None and not 0 < cap < 1e30) or not bool((parts["std"] > 0).all()):
            raise ValueError("its logit cap or its standard deviations cannot be")
        found = LinearClassifier(**parts, logit_cap=cap, multi_label=multi_label)
    if not finite(found):
        raise ValueError("its numbers are not finite")
    return found


def holds_classifier(path: str | Path) -> bool:
    """Whether a file is one of an encoder with a classifier."""
    with (
        suppress(SafetensorError, OSError, ValueError, KeyError, AttributeError),
        opened_safetensors(Path(path)) as opened,
    ):
        return parse_json((opened.metadata() or {})["byol"]).get("classifier") is not None
    return False


def check_place(path: Path) -> None:
    """Raise ConfigError for a file that a classifier cannot be written to, or that would be lost."""
    if path.suffix != ".safetensors" or os.path.isdir(path):
        raise ConfigError(f"{path} cannot hold a classifier; expected the name of a .safetensors file.")
    if os.path.exists(path) and not holds_classifier(path):
        raise ConfigError(f"{path} is there already and is not a classifier. Give another name.")
    check_writable(path.parent, name=path.name)


def names_of(names: Sequence[str] | None, classes: Tensor | None) -> tuple[str, ...]:
    """The names of some classes int64 (C,), or of all; the numbers where they have none."""
    if classes is None:
        return tuple(names or ())
    return tuple(names[one] if names else str(one) for one in classes.tolist())
