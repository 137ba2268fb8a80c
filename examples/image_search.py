"""Which pictures of a folder are like this one?

    python examples/image_search.py ENCODER PHOTOS QUERY.jpg [--k 9]

ENCODER is the folder of a run, an encoder file, or torchvision:NAME with weights that are there already.
The features are kept in the folder `features-kept`, so that the second question costs next to nothing.
"""

import argparse

import byol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoder")
    parser.add_argument("photos")
    parser.add_argument("query")
    parser.add_argument("--k", type=int, default=9)
    args = parser.parse_args()

    encoder = byol.load_encoder(args.encoder)
    features = byol.embed(encoder, args.photos, store="features-kept")
    query = byol.embed(encoder, byol.open_images([args.query]))
    found = byol.search(features, query=query.x, k=args.k)
    for row, similarity in zip(found.rows[0], found.similarities[0], strict=True):
        print(f"{similarity:.3f}  {features.names[row]}")


if __name__ == "__main__":
    main()
