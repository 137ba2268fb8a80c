"""What a protocol is given and gives: labelled images and their features in, scores of the test images out."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np

from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.labels import Labels
from byol.data.readers.reader import evenly_spaced
from byol.encoders.encoder import Encoder
from byol.errors import ConfigError, DataError, TrainingError
from byol.evaluation.knn import check_votes
from byol.evaluation.sgd import ClassifierConfig
from byol.features.embed import Features, cached

Array = np.ndarray[Any, Any]
TRAINING = (
    "base_lrs",
    "epochs",
    "weight_decays",
    "logit_cap",
    "logit_penalty",
)  # settings of protocols that train by SGD
logger = logging.getLogger("byol")


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the protocols. Nothing is ever chosen on test images."""

    k: tuple[int, ...] = (20,)
    """Neighbours that vote in kNN. Several give a score each."""
    temperature: float = 0.07
    """Of the votes in kNN: exp(cosine / temperature)."""
    metric: str | None = None
    """top1, mean_per_class or map11; by default top1, and map11 where images have several labels."""
    base_lrs: tuple[float, ...] = ()
    """Learning rates per 256 images: semi and finetune try 0.01 0.05 0.2 by default, linear-sgd 0.05 0.1 0.2 0.3 0.4."""
    epochs: tuple[float, ...] = ()
    """Passes over the images that they try; by default 80 in linear-sgd, 50 in semi, 10 in finetune."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays that they try; by default none."""
    logit_cap: float | None = None
    """Squash their logits by a tanh into (-cap, cap); 20 in the paper's Table 7. By default not."""
    logit_penalty: float | None = None
    """Weight of the mean squared logit in their loss; 0.01 in the paper's Table 7. By default 0."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(EvaluationConfig).items():
            if name != "metric":
                object.__setattr__(
                    self, name, plain(name, getattr(self, name), several=get_origin(kind) is tuple)
                )
        check_votes(self.k, self.temperature)
        self.classifier(ClassifierConfig(base_lrs=(0.1,), epochs=(1.0,)))  # which checks

    def classifier(self, usual: ClassifierConfig) -> ClassifierConfig:
        """A protocol's usual way to train a classifier, with what is given here in its place."""
        given = {name: getattr(self, name) for name in TRAINING}
        return replace(usual, **{name: value for name, value in given.items() if value not in ((), None)})


def plain(name: str, value: Any, *, several: bool) -> Any:
    """A setting as Python's own number, or several as a tuple of them: evaluate(..., k=5) or k=np.array([5, 10])."""
    if value is None:
        return None
    values = (
        list(value) if several and isinstance(value, Iterable) and not isinstance(value, str) else [value]
    )
    numbers = tuple(one.item() if isinstance(one, np.generic) else one for one in values)
    if not all(isinstance(one, Real) for one in numbers):
        raise ConfigError(f"{name} is {value!r}; expected {'numbers' if several else 'a number'}.")
    return numbers if several else numbers[0]


@dataclass(frozen=True)
class Given:
    """One side, train or test: labelled images or features, and the features once a protocol asks for them."""

    source: Images | Features
    encoder: Encoder
    workers: int = 0
    cache: Path | None = None  # where features of images are kept

    @property
    def images(self) -> Images:
        """The images, for a protocol that works on them; `prepare` has refused features."""
        assert isinstance(self.source, Images)
        return self.source

    @property
    def labels(self) -> Array:
        """Of all that was given: int64 (N,), or (N, classes) of 0 and 1."""
        labels = labels_of(self.source)
        assert labels is not None
        return labels

    @property
    def classes(self) -> int:
        """How many classes there are, those without an image included."""
        labels, names = self.labels, self.source.classes
        return labels.shape[1] if labels.ndim == 2 else max(int(labels.max()) + 1, len(names or ()))

    @property
    def description(self) -> str:
        """For people."""
        return (
            self.source.description
            if isinstance(self.source, Images)
            else f"features of {len(self.source.x):,} images"
        )

    @cached_property
    def features(self) -> Features:
        """The representations of the images that can be read, with their labels; computed when first asked for."""
        if isinstance(self.source, Features):
            return self.source
        return cached(self.encoder, self.source, self.cache, workers=self.workers)


@dataclass(frozen=True)
class Answers:
    """What a protocol says of the test images that could be read."""

    scores: Array  # float (Q, classes), larger for a likelier class; minus infinity is no answer
    labels: (
        Array | None
    )  # of the same images, as in `Given`; None where they carry none, and then there is no score
    settings: dict[str, Any]  # given and chosen
    train_images: int  # learned from, those that settings were chosen on included

    def __post_init__(self) -> None:
        if np.isnan(self.scores).any():
            raise TrainingError(
                "The classifier answers NaN: its training diverged. Try a lower learning rate."
            )


def labelled(
    images: Any, role: str, encoder: Encoder, classes: Sequence[str] | None = None
) -> Features | Images:
    """The images of a role, opened; raises DataError before any work when they carry no labels.

    A folder that holds nothing but one folder named as one of `classes` holds images of this class.
    """
    opened: Features | Images = images if isinstance(images, Features) else encoder.open(images)
    if (
        classes
        and isinstance(opened, Images)
        and isinstance(images, str | Path)
        and labels_of(opened) is None
    ):
        opened = of_one_class(opened, Path(images).expanduser(), classes)
    if labels_of(opened) is None:
        what = opened.description if isinstance(opened, Images) else "The features"
        raise DataError(
            f"{what} given as {role} carry no labels. Expected a folder with one folder per class, "
            "parquet with a label column, or an .npz with y."
        )
    return opened


def of_one_class(images: Images, folder: Path, classes: Sequence[str]) -> Images:
    """The images of a folder that holds nothing but the folder of a class, with their labels; others as they are."""
    ends = [images.name(index).partition("/") for index in (0, len(images) - 1)]  # of names in order
    if not os.path.isdir(folder) or ends[0][0] != ends[1][0] or not ends[0][1] or ends[0][0] not in classes:
        return images
    return open_images(images, labels=[ends[0][0]] * len(images))


def same_images(train: Features | Images, test: Features | Images) -> bool:
    """Whether what is scored is what was learned from, which is warned of: each image is then its own nearest neighbour."""
    if isinstance(train, Images) and isinstance(test, Images):
        same = train.fingerprint() == test.fingerprint() and alike(train, test)
    else:
        same = isinstance(train, Features) and isinstance(test, Features) and np.array_equal(train.x, test.x)
    if same:
        logger.warning(
            "Train and test are the same images, so these scores are meaningless: they say nothing of images that were not "
            "learned from. Give two different sets."
        )
    return same


def alike(train: Images, test: Images) -> bool:
    """Whether a few images are the same on both sides: of a dataset that draws them at random only these tell."""
    for index in evenly_spaced(min(len(train), len(test)), 8):
        try:
            if not np.array_equal(train.array(index), test.array(index)):
                return False
        except BadImage:
            continue
    return True


def labels_of(source: Features | Images) -> Array | None:
    """The labels of images or features, int64 (N,) or (N, classes), where there are any."""
    if isinstance(source, Features):
        return source.y
    return source.label_matrix if source.labels is None else source.labels


def same_classes(
    train: Features | Images, test: Features | Images
) -> tuple[Features | Images, Features | Images]:
    """Both with the same class numbers, matched by the classes' names where both have names, train's first.

    A class may be missing from either side: two folders that lack different classes number theirs differently.
    """
    ours, theirs = labels_of(train), labels_of(test)
    assert ours is not None
    assert theirs is not None
    if ours.ndim != theirs.ndim:
        raise DataError(
            "One of train and test has one label an image, the other several. Give labels of one kind on both sides."
        )
    if train.classes is None or test.classes is None or train.classes == test.classes:
        if ours.ndim == 2 and ours.shape[1] != theirs.shape[1]:
            raise DataError(
                f"Train has {ours.shape[1]} columns of labels and test {theirs.shape[1]}; expected the same classes."
            )
        return train, test
    if not set(train.classes) & set(test.classes):
        raise DataError(
            f"Train and test share no class: train has {', '.join(train.classes[:3])} ..., "
            f"test {', '.join(test.classes[:3])} ... Expected the same class names on both sides."
        )
    union = (*train.classes, *(name for name in test.classes if name not in train.classes))
    return with_classes(train, union) if ours.ndim == 2 else train, with_classes(test, union)


def with_classes(source: Features | Images, classes: tuple[str, ...]) -> Features | Images:
    """The same with its labels numbered by other names, which hold all of its own."""
    if isinstance(source, Images):
        return source.with_classes(classes)
    assert source.y is not None
    assert source.classes is not None
    return replace(source, y=Labels(source.y, source.classes).renumbered(classes).values, classes=classes)
