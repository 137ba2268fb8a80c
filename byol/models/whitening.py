"""A last layer behind training: the features' principal axes get a more equal say in how alike images are."""

import torch
from torch import Tensor, nn

from byol.method.linalg import decomposed

RIDGE = 1.0  # of the mean variance, added to every axis': large ones shrink, small ones are not blown up


class HalfWhitening(nn.Module):
    """Features (B, D), each of their principal axes divided by the root of its standard deviation.

    Cosines of features that come as they are hang on a few axes of large variance, which say little about
    what an image shows. Whitening (Jegou & Chum 2012, "Negative evidences and co-occurences in image
    retrieval") divides by the whole standard deviation, which helps neighbours but lets noise weigh so much
    that few labels no longer suffice; half of it keeps both (docs/decisions.md). Until it is fitted it
    changes nothing.
    """

    mean: Tensor  # (D,)
    matrix: Tensor  # (D, D), symmetric

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.eye(features))

    @classmethod
    def of(cls, rows: Tensor) -> "HalfWhitening":
        """That of some images' features (N, D), computed in float32; of fewer than 2 it changes nothing."""
        rows = rows.detach().cpu().float()  # float64 takes twice the time, and gives the same to 1e-4
        layer = cls(rows.shape[1])
        if len(rows) < 2:
            return layer
        mean = rows.mean(dim=0)
        if 2 * len(rows) < rows.shape[1]:  # sooner, and nothing varies along the other axes
            axes, values, _ = decomposed(torch.linalg.svd, (rows - mean).T, full_matrices=False)
            variances = values.square() / (len(rows) - 1)
        else:
            variances, axes = decomposed(torch.linalg.eigh, torch.cov(rows.T))
            variances = variances.clamp_min(0)
        mean_variance = variances.sum() / rows.shape[1]
        if mean_variance > 0:  # else all are equal, and there is nothing to weigh
            # Relative to the mean, so that features keep about their size.
            scale, other = (variances / mean_variance + RIDGE) ** -0.25, RIDGE**-0.25
            layer.mean.copy_(mean)
            layer.matrix.mul_(other).add_((axes * (scale - other)) @ axes.T)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) @ self.matrix
