"""Signs of collapse in a batch of representations or projections, and what they are compared with."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from byol.method.linalg import decomposed
from byol.method.loss import normalize


@torch.no_grad()
def health(x: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
    """Scalars about rows (B, D), as tensors on their device: nothing here waits for it.

    `std`: mean standard deviation of the normalised rows' dimensions times sqrt(D); about 1 when they fill
    the sphere, 0 when all rows are equal. `effective_rank`: exp of the entropy of the singular values
    (RankMe, Garrido et al. 2023). `uniformity`: log mean exp(-2 d^2) over pairs of rows (Wang & Isola 2020);
    0 on collapse. With `other`, the same images' other views: `alignment`, the mean squared distance of
    partners; `batch_alignment`, that of rows which are not partners; `retrieval`, the share of the other
    views whose nearest row is their partner.
    """
    rows = normalize(x.float())
    count = len(rows)
    tall = rows if count > rows.shape[1] else rows.T  # takes a third of the time
    singular = decomposed(torch.linalg.svdvals, tall)
    share = singular / singular.sum().clamp_min(1e-12)
    lengths = rows.square().sum(dim=1)  # 1, but for a dead row, which is 0
    pairs = (lengths[:, None] + lengths - 2 * rows @ rows.T).clamp_min(0)
    off_diagonal = (torch.exp(-2 * pairs).sum() - count) / max(1, count * (count - 1))
    signs = {
        "std": std(x),
        "effective_rank": torch.exp(-(share * (share + 1e-12).log()).sum()),
        "uniformity": off_diagonal.clamp_min(1e-30).log(),
    }
    if other is not None:
        others = normalize(other.float())
        signs["alignment"] = (rows - others).square().sum(dim=-1).mean()
        pairs = lengths[:, None] + others.square().sum(dim=1) - 2 * rows @ others.T
        signs["batch_alignment"] = (pairs.sum() - pairs.diagonal().sum()) / max(1, count * (count - 1))
        signs["retrieval"] = retrieved(rows, others).float().mean()
    return signs


@torch.no_grad()
def retrieved(x: Tensor, other: Tensor) -> Tensor:
    """Which of the other views find their partner among the rows by the largest cosine: bool (B,)."""
    nearest = (normalize(x.float()) @ normalize(other.float()).T).argmax(dim=0)
    return nearest == torch.arange(len(x), device=nearest.device)


@torch.no_grad()
def std(x: Tensor) -> Tensor:
    """Mean standard deviation of the normalised rows' dimensions times sqrt(D): `std` of `health` alone."""
    unit = normalize(x.float())
    result: Tensor = unit.std(dim=0, correction=0).mean() * unit.shape[1] ** 0.5
    return result


@torch.no_grad()
def settle(network: nn.Module, x: Tensor) -> None:
    """Give BatchNorm layers that have seen nothing yet the statistics of a batch, as training passes do.

    With fresh ones, of mean 0 and variance 1, an untrained network looks worse than it is, and any training
    a success.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    fresh = [norm for norm in norms if norm.track_running_stats and norm.num_batches_tracked == 0]
    momenta = [norm.momentum for norm in fresh]
    network.eval()
    for norm in fresh:
        norm.momentum = 1.0  # the new statistics in the place of the old
        norm.train()
    if fresh and len(x) > 1:
        network(x)
    for norm, momentum in zip(fresh, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
