"""An encoder as a step of a scikit-learn pipeline, and how good the whole is by cross-validation.

python examples/sklearn_pipeline.py ENCODER LABELLED_PHOTOS
"""

import sys

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import byol

encoder, photos = byol.load_encoder(sys.argv[1]), byol.open_images(sys.argv[2])

# Images in, classes out: fit it, save it, call predict with other images.
whole = make_pipeline(byol.Embedder(encoder), StandardScaler(), LogisticRegression(max_iter=1000))
whole.fit(photos, photos.labels)
print("first image:", photos.classes[whole.predict(photos[:1])[0]])

# Where images are asked for again and again, as in a cross-validation, embed them once.
features = whole[0].transform(photos)
scores = cross_val_score(whole[1:], features, photos.labels, cv=5)
print(f"accuracy {scores.mean():.3f}, from {scores.min():.3f} to {scores.max():.3f} in 5 parts")
