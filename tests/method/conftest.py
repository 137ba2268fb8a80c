from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, torch.Tensor]]:
    """Reads the official code's values: golden("loss")["prediction"]. See tests/golden/README.md."""

    def read(name: str) -> dict[str, torch.Tensor]:
        with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return read
