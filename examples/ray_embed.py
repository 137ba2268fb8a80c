"""Features of many pictures by many workers, on one machine or on a cluster of Ray's.

    pip install -r examples/requirements.txt
    python examples/ray_embed.py ENCODER PHOTOS FEATURES/ [--workers 2] [--gpus 1]

Every worker reads the encoder once and then pictures by their names, so all machines need to see ENCODER and
PHOTOS. FEATURES gets parquet files with the columns name and x, like those of `byol embed`.
"""

import argparse
import os

import pyarrow as pa
import ray

import byol


class Embed:
    """What each worker keeps."""

    def __init__(self, encoder: str, photos: str) -> None:
        self.embedder = byol.Embedder(encoder).fit(None)
        self.images = byol.open_images(photos)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch["id"].to_pylist()
        x = self.embedder.transform(self.images.subset(rows))  # one that cannot be read ends it: `byol check`
        names = pa.array([self.images.name(row) for row in rows])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
        return pa.table({"name": names, "x": vectors})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoder")
    parser.add_argument("photos")
    parser.add_argument("features")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker; a part of one is allowed")
    args = parser.parse_args()

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    local = {"num_cpus": args.workers + 1, "include_dashboard": False}  # one more, to read and write
    ray.init(**({} if "RAY_ADDRESS" in os.environ else local))
    rows = ray.data.range(len(byol.open_images(args.photos)))
    features = rows.map_batches(
        Embed,
        fn_constructor_args=(os.path.abspath(args.encoder), os.path.abspath(args.photos)),
        batch_size=args.batch_size,
        batch_format="pyarrow",
        concurrency=args.workers,
        num_gpus=args.gpus,
    )
    features.write_parquet(os.path.abspath(args.features))


if __name__ == "__main__":
    main()
