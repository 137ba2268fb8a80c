"""Has it collapsed, does it learn, does more pay: what a run has measured, in words.

Everything follows from the run's lines of metrics and its plan, so that a report can ask again. The limits
lie between those of provoked failures and of healthy runs (docs/experiments/LOG.md).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from byol.train.plan import Plan, counted

State = Literal["learning", "slow", "too short", "collapsing", "collapsed", "diverging"]
Line = Mapping[str, Any]  # of metrics.jsonl
FEW = 50  # images; of fewer no accuracy is told
FEW_STEPS = 100  # with fewer nothing can be said of a recipe
SETTLING = 20  # steps, before which BatchNorm's running statistics are still largely those of nothing
SMALL_BATCH = 16  # images, whose BatchNorm statistics are mostly noise
COLLAPSED, COLLAPSING = 0.05, 0.25  # std; in healthy runs it rises to 0.5 and more
FEW_DIMENSIONS = 0.2  # effective rank of projections, over that at step 0
RUNAWAY = 0.15  # distance of the target from the online network, over its length; LARS may pass that ...
HALF = 0.5  # ... but keeps more than half of the representation's effective rank at step 0
CHANCE = 3.5  # loss; predictions that have nothing to do with the target's projections make it 4
ALIKE = 0.5  # share of views that are found by their raw pixels
CLOSER = 0.7  # of the closeness of views at step 0
FEW_EPOCHS = 10  # after fewer a run that learns has not seen its images often enough, whatever it has gained
STILL = 0.15  # share of what a run has gained, in its last third: then more steps pay
PARTS = ("representation", "projection")
SIGNS = ("std", "effective_rank", "alignment", "batch_alignment", "retrieval")
STEP = {"loss", "batch_std", "target_std", "target_distance"}
LOOK = {f"{part}_{sign}" for part in PARTS for sign in SIGNS} | {"views"}
OWN_VIEWS = "more steps, gentler views or more samples"  # where the views are the user's own
OTHERWISE = "more steps, gentler views (--views.crop-area 0.3 1), more images, or stock weights (timm:NAME)"


@dataclass(frozen=True)
class Verdict:
    """What became of a run."""

    state: State
    evidence: str  # what was measured
    remedy: str  # what to do next
    knn: str = ""  # what the labels of the hold-out set say, where there are some

    def __str__(self) -> str:
        return f"{self.state}: {self.evidence}. {self.remedy}"


def verdict_of(lines: Sequence[Line], plan: Plan) -> Verdict | None:
    """The verdict on a run that has come to its end; None when nothing was measured."""
    looks = looks_of(lines)
    if not looks:
        return None
    begin, end, late = looks[0], looks[-1], looks[(2 * len(looks) - 1) // 3]
    knn, better = by_labels(begin, end)
    if (found := trouble(lines)) is not None:
        return replace(found, knn=knn)
    found_now, found_late, found_first = (look["representation_retrieval"] for look in (end, late, begin))
    close, close_first = closeness(end), closeness(begin)
    one, several = ("a sample", "samples") if plan.own_views else ("an image", "images")
    evidence = f"two views of {one} lie {close:.2f} times as far apart as those of different {several}, "
    evidence += f"{close_first:.2f} at step {begin['step']:,}; {100 * found_now:.0f} % of {end['views']:,} "
    evidence += f"views find their partner among the others, {100 * found_first:.0f} % did at step "
    evidence += f"{begin['step']:,}"
    if plan.total_steps < FEW_STEPS:
        made = f"{counted(plan.total_steps, 'step')} of {plan.batch_size} {several}"
        short = f"only {made} {'was' if plan.total_steps == 1 else 'were'} made; {evidence}"
        length = "--epochs" if plan.own_views else "--epochs or --budget"
        more = f"Give more {length}, or a smaller --batch-size: a few hundred steps at least."
        for why, what in images_hinder(begin):
            short, more = f"{short}; {why}", f"{more} {what}"
        return Verdict("too short", short, more, knn)
    causes = list(hindrances(begin, plan))
    if risen(end) or close < CLOSER * close_first or (better and not causes):
        still = found_now - found_late > STILL * max(0.0, found_now - found_first)
        pays = "would still pay" if still else "would add little"
        why = f"{100 * found_late:.0f} % were found at step {late['step']:,}"
        if plan.epochs < FEW_EPOCHS:
            pays, why = "would still pay", f"each image was seen {plan.epochs:.1f} times"
        elif late is end:
            pays, why = "may pay or not", "it was looked at only once (--knn.times)"
        return Verdict("learning", evidence, f"More epochs {pays}: {why}.", knn)
    evidence = "; ".join([evidence, *(why for why, _ in causes)])
    return Verdict("slow", evidence, " ".join(what for _, what in causes) or f"Try {otherwise(begin)}.", knn)


def trouble(lines: Sequence[Line]) -> Verdict | None:
    """That a run has collapsed, diverges or is collapsing, by its lines so far; None when it is sound."""
    # A long run has many lines and asks at each: not all are gone through.
    begin, end = (next((line for line in part if is_look(line)), None) for part in (lines, reversed(lines)))
    if begin is None or end is None:
        return None
    if begin.get("images_distinct") == 1:
        what = "blank" if begin.get("images_blank") else "one and the same image"
        look = "Look at them: were they read from the right place, and as bright as they are (--data.white)?"
        return Verdict(
            "collapsed", f"all {begin.get('images', 0):,} images that were looked at are {what}", look
        )
    gentler = "Lower the rate (--optim.base-lr), give larger batches, or a --optim.base-tau nearer to 1."
    # Training passes tell of it long before the next look.
    steps = list(islice((line for line in reversed(lines) if line.keys() >= STEP), 3))  # the last first
    for part, sign in zip(PARTS, ("batch_std", "target_std"), strict=True):
        std, first = max((line[sign] for line in steps), default=1.0), begin[f"{part}_std"]
        if std < min(COLLAPSED, first / 4) and len(steps) == 3 and steps[2]["step"] >= SETTLING:
            last = f"the {part}s of the last batches have a std of at most {std:.2g}, {first:.2g} at step "
            return Verdict("collapsed", f"{last}{begin['step']:,}", gentler)
    if end["step"] < SETTLING:
        return None
    signs = {part: (end[f"{part}_std"], begin[f"{part}_std"]) for part in PARTS}
    words = {
        part: f"the {part}s of different images have a std of {std:.2g}, {first:.2g} at step "
        f"{begin['step']:,}, and an effective rank of {end[f'{part}_effective_rank']:.1f}"
        for part, (std, first) in signs.items()
    }
    for part, (std, first) in signs.items():
        if std < min(COLLAPSED, first / 4):
            return Verdict("collapsed", words[part], gentler)
    if risen(end) or by_labels(begin, end)[1]:
        return None
    kept, kept_first = (look["representation_effective_rank"] for look in (end, begin))
    far = len(steps) == 3 and min(line["target_distance"] for line in steps) > RUNAWAY
    if far and kept < HALF * kept_first:
        away = f"the online network is {steps[0]['target_distance']:.2f} of its length away from its target, "
        away += f"and the representation's effective rank fell from {kept_first:.1f} to {kept:.1f}"
        return Verdict("diverging", away, gentler)
    if len(steps) == 3 and end["step"] and min(line["loss"] for line in steps) > CHANCE:
        lost = f"the loss is {steps[0]['loss']:.2f}; predictions by chance have 4"
        return Verdict("diverging", lost, gentler)
    rank, rank_first = (look["projection_effective_rank"] for look in (end, begin))
    for part, (std, first) in signs.items():
        few = part == "projection" and rank < FEW_DIMENSIONS * rank_first
        if std < min(COLLAPSING, first / 2) or few:
            fell = f"{words[part]}, {rank_first:.1f} at step {begin['step']:,}"
            return Verdict("collapsing", fell if few else words[part], gentler)
    return None


def state_so_far(lines: Sequence[Line]) -> tuple[str, bool]:
    """What a run that goes on is up to, in a word, and whether that is trouble; "" where it is too early."""
    if (found := trouble(lines)) is not None:
        return found.state, True
    begin, end = (next((line for line in part if is_look(line)), None) for part in (lines, reversed(lines)))
    learning = begin is not None and end is not None and (risen(end) or by_labels(begin, end)[1])
    return ("learning" if learning else ""), False


def looks_of(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if is_look(line)]


def is_look(line: Line) -> bool:
    return line.keys() >= LOOK


def closeness(look: Line) -> float:
    """The squared distance of two views of an image, over that of views of different images."""
    near, far = (look[f"representation_{sign}"] for sign in ("alignment", "batch_alignment"))
    return float(near / max(far, 1e-12))


def risen(look: Line) -> bool:
    """Whether clearly more views find their partner than at step 0."""
    return bool(look.get("over_untrained_views_low", 0) > 0)


def hindrances(begin: Line, plan: Plan) -> Iterator[tuple[str, str]]:
    """What in the images, the views or the plan keeps a run from learning, and what to do about it."""
    yield from images_hinder(begin)
    if plan.micro_batch_size < SMALL_BATCH:
        few = f"batches of {plan.micro_batch_size} images, of which BatchNorm's statistics are mostly noise"
        yield few, "Give a larger --batch-size, 64 or more."


def images_hinder(begin: Line) -> Iterator[tuple[str, str]]:
    """What in the images or their views does, whatever the length of the run."""
    if (found := begin.get("pixels_retrieval", 0)) > ALIKE:
        alike = f"{100 * found:.0f} % find it by their raw pixels alone: the views are too alike"
        yield alike, "Let them differ more, above all in their crops (--views.crop-area 0.2 1)."
    if (distinct := begin.get("images_distinct", 0)) < (images := begin.get("images", 0)) / 2:
        yield f"only {distinct:,} of {images:,} images differ from one another", "Give more different images."


def by_labels(begin: Line, end: Line) -> tuple[str, bool]:
    """What kNN says of the run in a sentence, and whether it is clearly better than both rivals."""
    if not {"knn_top1", "knn_low", "knn_high", "knn_images"} <= end.keys():
        return "", False
    rivals = {"untrained": ("the untrained network", "knn_top1"), "pixels": ("raw pixels", "pixels_top1")}
    found: dict[str, list[str]] = {}
    for rival, (name, top1) in rivals.items():
        low, high = (end.get(f"over_{rival}_{side}") for side in ("low", "high"))
        if low is not None and high is not None and top1 in begin:
            how = (
                "clearly better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
            )
            found.setdefault(how, []).append(f"{name} ({100 * begin[top1]:.1f} %)")
    said = "; ".join(f"{how} {' and '.join(names)}" for how, names in found.items())
    better = list(found) == ["clearly better than"]
    score = accuracy(end)
    if not said or end["knn_images"] < FEW:
        return f"{score}.", False
    if better:
        return f"{score}: {said}.", True
    more = f", or to know more surely a larger --knn.hold-out-share than {end['knn_images']} images"
    return f"{score}: {said}. Try {otherwise(begin)}{more if 'worse than' not in found else ''}.", False


def otherwise(begin: Line) -> str:
    """What else to try; at step 0 the images themselves are looked at, but not samples of other kinds."""
    return OTHERWISE if "images" in begin else OWN_VIEWS


def accuracy(look: Line) -> str:
    """The kNN score of a look with its interval, in words; of a handful of images none is made."""
    images, top1 = look["knn_images"], look["knn_top1"]
    if images < FEW:
        return f"kNN right for {round(top1 * images)} of {images} images, too few for a score"
    low, high = (100 * look[f"knn_{side}"] for side in ("low", "high"))
    return f"kNN {100 * top1:.1f} % ({low:.0f} to {high:.0f}, {images:,} images)"
