"""Bootstrap Your Own Latent (Grill et al. 2020): unlabelled images and a network in, a good encoder out.

Every public name is listed here and loaded when first used, so that `import byol` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from byol.data.decode import BadImage as BadImage
    from byol.data.images import Images as Images, open_images as open_images
    from byol.data.samples import Samples as Samples
    from byol.encoders.encoder import Encoder as Encoder
    from byol.encoders.load import load_encoder as load_encoder
    from byol.encoders.official import official_state as official_state
    from byol.errors import (
        ByolError as ByolError,
        CheckpointError as CheckpointError,
        CollapseError as CollapseError,
        ConfigError as ConfigError,
        DataError as DataError,
        Stopped as Stopped,
        TrainingError as TrainingError,
    )
    from byol.evaluation.classifier import (
        Classifier as Classifier,
        Predicted as Predicted,
        load_classifier as load_classifier,
    )
    from byol.evaluation.knn import knn_predict as knn_predict
    from byol.evaluation.protocols import evaluate as evaluate
    from byol.evaluation.score import Score as Score
    from byol.exports.export import Exported as Exported, export as export
    from byol.exports.hub import Pushed as Pushed, push as push
    from byol.features.embed import embed as embed
    from byol.features.embedder import Embedder as Embedder
    from byol.features.features import Features as Features
    from byol.features.neighbours import (
        near_duplicates as near_duplicates,
        outliers as outliers,
        search as search,
    )
    from byol.features.select import clusters as clusters, pick as pick
    from byol.method.byol import BYOL as BYOL
    from byol.method.lars import LARS as LARS, parameter_groups as parameter_groups
    from byol.method.loss import regression_loss as regression_loss
    from byol.method.schedules import learning_rate as learning_rate, tau as tau
    from byol.method.views import ViewConfig as ViewConfig, Views as Views
    from byol.models.build import build_encoder as build_encoder
    from byol.train.config import TrainConfig as TrainConfig
    from byol.train.plan import ImageFacts as ImageFacts, Plan as Plan, plan_run as plan_run
    from byol.train.run import Run as Run, pretrain as pretrain
    from byol.train.setup import Loop as Loop, prepare_loop as prepare_loop
    from byol.train.step import StepResult as StepResult, steps as steps
    from byol.train.trainer import BYOLTrainer as BYOLTrainer, MockDataset as MockDataset
    from byol.world import World as World

_HOMES = {
    "byol.data.decode": ("BadImage",),
    "byol.data.images": ("Images", "open_images"),
    "byol.data.samples": ("Samples",),
    "byol.errors": (
        "ByolError",
        "CheckpointError",
        "CollapseError",
        "ConfigError",
        "DataError",
        "Stopped",
        "TrainingError",
    ),
    "byol.evaluation.classifier": ("Classifier", "Predicted", "load_classifier"),
    "byol.evaluation.knn": ("knn_predict",),
    "byol.evaluation.protocols": ("evaluate",),
    "byol.evaluation.score": ("Score",),
    "byol.features.embedder": ("Embedder",),
    "byol.encoders.load": ("load_encoder",),
    "byol.features.embed": ("embed",),
    "byol.features.features": ("Features",),
    "byol.features.neighbours": ("near_duplicates", "outliers", "search"),
    "byol.features.select": ("clusters", "pick"),
    "byol.method.byol": ("BYOL",),
    "byol.method.lars": ("LARS", "parameter_groups"),
    "byol.method.loss": ("regression_loss",),
    "byol.method.schedules": ("learning_rate", "tau"),
    "byol.method.views": ("ViewConfig", "Views"),
    "byol.models.build": ("build_encoder",),
    "byol.train.config": ("TrainConfig",),
    "byol.train.plan": ("ImageFacts", "Plan", "plan_run"),
    "byol.train.run": ("Run", "pretrain"),
    "byol.train.setup": ("Loop", "prepare_loop"),
    "byol.train.step": ("StepResult", "steps"),
    "byol.train.trainer": ("BYOLTrainer", "MockDataset"),
    "byol.exports.export": ("Exported", "export"),
    "byol.exports.hub": ("Pushed", "push"),
    "byol.encoders.encoder": ("Encoder",),
    "byol.encoders.official": ("official_state",),
    "byol.world": ("World",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name == "SEM":  # the fourth name of byol-pytorch; not an AttributeError, whose words `from` drops
        raise ImportError(
            "byol has no SEM: simplicial embeddings are not BYOL; docs/guides/other-libraries.md"
        )
    if name not in _HOME_OF:
        raise AttributeError(f"module 'byol' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value  # next time without this function
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
