"""The model card of an exported encoder: what it is, how to load it, how it was trained, how good it is."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from byol.disk import read_json
from byol.encoders.encoder import PLAN, Encoder
from byol.errors import CheckpointError
from byol.evaluation.score import SCORES, read_scores
from byol.evaluation.tables import TITLES, in_words

TIMM = """```python
import timm

# or "hf-hub:USER/NAME"
encoder = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=encoder))
features = encoder(transform(image)[None])  # a Pillow image gives (1, {features})
```"""

OWN = """```python
import byol

encoder = byol.load_encoder("PATH/OF/THIS/FOLDER"{net})
features = encoder(images)  # (B, {channels}, H, W) uint8, or float in [0, 1], of any size: (B, {features})
```"""

STARTED = "started from"
HEAD = ("protocol", "metric", "%", "95 % interval", "classes", "labelled images", "test images", "settings")


def card(encoder: Encoder, run: Path | None, timm_model: str | None) -> str:
    """README.md of a folder that timm loads as `timm_model`, or byol when that is None.

    That an encoder was trained with BYOL is said only of one whose folder `run` holds the plan of its run.
    """
    info = encoder.info
    training = training_table(run) if run else ""
    scores = score_table(encoder, run) if run else ""
    name = timm_model or info.architecture or "a network of its author's own"
    net = "" if info.architecture else ", net=the_same_network"
    code = (TIMM if timm_model else OWN).format(features=info.features, channels=info.channels, net=net)
    tags = ["image-feature-extraction", *(["self-supervised-learning", "byol"] if training else [])]
    paper = "Bootstrap Your Own Latent ([Grill et al. 2020](https://arxiv.org/abs/2006.07733))"
    how = " from other weights" if STARTED in training else ""  # which may have seen labels
    trained = f" trained{how} without labels by {paper}" if training else ""
    height, width = info.image_size
    preprocessing = {
        "channels": info.channels,
        "size": f"{height} x {width} pixels",
        "crop": f"central square of {info.crop_ratio:g} of the shorter side, then resized",
        "interpolation": f"{info.interpolation}, {'antialiased' if info.antialias else 'not antialiased'}",
        "mean": ", ".join(f"{value:g}" for value in info.mean),
        "std": ", ".join(f"{value:g}" for value in info.std),
    }
    if info.levels is not None:
        black, white = info.levels
        preprocessing["samples of more than 8 bits"] = f"{black:g} is 0, {white:g} is 1"
    parts = [
        f"---\nlibrary_name: {'timm' if timm_model else 'byol'}\npipeline_tag: image-feature-extraction\n"
        "tags:\n" + "".join(f"- {tag}\n" for tag in tags) + "---",
        f"# {plain(name)}{', trained with BYOL' if training else ''}",
        f"An image encoder{trained}. It turns an image into {info.features:,}-dimensional features.",
        f"## How to load\n\n{code}",
        f"## Preprocessing\n\n{table(('what', 'value'), preprocessing.items())}",
        "Mean and std are of pixels in [0, 1]. Images that have this size already are best taken whole, "
        "without the crop.",
    ]
    if training:
        license = "Which images these were, and under which licence, is for the author to add here."
        parts += [f"## How it was trained\n\n{training}", license]
    if scores:
        parts.append(f"## Scores\n\n{scores}")
    return "\n\n".join(parts) + "\n"


def training_table(run: Path) -> str:
    """How the encoder was trained, from the run's plan; empty when there is none."""
    path = run / PLAN
    if not os.path.exists(path):
        return ""
    try:
        plan = read_json(path)["plan"]
        options = (f"{name}={value}" for name, value in plan["encoder_options"].items())
        rows = {
            "encoder": " ".join([plan["encoder"], *options]),
            "images": f"{plan['images']:,}, without labels",
            "views": " x ".join(str(side) for side in plan["image_size"]) + " pixels",
            "epochs": f"{plan['epochs']:g} ({plan['total_steps']:,} steps of {plan['batch_size']:,} images)",
        }
        for name in ("optimizer", "lr", "weight_decay", "base_tau", "precision", "seed"):
            rows[name.replace("_", " ")] = plan[name]
        if init := plan.get("init"):  # not its path, which is nobody else's business
            name = init["info"]["architecture"] or "network of its author's own"
            rows[STARTED] = f"weights of a {name}, checksum {init['checksum']}"
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(f"{path} is not a run's plan ({failure}). Restore or remove it.") from failure
    return table(("what", "value"), rows.items())


def score_table(encoder: Encoder, run: Path) -> str:
    """What training and `byol evaluate` found of this very encoder, the newest of equals; empty when nothing.

    A run's file holds the scores of baselines too, and a folder may be that of several encoders.
    """
    path = run / SCORES
    own = encoder.checksum(), "" if os.path.exists(run / PLAN) else None
    rows = {}
    for score in read_scores(path) if os.path.exists(path) else ():
        if score.encoder_checksum in own and score.overlap < score.test_images:
            counts = (score.classes, score.train_images, score.test_images)
            name, settings = (score.data_set, score.protocol, TITLES[score.metric]), in_words(score.settings)
            rows[name, settings, score.train, score.test, counts] = (
                *name,
                f"{100 * score.value:.1f}",
                f"{100 * score.low:.1f} to {100 * score.high:.1f}",
                *(f"{count:,}" for count in counts),
                settings,
            )
    if any(row[0] for row in rows.values()):
        return table(("data set", *HEAD), rows.values())
    return table(HEAD, [row[1:] for row in rows.values()]) if rows else ""


def table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    """A Markdown table of plain text."""
    lines = [head, ("---",) * len(head), *((plain(str(cell)) for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no link, HTML, table cell or escape comes of a chosen name."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([!\"#$&'*+:;<=>?@\[\\\]^_`{|}~]|(?<!\d)\.|\.(?!\d))", r"\\\1", line)
