"""Signs of collapse in a batch of representations or projections."""

import torch
from torch import Tensor

from byol.method.loss import normalize


@torch.no_grad()
def health(x: Tensor, other: Tensor | None = None) -> dict[str, Tensor]:
    """Scalars about rows (B, D), as tensors on their device: nothing here waits for it.

    `std`: mean standard deviation of the normalised rows' dimensions times sqrt(D); about 1 when they fill
    the sphere, 0 when all rows are equal. `effective_rank`: exp of the entropy of the singular values
    (RankMe, Garrido et al. 2023). `uniformity`: log mean exp(-2 d^2) over pairs of rows (Wang & Isola 2020);
    0 on collapse. With `other`, the same images' other views: `alignment`, the mean squared distance of
    partners.
    """
    rows = normalize(x.float())
    count, dims = rows.shape
    singular = torch.linalg.svdvals(rows)
    share = singular / singular.sum().clamp_min(1e-12)
    lengths = rows.square().sum(dim=1)  # 1, but for a dead row, which is 0
    pairs = (lengths[:, None] + lengths - 2 * rows @ rows.T).clamp_min(0)
    off_diagonal = (torch.exp(-2 * pairs).sum() - count) / max(1, count * (count - 1))
    signs = {
        "std": rows.std(dim=0, correction=0).mean() * dims**0.5,
        "effective_rank": torch.exp(-(share * (share + 1e-12).log()).sum()),
        "uniformity": off_diagonal.clamp_min(1e-30).log(),
    }
    if other is not None:
        signs["alignment"] = (rows - normalize(other.float())).square().sum(dim=-1).mean()
    return signs
