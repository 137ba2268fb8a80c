"""Bootstrap Your Own Latent (Grill et al. 2020): unlabelled images and a network in, a good encoder out.

Every public name is listed here and loaded when first used, so that `import byol` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from byol.errors import ByolError as ByolError
    from byol.errors import CheckpointError as CheckpointError
    from byol.errors import ConfigError as ConfigError
    from byol.errors import DataError as DataError
    from byol.errors import Stopped as Stopped
    from byol.errors import TrainingError as TrainingError

_HOMES = {
    "byol.errors": ("ByolError", "CheckpointError", "ConfigError", "DataError", "Stopped", "TrainingError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'byol' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
