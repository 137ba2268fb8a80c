"""Damaged and hostile files, made at random from good ones: `python tests/hostile/fuzz.py --count 200`.

Every file that the program reads is changed in many ways and read again, each time in a process of its own.
Whatever the file says, the answer must be a result or one sentence (a ByolError): never a traceback, another
program run, a network connection, more than 500 MB of memory beyond the file's own size, or 20 seconds of
computing.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import byol
from byol import cli
from byol.data.readers.archive_index import SUFFIX as INDEX
from byol.encoders.encoder import digest
from byol.errors import ByolError
from byol.evaluation.data_sets import read_data_sets
from byol.evaluation.score import read_scores

SERVER = get_context("forkserver")  # starts processes that hold no more than what is imported
SERVER.set_forkserver_preload(["byol.commands.train", "byol.evaluation.knn", "pyarrow.parquet"])
MEMORY, SECONDS = 500 * 2**20, 20.0
BUSY = 10  # times as long may be waited where other programs compute too
GOLDEN = Path(__file__).parent.parent / "golden"
RUN = ["--image-size=16", "--batch-size=8", "--epochs=2", "--precision=fp32", "--device=cpu", "--workers=0"]
RUN += ["--model.width=2", "--model.projection-size=8", "--model.projection-hidden-size=8"]
RUN += ["--log-every-steps=1", "--save-every-steps=2"]


@dataclass(frozen=True)
class Kind:
    """A kind of file: the good one, how it is changed beyond plain bytes, and what reads it."""

    make: Callable[[Path], Path]  # writes good files into a folder; returns the one to be changed
    read: Callable[[Path], object]  # the changed file
    text: bool = False  # JSON, YAML or lines: words and numbers are exchanged too
    seal: Callable[[Path], None] | None = None  # makes the checksums right again, so that the content is read


def pictures(count: int = 12, side: int = 20) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, side, side, 3)).astype(np.uint8)
    return [Image.fromarray(one) for one in pixels]


def picture_file(suffix: str, **how: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pictures(1, 64)[0].save(folder / f"a{suffix}", **how)
        return folder / f"a{suffix}"

    return make


def read_picture(path: Path) -> None:
    images = byol.open_images(path.parent)
    for index in range(len(images)):
        with suppress(byol.BadImage):
            images.array(index)


def read_images(path: Path) -> None:
    images = byol.open_images(path)
    assert images.labels is None or len(images.labels) == len(images)
    repr(images)
    for index in range(min(len(images), 4)):
        with suppress(byol.BadImage):
            images.array(index)
    images.fingerprint()


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def make_parquet(folder: Path) -> Path:
    held = [{"bytes": encoded(one), "path": f"{number}.png"} for number, one in enumerate(pictures())]
    table = pa.table({"image": held, "label": [number % 3 for number in range(12)]})
    pq.write_table(table, folder / "a.parquet", row_group_size=5)
    return folder / "a.parquet"


def make_npz(folder: Path) -> Path:
    images = np.stack([np.asarray(one) for one in pictures()])
    np.savez(folder / "a.npz", images=images, labels=np.arange(12) % 3)
    return folder / "a.npz"


def make_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.stack([np.asarray(one) for one in pictures()]))
    return folder / "a.npy"


def make_index(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, one in enumerate(pictures(4)):
            for suffix, data in (("png", encoded(one)), ("cls", b"ab"[number % 2 :][:1])):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    byol.open_images(folder / "a.tar")
    return folder / f"a.tar{INDEX}"


def read_indexed(path: Path) -> None:
    read_images(path.with_suffix(""))


def seal_index(path: Path) -> None:
    content = path.read_bytes()[:-16]
    path.write_bytes(content + blake2b(content, digest_size=16).digest())


def make_list(folder: Path) -> Path:
    for number, one in enumerate(pictures(4)):
        one.save(folder / f"{number}.png")
    (folder / "a.txt").write_text("".join(f"{number}.png\n" for number in range(4)))
    return folder / "a.txt"


def make_table(folder: Path) -> Path:
    make_list(folder)
    (folder / "a.csv").write_text("path,label\n0.png,cat\n1.png,dog\n2.png,cat|dog\n3.png,dog\n3.png,owl\n")
    return folder / "a.csv"


def features_file(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        x = np.random.default_rng(0).random((12, 5), dtype=np.float32)
        names = tuple(f"{number}.png" for number in range(12))
        byol.Features(x=x, y=np.arange(12) % 3, names=names, classes=("a", "b", "c")).save(
            folder / f"f{suffix}"
        )
        return folder / f"f{suffix}"

    return make


def read_features(path: Path) -> None:
    features = byol.Features.load(path)
    repr(features)
    byol.near_duplicates(features)


def make_run(folder: Path) -> Path:
    """A run that stopped in its middle, with good checkpoints, beside its images."""
    (folder / "images").mkdir()
    for number, one in enumerate(pictures(24)):
        (folder / "images" / "ab"[number % 2]).mkdir(exist_ok=True)
        one.save(folder / "images" / "ab"[number % 2] / f"{number}.png")
    train(folder)
    run = folder / "run"
    (run / "encoder.safetensors").unlink()
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    return run


def of_a_run(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        run = make_run(folder)
        return max(run.glob(name))

    return make


def make_bad_files(folder: Path) -> Path:
    run = make_run(folder)
    reason = {"reason": "empty"}
    lines = [json.dumps({"name": f"{number}.png"} | reason) + "\n" for number in range(3)]
    (run / "bad_files.jsonl").write_text("".join(lines))
    return run / "bad_files.jsonl"


def train(folder: Path) -> None:
    run_command("train", str(folder / "images"), "--out", str(folder / "run"), *RUN)


def run_command(*words: str) -> None:
    """A command as a person types it. Raises ByolError with what it said when it refuses."""
    said, sys.stderr = sys.stderr, io.StringIO()
    try:
        code = cli.main(words)
        text = sys.stderr.getvalue()
    finally:
        sys.stderr = said
    assert "this is a bug" not in text, text
    if code:
        raise ByolError(text)


def go_on(path: Path) -> None:
    """Continue the run that the file belongs to."""
    train(next(parent for parent in path.parents if (parent / "run").exists()))


def of_a_report(name: str) -> Callable[[Path], Path]:
    """A file of a run that has ended and was evaluated. Its images are gone: they take a report longest."""

    def make(folder: Path) -> Path:
        run = make_run(folder)
        train(folder)
        how = ["--test", "0.5", "--protocols", "knn", "--no-baselines", "--no-cache"]
        run_command("evaluate", str(run), "--train", str(folder / "images"), *how)
        shutil.rmtree(folder / "images")
        assert (run / name).exists()
        return run / name

    return make


def report(path: Path) -> None:
    """As of a run that somebody else has made."""
    run_command("report", str(path.parent), "--out", str(path.parent.parent / "report.html"))


def make_encoder(folder: Path) -> Path:
    run = make_run(folder)
    train(folder)
    shutil.copy(run / "encoder.safetensors", folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def read_encoder(path: Path) -> None:
    encoder = byol.load_encoder(path)
    size = encoder.info.image_size
    if max(size) <= 64 and encoder.info.channels <= 8:
        encoder(torch.zeros(2, encoder.info.channels, *size))


def seal_encoder(path: Path) -> None:
    """Put the right checksum on whatever the header says now, so that the header's own words are believed."""
    with safe_open(path, "pt") as file:
        tensors, held = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for key, text in held.items():
        description = json.loads(text)
        description.pop("blake2b")
        held[key] = json.dumps(description | {"blake2b": digest(tensors, description)})
    save_file(tensors, path, held)


def make_classifier(protocol: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        encoder, path = byol.load_encoder(make_encoder(folder)), folder / "c.safetensors"
        train = byol.open_images([np.asarray(one) for one in pictures()], labels=["ant", "bee", "cat"] * 4)
        byol.evaluate(encoder, train=train, test=0.5, protocols=protocol, save_classifier=path)
        return path

    return make


def read_classifier(path: Path) -> None:
    classifier = byol.load_classifier(path)
    info = classifier.encoder.info
    if max(info.image_size) <= 64 and info.channels <= 8:
        images = np.zeros((2, *info.image_size, info.channels), dtype=np.uint8)
        classifier.predict(images).save(path.parent / "labels.csv", every_class=True)


def seal_plan(path: Path) -> None:
    stored = json.loads(path.read_text())
    stored.pop("blake2b", None)
    path.write_text(json.dumps(stored | {"blake2b": digest({}, stored)}))


def make_pth(folder: Path) -> Path:
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=2)
    torch.save({"state_dict": network.state_dict(), "epoch": 3, "arch": "resnet18"}, folder / "a.pth")
    return folder / "a.pth"


def convert(path: Path) -> None:
    run_command("convert", str(path), "--out", str(path.parent / "out"))


def make_official(folder: Path) -> Path:
    with tarfile.open(GOLDEN / "official_checkpoints.tar.xz") as archive:
        archive.extract("official_tiny.pkl", folder, filter="data")
    return folder / "official_tiny.pkl"


def make_preset(folder: Path) -> Path:
    path = folder / "a.yaml"
    path.write_text("encoder: convnet\nepochs: 2\nmodel:\n  width: 2\noptim: {name: lars, base_lr: 0.3}\n")
    return path


def read_preset(path: Path) -> None:
    from byol.settings import preset_flags

    preset_flags(str(path))


def make_data_sets(folder: Path) -> Path:
    path = folder / "sets.yaml"
    path.write_text("pets: {train: a, test: b, metric: top1}\nflowers:\n  train: c\n  test: d\n")
    return path


def make_scores(folder: Path) -> Path:
    from byol.evaluation.score import Score, write_scores

    score = Score(
        "knn", "top1", 0.5, 0.4, 0.6, None, 0.5, 0.9, {"k": 20}, 100, 50, 10, (0,), 1.5, "runs/a", "00ff"
    )
    write_scores({"knn": score}, folder / "scores.jsonl")
    return folder / "scores.jsonl"


KINDS = {
    "a JPEG": Kind(picture_file(".jpg"), read_picture),
    "a progressive JPEG": Kind(picture_file(".jpg", progressive=True), read_picture),
    "a PNG": Kind(picture_file(".png"), read_picture),
    "a GIF": Kind(picture_file(".gif"), read_picture),
    "a WebP": Kind(picture_file(".webp"), read_picture),
    "a TIFF": Kind(picture_file(".tiff"), read_picture),
    "a BMP": Kind(picture_file(".bmp"), read_picture),
    "images in parquet": Kind(make_parquet, read_images),
    "images in .npz": Kind(make_npz, read_images),
    "images in .npy": Kind(make_npy, read_images),
    "an archive's index": Kind(make_index, read_indexed),
    "an archive's index with a right checksum": Kind(make_index, read_indexed, text=True, seal=seal_index),
    "a list of paths": Kind(make_list, read_images, text=True),
    "a table of labels": Kind(make_table, read_images, text=True),
    "features in .npz": Kind(features_file(".npz"), read_features),
    "features in .npy": Kind(features_file(".npy"), read_features),
    "features in .safetensors": Kind(features_file(".safetensors"), read_features),
    "features in .parquet": Kind(features_file(".parquet"), read_features),
    "an encoder": Kind(make_encoder, read_encoder),
    "an encoder with a right checksum": Kind(make_encoder, read_encoder, text=True, seal=seal_encoder),
    "a linear classifier": Kind(make_classifier("linear"), read_classifier),
    "a linear classifier with a right checksum": Kind(
        make_classifier("linear"), read_classifier, text=True, seal=seal_encoder
    ),
    "a kNN classifier with a right checksum": Kind(
        make_classifier("knn"), read_classifier, text=True, seal=seal_encoder
    ),
    "another program's checkpoint": Kind(make_pth, convert),
    "an official checkpoint": Kind(make_official, byol.official_state),
    "a checkpoint's tensors": Kind(of_a_run("checkpoints/step-*/state.safetensors"), go_on),
    "a checkpoint's manifest": Kind(of_a_run("checkpoints/step-*/manifest.json"), go_on, text=True),
    "a plan": Kind(of_a_run("plan.json"), go_on, text=True),
    "a plan with a right checksum": Kind(of_a_run("plan.json"), go_on, text=True, seal=seal_plan),
    "a run's metrics": Kind(of_a_run("metrics.jsonl"), go_on, text=True),
    "a run's time": Kind(of_a_run("time.json"), go_on, text=True),
    "a run's unreadable images": Kind(make_bad_files, go_on, text=True),
    "a reported plan": Kind(of_a_report("plan.json"), report, text=True, seal=seal_plan),
    "reported metrics": Kind(of_a_report("metrics.jsonl"), report, text=True),
    "a reported time": Kind(of_a_report("time.json"), report, text=True),
    "reported scores": Kind(of_a_report("scores.jsonl"), report, text=True),
    "reported mistakes": Kind(of_a_report("confusions.jsonl"), report, text=True),
    "reported hardware": Kind(of_a_report("env.json"), report, text=True),
    "a preset": Kind(make_preset, read_preset, text=True),
    "a list of data sets": Kind(make_data_sets, read_data_sets, text=True),
    "scores": Kind(make_scores, read_scores, text=True),
}

EXTREMES = [b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\xca\x9a\x3b", b"\x80" * 8]
WORDS = [
    "1e308",
    "-1",
    "0",
    "10000000",
    "99999999999999999999",
    "NaN",
    "-Infinity",
    "null",
    "true",
    "[]",
    "{}",
]
WORDS += ['""', '"\\u001b[31m"', '"os:system"', "[" * 4000, '{"a":' * 4000, '"' + "x" * 10_000 + '"']
WORDS += [
    "../../etc/passwd",
    "!!python/object/apply:os.system [touch canary]",
    "&a [*a, *a]",
    "1.5",
    '"\\ud800"',
]


def changed(data: bytes, chance: random.Random, text: bool) -> bytes:
    """The bytes with one to four changes."""
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        if text and chance.random() < 0.8:
            data = with_another_word(data, chance)
            continue
        at = chance.randrange(len(data) + 1)
        # Headers say how large everything else is: half of the changes go there.
        at = chance.choice((at, chance.randrange(min(len(data), 256) + 1)))
        length = min(chance.choice((1, 2, 4, 64, 1024)), len(data) - at)
        way = chance.randrange(7)
        if way == 0 and data[at:]:  # a bit
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif way == 1:  # the end is missing
            data = data[:at]
        elif way == 2:  # a piece is missing
            data = data[:at] + data[at + length :]
        elif way == 3:  # a piece comes twice
            data = data[:at] + data[at : at + length] * 2 + data[at + length :]
        elif way == 4:  # a number becomes extreme
            other = chance.choice(EXTREMES)
            data = data[:at] + other + data[at + len(other) :]
        elif way == 5:  # noise
            data = data[:at] + chance.randbytes(length) + data[at + length :]
        else:  # a digit becomes another: sizes in a header of text
            places = [match.start() for match in re.finditer(rb"\d", data[:4096])] or [0]
            at = chance.choice(places)
            data = data[:at] + chance.choice((b"9", b"0", b"99999", b"-1", b"")) + data[at + 1 :]
    return data


def with_another_word(data: bytes, chance: random.Random) -> bytes:
    """Text in which a number or word is exchanged or goes."""
    places = [match.span() for match in re.finditer(rb'"[^"\n]*"|-?\d[\d.e+-]*|[a-z_]+', data)] or [(0, 0)]
    start, end = chance.choice(places)
    return data[:start] + chance.choice([*WORDS, ""]).encode() + data[end:]


def described(path: Path) -> tuple[int, int]:
    """Where the header's description of an encoder file begins and ends: the text that is changed."""
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return 8, 8 + length


def attempt(kind: Kind, good: Path, folder: Path, seed: int | None) -> str:
    """Change a copy of the good files by a seed and read it, in a process of its own. "" or what went wrong.

    Without a seed it is left as it is, and a sentence that refuses it is wrong too.
    """
    copy = folder / "try"
    shutil.copytree(good, copy)
    relative = (good / "target").read_text()
    chance = random.Random(seed)
    path = copy / relative
    before = path.read_bytes()
    if seed is None:
        after = before
    elif kind.seal and before[8:9] == b"{":  # safetensors: its header only, with the right length
        start, end = described(path)
        header = changed_description(before[start:end], chance)
        after = len(header).to_bytes(8, "little") + header + before[end:]
    else:
        after = changed(before, chance, kind.text)
    path.write_bytes(after)
    allowed = MEMORY + max(len(before), len(after))
    receive, send = SERVER.Pipe(duplex=False)
    read = (kind.read, kind.seal, copy, Path(relative), before)
    child = SERVER.Process(target=in_the_child, args=(send, *read, allowed, seed is not None))
    child.start()
    send.close()
    deadline = time.monotonic() + BUSY * SECONDS
    while not (done := receive.poll(0.005)) and computed(child) < SECONDS and time.monotonic() < deadline:
        pass
    if not done:
        child.kill()
    child.join()
    said = f"not done after {SECONDS:g} s of computing, or {BUSY * SECONDS:g} s"
    if done:
        try:
            said = receive.recv()
        except EOFError:
            said = f"ended with {child.exitcode}"
    receive.close()
    if (copy / "canary").exists():
        said = "code ran"
    shutil.rmtree(copy)
    return said


def changed_description(header: bytes, chance: random.Random) -> bytes:
    """A safetensors header whose description, JSON inside of JSON, has another word."""
    whole = json.loads(header)
    key, text = next(iter(whole["__metadata__"].items()))
    whole["__metadata__"][key] = with_another_word(text.encode(), chance).decode(errors="replace")
    return json.dumps(whole).encode()


def computed(child: BaseProcess) -> float:
    """Seconds that a process has computed; 0 when it has ended."""
    try:
        parts = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, parts[11:13])) / os.sysconf("SC_CLK_TCK")


def memory(what: str) -> int:
    """VmRSS: what this process has in memory, VmHWM: the most it had; in bytes."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def in_the_child(
    answer: Connection,
    read: Callable[[Path], object],
    seal: Callable[[Path], None] | None,
    folder: Path,
    file: Path,
    before: bytes,
    allowed: int,
    refusal: bool,
) -> None:
    """Answer what reading a file in a folder ends in, or how much memory it takes beyond what is allowed."""
    os.chdir(folder)
    size, base = (folder / file).stat().st_size, memory("VmRSS")
    said = outcome_of(read, seal, folder / file, before, refusal)
    grown = memory("VmHWM") - base
    if not said and grown > allowed:
        said = f"took {grown / 2**20:.0f} MB for a file of {size / 2**20:.1f} MB"
    answer.send(said[-60_000:])
    os._exit(0)


def outcome_of(
    read: Callable[[Path], object],
    seal: Callable[[Path], None] | None,
    path: Path,
    before: bytes,
    refusal: bool,
) -> str:
    """Read the file. Returns "" for a result or, with `refusal`, for a sentence; else what went wrong."""
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    torch.set_num_threads(1)
    caught = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
            caught.append(f"{event} {arguments!r:.200}")

    sys.addaudithook(watch)
    if seal:
        try:
            seal(path)
        except Exception:  # so damaged that it cannot be sealed; the unsealed kind covers that
            path.write_bytes(before)
    try:
        read(path)
    except ByolError:
        if not refusal:
            return traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    return "\n".join(caught)


def prepared(name: str, folder: Path) -> Path:
    """The good files of a kind, made in a process of its own, so that this one starts no threads."""
    good = folder / "good"
    good.mkdir()
    child = os.fork()
    if not child:
        try:
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 2)
            torch.set_num_threads(1)
            path = KINDS[name].make(good)
            (good / "target").write_text(str(path.relative_to(good)))
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, f"the good files of {name!r} could not be made"
    return good


def tried(name: str, seeds: range) -> dict[int | None, str]:
    """What went wrong with a kind, by seed."""
    with tempfile.TemporaryDirectory(prefix="byol-fuzz-") as place:
        good = prepared(name, Path(place))
        found = {seed: attempt(KINDS[name], good, Path(place), seed) for seed in (None, *seeds)}
    return {seed: said for seed, said in found.items() if said}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="changes for each kind of file")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", default="", help="kinds whose name holds this word")
    options = parser.parse_args()
    failures: Counter[str] = Counter()
    for name in KINDS:
        if options.only not in name:
            continue
        began = time.monotonic()
        found = tried(name, range(options.first, options.first + options.count))
        print(
            f"{name}: {options.count} tried, {len(found)} wrong, {time.monotonic() - began:.0f} s", flush=True
        )
        for seed, said in found.items():
            print(f"  seed {seed}: {said.strip().splitlines()[-1]}")
            failures[said] += 1
    for said, count in failures.most_common():
        print(f"\n{count} times:\n{said}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
