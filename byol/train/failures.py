"""What a run says of the failures that come from outside: memory, the disk, numbers that are no longer finite."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from byol.errors import ByolError, DiskError, TrainingError
from byol.train import checkpoint


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn a full memory or disk into one sentence, and tell with each where the run can be taken up again."""
    try:
        yield
    except TrainingError as failure:
        raise TrainingError(f"{failure} {checkpoint.last_good(folder / 'checkpoints')}") from failure
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise ByolError(
            f"There is not enough memory for this run ({' '.join(str(failure).split())[:200]}). Lower --batch-size or "
            f"--image-size, or raise --optim.accumulation. {checkpoint.last_good(folder / 'checkpoints')}"
        ) from failure
    except DiskError as failure:
        raise ByolError(
            f"{failure} The same command continues the run. {checkpoint.last_good(folder / 'checkpoints')}"
        ) from failure


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether an error says that memory is full: torch has a type for a GPU's, and a plain RuntimeError for a CPU's."""
    return isinstance(failure, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(
        failure
    )
