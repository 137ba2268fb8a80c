"""A map: every row as a point of the plane, near rows near one another as far as a plane allows."""

from importlib.util import find_spec

import numpy as np
import torch

from byol.data.workers import Progress
from byol.features.features import Features, Rows, Values, matrix, unit_blocks
from byol.features.formats import Array
from byol.features.neighbours import Neighbours

BLOCK = 2**24  # distances that are worked on at once
FIRST, STEPS, EVERY = 250, 750, 10  # steps of t-SNE: exaggerated, all, between two words of its progress
LEAST, PERPLEXITY = 20, 30.0  # neighbours that t-SNE is worth it with, and the most of them it balances


def tsne_is_here() -> bool:
    return find_spec("openTSNE") is not None


def pca(features: Features | Array) -> Values:
    """Rows, scaled to length 1, by the two directions in which they differ most (N, 2). Exact."""
    x, cpu = matrix(features), torch.device("cpu")
    mean = torch.zeros(x.shape[1], dtype=torch.float64)
    second = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for _, rows in unit_blocks(x, cpu):
        wide = rows.double()
        mean += wide.sum(dim=0) / len(x)
        second += wide.T @ wide / len(x)
    directions = torch.linalg.eigh(second - torch.outer(mean, mean)).eigenvectors[:, -2:].flip(1)
    if directions.shape[1] < 2:  # features of one number
        directions = torch.cat((directions, torch.zeros(len(directions), 1)), dim=1)
    parts = [(rows.double() - mean) @ directions for _, rows in unit_blocks(x, cpu)]
    return np.asarray(torch.cat(parts).float().numpy())


def tsne(
    near: Neighbours, start: Values, *, seed: int = 0, threads: int = 1,
    progress: Progress = lambda done, total: None,
) -> Values:  # fmt: skip
    """The map by openTSNE (N, 2) of exact neighbours (N, k), from a first map such as `pca` gives.

    Its perplexity is a third of k, which is how many it looks at.
    """
    from openTSNE import TSNEEmbedding, affinity, initialization, nearest_neighbors

    k = near.rows.shape[1]
    lengths = np.sqrt((2 - 2 * near.similarities.astype(np.float64)).clip(0))
    index = nearest_neighbors.PrecomputedNeighbors(near.rows, lengths)
    alike = affinity.PerplexityBasedNN(
        perplexity=max(1.0, min(PERPLEXITY, k / 3)), knn_index=index, n_jobs=threads
    )
    embedding = TSNEEmbedding(
        initialization.rescale(start.astype(np.float64)), alike, random_state=seed, n_jobs=threads,
        negative_gradient_method="fft" if len(start) > 10_000 else "bh",
    )  # fmt: skip
    done = 0

    def told(step: int, *_: object) -> bool:
        progress(done + step, STEPS)
        return False

    for steps, settings in (
        (FIRST, {"exaggeration": 12, "momentum": 0.5}),
        (STEPS - FIRST, {"momentum": 0.8}),
    ):
        embedding.optimize(
            steps, inplace=True, callbacks=told, callbacks_every_iters=EVERY, n_jobs=threads, **settings
        )
        done += steps
    return np.asarray(embedding, dtype=np.float32)


def share_kept(points: Values, near: Rows, of: Rows) -> float:
    """Of the k nearest, `near` (n, k), of some rows `of` (n,), the share that is nearest on the map too."""
    k, plane = near.shape[1], torch.from_numpy(np.ascontiguousarray(points))
    kept = 0
    for rows, those in zip(torch.from_numpy(of).split(size := max(1, BLOCK // len(points))),
                           torch.from_numpy(near).split(size), strict=True):  # fmt: skip
        far = torch.cdist(plane[rows], plane)
        far[torch.arange(len(rows)), rows] = torch.inf
        found = far.topk(k, largest=False).indices
        kept += int((found[:, :, None] == those[:, None, :]).any(dim=1).sum())
    return kept / near.size
