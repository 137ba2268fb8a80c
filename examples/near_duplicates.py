"""Find copies in a folder and list which files could go: of each group the largest file stays.

    python examples/near_duplicates.py ENCODER PHOTOS [--similarity 0.98] [--out remove.txt]

Nothing is deleted: look at the list, then `xargs -d '\\n' rm < remove.txt`, in the folder of the photographs.
"""

import argparse
from pathlib import Path

import byol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoder")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--similarity", type=float, default=0.98)
    parser.add_argument("--out", type=Path, default=Path("remove.txt"))
    args = parser.parse_args()

    features = byol.embed(byol.load_encoder(args.encoder), args.photos)
    groups = byol.near_duplicates(features, args.similarity)
    remove = []
    for group in groups:
        names = sorted(
            (features.names[row] for row in group), key=lambda name: (args.photos / name).stat().st_size
        )
        print(f"stays {names[-1]}, like {', '.join(names[:-1])}")
        remove += names[:-1]
    args.out.write_text("".join(f"{name}\n" for name in remove), encoding="utf-8")
    print(f"{len(groups)} groups; {len(remove)} of {len(features)} files are listed in {args.out}")


if __name__ == "__main__":
    main()
