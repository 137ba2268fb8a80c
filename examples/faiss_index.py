"""Neighbours among more features than memory holds: an index of faiss, IVF-PQ, of some bytes an image.

    pip install -r examples/requirements.txt
    byol embed ENCODER --data PHOTOS --out features/
    python examples/faiss_index.py features/ --out photos.index

The files of features are read block by block. In the end it tells how many of the true nearest neighbours the
index finds: alone, and among as many candidates as one could compare exactly.
"""

import argparse
from collections.abc import Iterator

import faiss
import numpy as np
from pyarrow.dataset import Dataset, Fragment, dataset

import byol

K, CANDIDATES, QUERIES = 10, 100, 200


def blocks(source: Dataset | Fragment) -> Iterator[np.ndarray]:
    """Rows (n, D) in their order, scaled to length 1, so that the inner product of two is their cosine."""
    for batch in source.to_batches(columns=["x"], batch_size=2**14):
        x = batch["x"].flatten().to_numpy().reshape(len(batch), -1).copy()
        faiss.normalize_L2(x)
        yield x


def sample(features: Dataset, wanted: int, draw: np.random.Generator) -> np.ndarray:
    """Some rows of up to 100 of the files."""
    files = list(features.get_fragments())
    chosen = [files[number] for number in draw.permutation(len(files))[:100]]
    share = wanted / sum(file.count_rows() for file in chosen)
    return np.concatenate([x[draw.random(len(x)) < share] for file in chosen for x in blocks(file)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("features", help="folder of parquet files, or one of them")
    parser.add_argument("--out", default="photos.index")
    parser.add_argument("--bytes", type=int, default=64, help="of an image in the index; divides the width")
    parser.add_argument("--lists", type=int, help="parts of the space; by default 4 roots of the rows")
    parser.add_argument("--probe", type=int, default=64, help="lists that are searched for a query")
    args = parser.parse_args()

    features, draw = dataset(args.features, format="parquet"), np.random.default_rng(0)
    count, width = features.count_rows(), features.schema.field("x").type.list_size
    lists = args.lists or int(4 * count**0.5)
    space = faiss.IndexFlatIP(width)  # finds the lists; 8 bits for each of so many parts of a row
    index = faiss.IndexIVFPQ(space, width, lists, args.bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(sample(features, max(64 * lists, 2**16), draw))
    for x in blocks(features):
        index.add(x)
    index.nprobe = args.probe
    faiss.write_index(index, args.out)
    held = index.code_size + 8  # and the number of the row
    print(f"{index.ntotal:,} rows of {4 * width:,} bytes in {lists} lists of {held} bytes a row: {args.out}")

    rows = np.sort(draw.permutation(count)[:QUERIES])
    query = np.concatenate(list(blocks(dataset(features.take(rows, columns=["x"])))))
    similar, true, first = np.zeros((len(rows), 0), np.float32), np.zeros((len(rows), 0), int), 0
    for x in blocks(features):  # the exact ones: the best of each block, and of these the best
        found = byol.search(x, query=query, k=min(K + 1, len(x)))
        similar, true = np.hstack([similar, found.similarities]), np.hstack([true, found.rows + first])
        best = np.argsort(-similar, axis=1)[:, : K + 1]
        similar, true = (np.take_along_axis(held, best, axis=1) for held in (similar, true))
        first += len(x)
    candidates = index.search(query, CANDIDATES + 1)[1]
    alone, among = 0, 0
    for row, exact, approximate in zip(rows, true, candidates, strict=True):
        neighbours = set(exact[exact != row][:K])  # a row is always its own nearest
        others = approximate[approximate != row]
        alone += len(neighbours & set(others[:K]))
        among += len(neighbours & set(others[:CANDIDATES]))
    share = 100 / (K * len(rows))
    print(f"of the true {K} nearest {share * alone:.1f} % are among its first {K}, "
          f"{share * among:.1f} % among its first {CANDIDATES}")  # fmt: skip


if __name__ == "__main__":
    main()
