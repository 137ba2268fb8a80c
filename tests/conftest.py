import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from byol.encoders.encoder import Encoder, EncoderInfo
from byol.method.probe import probe
from byol.method.views import ViewConfig, normalisation
from byol.models.build import build_encoder

settings.register_profile("any machine", deadline=None)  # how long an example takes hangs on the machine
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", default="1/1", help="2/3: the second third of the chosen tests")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every part has its share of a test's many networks, guides and kinds of files."""
    part, parts = map(int, config.getoption("part").split("/"))
    chosen, left = items[part - 1 :: parts], items[:]
    del left[part - 1 :: parts]
    config.hook.pytest_deselected(items=left)
    items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """A shell has SIGINT ignored in the background and nohup SIGHUP, which a run rightly respects."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def each_test_compiles_anew() -> Iterator[None]:
    """The compiler gives a function up after 8 variants of it, which may not be those of other tests."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def encoder_of() -> Callable[..., Encoder]:
    """An encoder ready to use, of a network or a name: encoder_of("convnet", width=4)."""

    def make(
        net: nn.Module | str = "convnet",
        hidden_layer: str | None = None,
        *,
        size: tuple[int, int] = (16, 16),
        channels: int = 3,
        **options: object,
    ) -> Encoder:
        name = net if isinstance(net, str) else None
        if isinstance(net, str):
            torch.manual_seed(0)
            options = options or ({"width": 4} if net == "convnet" else {})
            net = build_encoder(net, channels=channels, image_size=size, **options)
        found = probe(net, hidden_layer, image_size=size, channels=channels)
        mean, std = normalisation(ViewConfig(), channels)
        info = EncoderInfo.of(
            found.encoder,
            name,
            options,
            image_size=size,
            channels=channels,
            mean=mean,
            std=std,
            features=found.features,
        )
        return Encoder(found.encoder, info).eval()

    return make


@pytest.fixture(scope="session")
def official_files(tmp_path_factory) -> Path:
    """The folder of official_tiny.pkl and official_tiny_flatmap.pkl, which the official code wrote."""
    folder = tmp_path_factory.mktemp("official")
    with tarfile.open(Path(__file__).parent / "golden" / "official_checkpoints.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def official() -> dict[str, np.ndarray]:
    """tests/golden/training_steps.npz: parameters, states and outputs of the official code."""
    with np.load(Path(__file__).parent / "golden" / "training_steps.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="session")
def eval_images() -> torch.Tensor:
    """The images (4, 3, 48, 48) in [0, 1] that the official network was evaluated on."""
    stream = np.random.RandomState(0)
    stream.rand(225_778 + 12 * 8 * 48 * 48 * 3)
    return torch.from_numpy(stream.rand(4, 48, 48, 3).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
