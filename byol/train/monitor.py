"""How good the representation is while it trains: kNN on the hold-out set, and whether it collapses."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from byol.data.images import Images
from byol.data.pairs import TwoViews, set_random_states, viewed
from byol.data.samples import Samples, collated, leaves, on_device
from byol.data.workers import Poll, never
from byol.encoders.encoder import Encoder, device_of
from byol.errors import TrainingError
from byol.evaluation.inputs import Predictions
from byol.evaluation.knn import knn_predict
from byol.evaluation.metrics import interval
from byol.evaluation.online import OnlineProbe
from byol.evaluation.protocols import SIDE, pixels as raw_pixels
from byol.evaluation.score import Score, score_of
from byol.features.embed import Features, prepared_batches
from byol.method.byol import BYOL, Network, evaluating
from byol.method.draws import Stream, seed_of, uniforms
from byol.method.health import health, retrieved, settle, std
from byol.method.shared_norm import separate
from byol.models.whitening import HalfWhitening
from byol.train.config import KnnConfig
from byol.train.plan import BANK, HEALTH, Plan
from byol.world import autocast

VIEWED = 512  # images are looked for among the others' views
BYTES = 512 * 2**20  # of prepared images kept for scoring
Right = np.ndarray[Any, np.dtype[np.bool_]]  # (N,): which images got their own class
Sorted = TypeVar("Sorted", bound=Tensor | list[Any])
Inputs = Tensor | list[Any]  # uint8 (n, C, h, w), or samples of another kind
Labelled = tuple[Inputs, np.ndarray[Any, np.dtype[np.int64]]]


@dataclass
class Monitor:
    """Looks at an encoder several times in a run, at the same images: they are read once and kept prepared.

    Nothing of a look touches the weights, BatchNorm's statistics or, but for views of the user's own, random
    states, which a step sets anyhow.
    """

    learner: BYOL
    encoder: Encoder  # its online encoder
    images: Images | Samples
    rows: tuple[Tensor, Tensor]  # that are trained on, that are held out
    plan: Plan
    knn: KnnConfig
    bad: Callable[[str, str], None]  # is told the name of an unreadable image, and why
    probe: OnlineProbe | None = None
    views: TwoViews | None = None  # the user's own, of samples that are not images

    def __post_init__(self) -> None:
        self.scores: dict[str, Score] = {}  # the latest, when there are labels
        room = max(64, BYTES // max(1, self._size()))
        queries = sample(self.rows[1], room // 4, self.plan.seed)
        count = min(BANK if len(queries) or self.plan.whiten else HEALTH, room - len(queries))
        bank = sample(self.rows[0], count, self.plan.seed)
        self.scored = bank, queries
        self.kept: list[Labelled] = []  # of the bank and of the queries, once they are read
        self.classes: tuple[str, ...] = ()
        self.votes: dict[str, Any] = {"k": self.knn.k, "temperature": self.knn.temperature}

    def due(self, step: int) -> bool:
        """Whether to look after this step: `knn.times` in a run, the last step included."""
        return step % self.plan.look_every_steps == 0 or step == self.plan.total_steps

    def look(self, step: int, begin: Mapping[str, Any], poll: Poll = never) -> dict[str, Any]:
        """Metrics of now: signs of collapse, how many views find their partners, kNN with labels.

        `begin` is what was seen at step 0, which kNN is compared with. At step 0 the images themselves are
        looked at too, and their raw pixels. `poll` is called while images are read. Raises TrainingError when
        something is not finite.
        """
        self.kept = self.kept or [self._read(rows, poll) for rows in self.scored]
        (bank_pixels, bank_labels), (query_pixels, query_labels) = self.kept
        started, plan = time.perf_counter(), self.plan
        online, encoder = self.learner.online, self.encoder
        if step == 0:
            online = self._settled(spread_out(bank_pixels, VIEWED))
            encoder = Encoder(online.encoder, encoder.info)
        labelled = all(len(labels) and labels.min() >= 0 for labels in (bank_labels, query_labels))
        images = bank_pixels if labelled else spread_out(bank_pixels, HEALTH)
        bank = self._embed(encoder, images, anew=plan.whiten)
        check_finite("representation", step, bank)
        metrics: dict[str, Any] = {"step": step, "epoch": plan.epoch(step)}
        shown = spread_out(bank_pixels, VIEWED)
        views = self._views(online, shown, step)
        for name, both in views.items():
            metrics |= signs(name, step, *both)
        metrics["views"] = len(shown)
        found = retrieved(*views["representation"]).numpy()
        metrics |= over("untrained_views", found, begin) if step else {"untrained_views_right": packed(found)}
        metrics |= signs("representation", step, spread_out(bank, HEALTH))  # of whole images
        if step == 0 and isinstance(bank_pixels, Tensor):
            metrics |= contents(bank_pixels)
        if not labelled:
            return metrics
        queries = self._embed(encoder, query_pixels, anew=plan.whiten)
        alike = bank, queries
        if plan.whiten:  # as the encoder will be, once it is trained
            whitening = HalfWhitening.of(bank)
            alike = whitening(bank), whitening(queries)
        right = self._vote(*alike)
        seconds = time.perf_counter() - started
        score = self._score("knn", right, len(bank), seconds, self.votes)
        metrics |= {"knn_low": score.low, "knn_high": score.high, "knn_images": len(right)}
        if step == 0:
            metrics |= {"untrained_right": packed(right)}
            if self.views is None:
                raw = raw_pixels(self.encoder)
                by_pixels = self._vote(*(self._embed(raw, part) for part, _ in self.kept))
                metrics |= {"pixels_top1": float(by_pixels.mean()), "pixels_right": packed(by_pixels)}
        else:
            metrics |= over("untrained", right, begin) | over("pixels", right, begin)
        if self.probe is not None:
            correct = self.probe.correct(Features(queries.numpy(), query_labels))
            self._score("online", correct, plan.images, 0.0, {"optimizer": plan.optimizer})
        return metrics | {f"{name}_top1": score.top1 for name, score in self.scores.items()}

    def whitened(self) -> Encoder:
        """A copy of the encoder, a convnet's, that half-whitens its features, as fitted to the bank's."""
        self.kept = self.kept or [self._read(rows, never) for rows in self.scored]
        encoder = copy.deepcopy(self.encoder)
        net: Any = encoder.net
        pixels, device = self.kept[0][0], device_of(encoder)
        assert isinstance(pixels, Tensor)
        with unwhitened(encoder):
            rows = [encoder(part.to(device)).cpu() for part in pixels.split(500)]
        net.whitening = HalfWhitening.of(torch.cat(rows)).to(device)
        options = encoder.info.options | {"whiten": True}
        return Encoder(encoder.network, replace(encoder.info, options=options))

    def _settled(self, images: Inputs) -> Network:
        """The untrained network as training passes see it."""
        network = copy.deepcopy(self.learner.online)
        if self.views is None:
            network = network.to(memory_format=torch.channels_last)
        separate(network)  # the other processes do not look
        device = next(network.parameters()).device
        with autocast(device, self.plan.precision):
            settle(network, self.encoder.prepare(batch_of(images, device), normalised=True))
        return network

    def _vote(self, bank: Tensor, queries: Tensor) -> Right:
        """Which images of the hold-out set get their own class from the nearest of the bank."""
        (_, bank_labels), (_, query_labels) = self.kept
        predicted = knn_predict(bank, torch.from_numpy(bank_labels), queries, **self.votes).numpy()
        return np.asarray(predicted == query_labels)

    def _views(self, online: Network, images: Inputs, step: int) -> dict[str, tuple[Tensor, Tensor]]:
        """What two views of each image become, each time the same ones: by the name of what they become."""
        device = next(online.parameters()).device
        found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        with evaluating(online), torch.no_grad(), autocast(device, self.plan.precision):
            for number, part in enumerate(parts(images, 128)):
                for view, x in enumerate(self._two_views(part, number, device)):
                    representation = online.encoder(x)
                    made = {"representation": representation, "projection": online.projector(representation)}
                    if step == 0 and self.views is None:
                        made["pixels"] = adaptive_avg_pool2d(
                            x, (min(SIDE, x.shape[2]), min(SIDE, x.shape[3]))
                        )
                    for name, rows in made.items():
                        found.setdefault(name, ([], []))[view].append(rows.flatten(1).float().cpu())
        return {name: (torch.cat(first), torch.cat(second)) for name, (first, second) in found.items()}

    def _two_views(self, images: Inputs, number: int, device: torch.device) -> tuple[Any, Any]:
        """Of images or other samples, the part of them with this number."""
        seed = seed_of(self.plan.seed, Stream.RETRIEVAL)
        if isinstance(images, Tensor):
            assert self.learner.views is not None
            return self.learner.views(images.to(device), seed=seed, step=number)
        assert self.views is not None
        pairs = []
        for place, one in enumerate(images):
            set_random_states(seed_of(seed, number, place))
            pairs.append(viewed(one, self.views, str(place)))
        view1, view2 = (batch_of([pair[view] for pair in pairs], device) for view in (0, 1))
        return view1, view2

    def _score(self, name: str, correct: Any, train_images: int, seconds: float, settings: Any) -> Score:
        """Keep a score; `correct` tells of the hold-out set which classes were predicted right, bool (N,)."""
        labels, settings = self.kept[1][1], settings | {"images": "held out of training"}
        predicted = Predictions(np.where(correct, labels, -1)[:, None], labels, settings, train_images)
        known: dict[str, Any] = {"seeds": (self.plan.seed,), "seconds": seconds}
        self.scores[name] = score_of(name, [predicted], metric="top1", classes=len(self.classes), **known)
        return self.scores[name]

    def _embed(self, encoder: Encoder, images: Inputs, anew: bool = False) -> Tensor:
        """The features of images; those that are whitened `anew` as they are before that."""
        device = next(self.encoder.parameters()).device
        with autocast(device, self.plan.precision), unwhitened(encoder) if anew else nullcontext():
            return torch.cat([encoder(batch_of(part, device)).cpu() for part in parts(images, 500)])

    def _size(self) -> int:
        """Bytes of an image as it is kept, or of the first sample of another kind."""
        if isinstance(self.images, Images):
            return self.plan.channels * math.prod(self.plan.eval_size)
        return sum(getattr(leaf, "nbytes", 0) for leaf in leaves(self.images[0]))

    def _read(self, rows: Tensor, poll: Poll) -> Labelled:
        """Those of the images that can be read; of other samples all."""
        images = self.images.subset(rows)
        if isinstance(images, Samples):
            samples = []
            for row in range(len(images)):
                poll()
                samples.append(images[row])
            return samples, self._labels(images, len(images))
        pixels = [torch.empty((0, self.plan.channels, *self.plan.eval_size), dtype=torch.uint8)]
        kept: list[int] = []
        with closing(prepared_batches(images, self.encoder, self.plan.workers, poll=poll)) as batches:
            for prepared, (indices, bad) in batches if len(images) else ():
                for index, reason in bad:
                    self.bad(images.name(index), reason)
                pixels.append(prepared.mul(255).round_().to(torch.uint8))
                kept += indices
                images.release()  # what was read before is not needed as it was read
        return torch.cat(pixels), self._labels(images.subset(kept), len(kept))

    def _labels(self, images: Images | Samples, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        self.classes = max(self.classes, images.classes or (), key=len)
        return np.full(count, -1, dtype=np.int64) if images.labels is None else images.labels


@contextmanager
def unwhitened(encoder: Encoder) -> Iterator[None]:
    """Without the half-whitening that a convnet has from the weights that a run started from."""
    net: Any = encoder.net
    theirs, net.whitening = net.whitening, nn.Identity()
    try:
        yield
    finally:
        net.whitening = theirs


def sample(rows: Tensor, count: int, seed: int) -> Tensor:
    """At most `count` of the rows, drawn by the seed: evenly spread ones could all be of one class."""
    order = uniforms((seed, Stream.SCORED, rows), 1)[:, 0].argsort(stable=True)
    return rows[order[:count]].sort().values


@torch.no_grad()
def step_signs(learner: BYOL) -> dict[str, float]:
    """What the last training pass left behind tells of collapse. Waits for the device.

    `batch_std`, `prediction_std` and `target_std`: `std` of a batch's representations, predictions and the
    target's projections. `target_distance`: how far the target's parameters are from the online ones, over
    the length of these.
    """
    assert learner.outputs is not None
    representation, prediction, projection = learner.outputs
    online, target = (list[Tensor](network.parameters()) for network in (learner.online, learner.target))
    ways = torch._foreach_sub(target, online)
    way, length = (torch.stack(torch._foreach_norm(part)).norm() for part in (ways, online))
    distance = way / length.clamp_min(1e-12)
    stds = {"batch_std": representation, "prediction_std": prediction, "target_std": projection}
    signs = {name: std(rows) for name, rows in stds.items()} | {"target_distance": distance}
    return {name: float(value) for name, value in signs.items()}


def parts(inputs: Inputs, count: int) -> Iterator[Inputs]:
    """The inputs, at most `count` of them at a time."""
    for start in range(0, len(inputs), count):
        yield inputs[start : start + count]


def batch_of(inputs: Inputs, device: torch.device) -> Any:
    """Inputs as an encoder takes them, on a device."""
    return inputs.to(device) if isinstance(inputs, Tensor) else on_device(collated(inputs), device)


def spread_out(rows: Sorted, count: int) -> Sorted:
    """At most `count` of the rows, from all over: they are sorted, in a folder by class."""
    return rows[:: -(-len(rows) // count) or 1]  # type: ignore[return-value]  # a slice is of its kind


def check_finite(name: str, step: int, *rows: Tensor) -> None:
    """Raise TrainingError for rows that are not finite."""
    if not all(x.isfinite().all() for x in rows):
        which = f"After step {step} the {name} of some images is not finite"
        causes = "a learning rate that is too high, or BatchNorm statistics that overflowed"
        raise TrainingError(f"{which}. Usual causes: {causes}.")


def signs(name: str, step: int, rows: Tensor, others: Tensor | None = None) -> dict[str, float]:
    """The signs in rows (B, D) and their other views. Raises TrainingError where these are not finite."""
    check_finite(name, step, rows, *(() if others is None else (others,)))
    return {f"{name}_{sign}": float(value) for sign, value in health(rows, others).items()}


def contents(images: Tensor) -> dict[str, Any]:
    """How many of the images (N, C, H, W) differ from one another, and how many show more than one value."""
    flat = images.flatten(2)
    plain = (flat.amax(dim=2) == flat.amin(dim=2)).all(dim=1)
    distinct = len({image.numpy().tobytes() for image in images})
    return {"images": len(images), "images_distinct": distinct, "images_blank": int(plain.sum())}


def packed(right: Right) -> str:
    """Which ones were right, as hexadecimal."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> Right:
    """Which of so many images were right, as `packed` has them. Raises ValueError where it is of others."""
    bits = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    if len(bits) != -(-count // 8):
        raise ValueError(f"{8 * len(bits)} flags; expected {count}")
    return np.unpackbits(bits, count=count).astype(bool)


def over(rival: str, right: Right, begin: Mapping[str, Any]) -> dict[str, float]:
    """By how much more is right than at step 0, as an interval; nothing where that is lost or of others."""
    try:
        theirs = unpacked(begin[f"{rival}_right"], len(right))
    except (KeyError, TypeError, ValueError):  # lost or damaged
        return {}
    said = [np.where(side, 0, -1)[:, None] for side in (right, theirs)]
    low, high = interval("top1", said[:1], np.zeros(len(right), dtype=np.int64), against=said[1:])
    return {f"over_{rival}_low": low, f"over_{rival}_high": high}
