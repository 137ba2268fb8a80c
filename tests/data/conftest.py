from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pictures import encoded, photo


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of different PNG pictures: folder_of("cats/1.png", "dogs/2.png", height=20)."""

    def write(*names: str | bytes, height: int = 20, width: int = 30, root: str = "photos") -> Path:
        for seed, name in enumerate(names):
            path = Path(
                tmp_path / root / (name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photo(height, width, seed)))
        return tmp_path / root

    return write


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Worker processes are forked from this one; one thread, as on a small machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes."""
    root = tmp_path_factory.mktemp("files")
    for index in range(23):
        (root / f"{index:02}.png").write_bytes(encoded(photo(20 + index, 50 - index, index)))
    return root
