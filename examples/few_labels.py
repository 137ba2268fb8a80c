"""Pick what to label, label it, and let a classifier label the rest.

    python examples/few_labels.py ENCODER PHOTOS [--labels 20] [--out labels.csv]

PHOTOS has a folder for each class. They stand for the person who labels: only the labels of the pictures that
were picked are read, the others tell in the end how many of the predictions are right.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import byol


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("encoder")
    parser.add_argument("photos")
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("labels.csv"))
    args = parser.parse_args()

    features = byol.embed(byol.load_encoder(args.encoder), args.photos)
    picked = byol.pick(features, args.labels)  # far from one another: no two alike
    print("label these:", ", ".join(features.names[row] for row in picked[:5]), "...")

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features.x[picked], features.y[picked])
    chances = model.predict_proba(features.x)
    predicted = model.classes_[chances.argmax(axis=1)]
    with args.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "probability"))
        for name, label, chance in zip(features.names, predicted, chances.max(axis=1), strict=True):
            table.writerow((name, features.classes[label], f"{chance:.3f}"))

    rest = np.setdiff1d(np.arange(len(features)), picked)
    right = (predicted[rest] == features.y[rest]).mean()
    print(
        f"{100 * right:.1f} % of the other {len(rest)} are right, with {len(picked)} labels; see {args.out}"
    )


if __name__ == "__main__":
    main()
