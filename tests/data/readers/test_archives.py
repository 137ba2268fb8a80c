"""Tar and zip files as other programs write them, read back and compared; and hostile ones."""

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pictures import encoded, photo

from byol.data.decode import BadImage
from byol.data.images import Images, open_images
from byol.data.readers import archive_index, archives
from byol.errors import ByolError, DataError

KINDS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
PHOTOS = [encoded(photo(12, 16, seed)) for seed in range(12)]


def write_tar(path: Path, members: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def shard(path: Path, seeds: range, **others: bytes) -> Path:
    """Samples of the WebDataset layout, labelled with their seed modulo 3."""
    members: dict[str, bytes] = {}
    for seed in seeds:
        members[f"{seed:06}.png"] = PHOTOS[seed]
        members[f"{seed:06}.cls"] = str(seed % 3).encode()
        members[f"{seed:06}.json"] = b'{"caption": "a"}'
    return write_tar(path, members | others)


def raw(images: Images) -> list[bytes]:
    return [images.reader.read(row) for row in images.rows.tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_every_dialect_are_those_that_tarfile_reads(tmp_path: Path, kind: str) -> None:
    names = ["a.png", "deep/er/b.png", f"{'long/' * 30}c.png" if kind != "ustar" else f"{'l/' * 60}c.png"]
    names += [f"{'x' * 140}.png", "ünïcode.png", "./d.PNG"] if kind != "ustar" else []
    path = write_tar(tmp_path / "a.tar", dict(zip(names, PHOTOS, strict=False)), KINDS[kind])
    images = open_images(path)
    with tarfile.open(path) as file:
        expected = [file.extractfile(one).read() for one in file if one.isfile()]  # type: ignore[union-attr]
        named = [one.name.removeprefix("./") for one in file]
    assert raw(images) == expected
    assert [images.name(row) for row in range(len(images))] == [f"a.tar:{name}" for name in named]


@pytest.mark.skipif(shutil.which("tar") is None, reason="it needs the program tar")
def test_what_the_program_tar_writes_of_a_folder_is_read(tmp_path: Path) -> None:
    for place in range(4):
        (tmp_path / "photos" / "ab"[place % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "ab"[place % 2] / f"{place}.png").write_bytes(PHOTOS[place])
    subprocess.run(["tar", "-cf", "a.tar", "--sort=name", "photos"], cwd=tmp_path, check=True)
    images = open_images(tmp_path / "a.tar")
    assert [images.name(row) for row in range(4)] == [
        "a.tar:photos/a/0.png", "a.tar:photos/a/2.png", "a.tar:photos/b/1.png", "a.tar:photos/b/3.png",
    ]  # fmt: skip
    assert raw(images) == [PHOTOS[place] for place in (0, 2, 1, 3)]


def test_samples_of_the_webdataset_layout_keep_their_labels(tmp_path: Path) -> None:
    paths = [shard(tmp_path / "shards" / f"{n:03}.tar", range(4 * n, 4 * n + 4)) for n in range(3)]
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"shards/{path.name}\n" for path in paths))
    sources = (tmp_path / "shards", paths, [str(path) for path in paths], listing)
    for source in (*sources, str(tmp_path / "shards" / "{000..002}.tar"), str(tmp_path / "shards" / "*.tar")):
        images = open_images(source)
        assert (len(images), images.classes) == (12, ("0", "1", "2"))
        assert images.labels is not None
        assert images.labels.tolist() == [seed % 3 for seed in range(12)]
        assert raw(images) == PHOTOS
    assert np.array_equal(images.array(7), photo(12, 16, 7))
    assert images.name(7) == "001.tar:000007.png"
    assert raw(open_images(paths[1]).subset([3, 0])) == [PHOTOS[7], PHOTOS[4]]
    assert raw(pickle.loads(pickle.dumps(images))) == PHOTOS


def test_words_and_gaps_among_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = {"0.png": PHOTOS[0], "0.cls": b"owl\n", "1.png": PHOTOS[1], "1.cls": b"ant"}
    images = open_images(write_tar(tmp_path / "a.tar", words))
    assert images.labels is not None
    assert (images.labels.tolist(), images.classes) == ([1, 0], ("ant", "owl"))
    assert open_images(write_tar(tmp_path / "b.tar", words | {"2.png": PHOTOS[2]})).labels is None
    assert "1 of 3 have no .cls" in caplog.text


def test_a_shard_without_pictures_takes_no_label_from_the_others(tmp_path: Path) -> None:
    """As where none of a shard's pictures could be packed."""
    paths = [shard(tmp_path / "0.tar", range(3)), write_tar(tmp_path / "1.tar", {"about.txt": b""})]
    images = open_images(paths)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2]


def test_a_sample_is_one_image_and_dotted_names_are_images_of_their_own(tmp_path: Path, caplog) -> None:
    members = {
        "0.jpg": PHOTOS[0],
        "0.mask.png": PHOTOS[1],
        "my.trip.png": PHOTOS[2],
        "my.home.png": PHOTOS[3],
    }
    members |= {"1.mp4": b"", "__MACOSX/0.jpg": b"", ".hidden.jpg": b""}
    assert raw(open_images(write_tar(tmp_path / "a.tar", members))) == [PHOTOS[0], PHOTOS[2], PHOTOS[3]]
    assert "1 further pictures of a sample" in caplog.text
    assert "1 other files (.mp4)" in caplog.text


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_files_are_read_as_zipfile_reads_them(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("cats/", b"")
        for seed in range(5):
            file.writestr(f"cats/ü{seed}.png", PHOTOS[seed])
            file.writestr(f"cats/ü{seed}.cls", str(seed % 2))
    images = open_images(tmp_path / "a.zip")
    assert raw(images) == PHOTOS[:5]
    assert images.name(2) == "a.zip:cats/ü2.png"
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 0, 1, 0]


def test_the_fingerprint_of_small_archives_follows_every_byte(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(2**20)
    path = write_tar(tmp_path / "a.tar", {"a.png": PHOTOS[0], "b.png": noise})
    data, written = path.read_bytes(), path.stat().st_mtime_ns
    first = open_images(path).fingerprint()
    place = len(data) // 4
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    os.utime(path, ns=(written, written))  # as another copy's may be
    assert open_images(path).fingerprint() != first


def test_an_index_is_kept_and_made_anew_when_its_archive_changes(tmp_path: Path, caplog) -> None:
    path = shard(tmp_path / "a.tar", range(4))
    first = open_images(path).fingerprint()
    (index,) = (one for one in tmp_path.iterdir() if one != path)
    written = index.stat().st_mtime_ns
    assert open_images(path).fingerprint() == first
    assert (index.stat().st_mtime_ns, caplog.text) == (written, "")
    shard(path, range(4, 8))  # of the same length
    images = open_images(path)
    assert raw(images) == PHOTOS[4:8]
    assert images.fingerprint() != first
    assert "has changed since it was indexed" in caplog.text
    caplog.clear()
    good = index.read_bytes()
    for place in range(0, len(good), 41):
        damaged = bytearray(good)
        damaged[place] ^= 1
        index.write_bytes(damaged)
        caplog.clear()
        assert raw(open_images(path)) == PHOTOS[4:8]
        assert "had a damaged index" in caplog.text
    for cut in (0, 5, len(good) // 2):
        index.write_bytes(good[:cut])
        assert raw(open_images(path)) == PHOTOS[4:8]
    assert index.read_bytes() == good


@pytest.mark.parametrize(
    "forged",
    [
        lambda held: replace(held, passed_over={"links": "many"}),
        lambda held: replace(held, passed_over=["links"]),
        lambda held: replace(held, passed_over={"links": float("inf")}),
        lambda held: held.rows["offset"].fill(2**63) or held,
        lambda held: held.rows["offset"].fill(2**64 - 1) or held,
        lambda held: held.rows["label"].fill(7) or held,
        lambda held: held.rows["name_end"].fill(2**31) or held,
    ],
)
def test_an_index_that_somebody_forged_is_made_anew(tmp_path: Path, caplog, forged) -> None:
    """Its checksum is right, as whoever writes an index can make it."""
    path = shard(tmp_path / "a.tar", range(4))
    held, _ = archive_index.index_of(path)
    held = forged(replace(held, rows=held.rows.copy()))
    with path.open("rb") as file:
        archive_index.write_index(archive_index.beside(path), held, archive_index.identity_of(file))
    images = open_images(path)
    assert "damaged index" in caplog.text
    assert [images.reader.read(row) for row in range(4)] == PHOTOS[:4]


def test_beside_a_read_only_archive_the_cache_folder_keeps_the_index(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = shard(tmp_path / "shards" / "a.tar", range(4))
    # a folder where the index would be: for root every folder can be written to
    (tmp_path / "shards" / "a.tar.byol-index").mkdir()
    assert raw(open_images(path)) == PHOTOS[:4]
    (kept,) = (tmp_path / "cache" / "byol").iterdir()
    written = kept.stat().st_mtime_ns
    assert raw(open_images(path)) == PHOTOS[:4]
    assert kept.stat().st_mtime_ns == written


def test_without_a_home_nothing_is_kept_and_the_archive_is_read(tmp_path: Path, monkeypatch) -> None:
    """As in a container whose user has no entry in /etc/passwd."""

    def no_entry(user: int) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    path = shard(tmp_path / "shards" / "a.tar", range(4))
    (tmp_path / "shards" / "a.tar.byol-index").mkdir()  # nothing can be kept beside it either
    monkeypatch.chdir(tmp_path)
    assert raw(open_images(path)) == PHOTOS[:4]
    assert os.listdir(tmp_path) == ["shards"]


@pytest.mark.parametrize("count", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_an_index_takes_less_than_100_bytes_a_sample(tmp_path: Path, count: int) -> None:
    """Empty members, as WebDataset names them, in a program of its own whose memory is measured."""
    script = """
import resource, sys, tarfile
from pathlib import Path
from byol.data.readers.archive_index import index_of
path, count = Path(sys.argv[1]), int(sys.argv[2])
with open(path, "wb") as file:
    for number in range(count):
        info = tarfile.TarInfo(f"{number:09}.jpg")
        file.write(info.tobuf(tarfile.USTAR_FORMAT))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index, _ = index_of(path)
held = len(index.names) + index.rows.nbytes
assert len(index.rows) == count
assert held < 100 * count, held
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < 200 * count + 2**24, grown  # while it is made
"""
    words = [sys.executable, "-c", script, str(tmp_path / "a.tar"), str(count)]
    subprocess.run(words, check=True, timeout=280)


def damage(kind: str, path: Path) -> None:
    """A hostile tar file."""
    if kind in ("link", "absolute", "up", "sparse", "device"):
        with tarfile.open(path, "w") as file:
            names = {"absolute": str(path.parents[2] / "elsewhere.png"), "up": "../../elsewhere.png"}
            info = tarfile.TarInfo(names.get(kind, "a.png"))
            if kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            if kind == "device":
                info.type = tarfile.CHRTYPE
            if kind == "sparse":
                info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
            info.size = len(PHOTOS[0]) if kind in ("absolute", "up", "sparse") else 0
            file.addfile(info, io.BytesIO(PHOTOS[0]))
        return
    data = bytearray(write_tar(path, {"a.png": PHOTOS[0], "b.png": PHOTOS[1]}).read_bytes())
    if kind == "beyond":
        data[124:136] = b"77777777777\0"
    elif kind == "negative":
        data[124:136] = b"\xff" * 12
    elif kind == "enormous":
        data[124:136] = b"\x80" + b"\xff" * 11
    elif kind == "words":
        data[124:136] = b"a lot of it\0"
    elif kind == "checksum":
        data[10] ^= 1
    elif kind == "cut":
        del data[700:]
    if kind not in ("checksum", "cut"):
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("beyond", "ends inside its member a.png"), ("negative", "not a number"), ("words", "not a number"),
     ("enormous", "ends inside"), ("checksum", "not a tar"), ("cut", "ends inside its member a.png"),
     ("link", "1 links"), ("device", "1 members that are no files"), ("sparse", "1 sparse files")],
)  # fmt: skip
def test_a_hostile_tar_file_is_a_sentence(tmp_path: Path, caplog, kind: str, said: str) -> None:
    damage(kind, tmp_path / "a.tar")
    with pytest.raises(DataError) as told:
        open_images(tmp_path / "a.tar")
    assert said in str(told.value) + caplog.text
    assert "a.tar" in str(told.value)


@pytest.mark.parametrize("kind", ["absolute", "up"])
def test_names_that_lead_elsewhere_are_but_names(tmp_path: Path, kind: str) -> None:
    """Both to a file above the archive's folder, which is not written."""
    (folder := tmp_path / "1" / "2").mkdir(parents=True)
    damage(kind, folder / "a.tar")
    before = sorted(tmp_path.rglob("*"))
    images = open_images(folder / "a.tar")
    assert raw(images) == [PHOTOS[0]]
    assert not images.name(0).startswith("/")
    assert set(tmp_path.rglob("*")) - set(before) == {folder / "a.tar.byol-index"}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.tar", b"", "no pictures"),
        ("a.tar", b"hello", "ends too soon"),
        ("a.tar", b"\x1f\x8b" * 999, "compressed"),
        ("a.zip", b"PK\3\4" + bytes(99), "damaged"),
        ("a.tar", bytes(1024), "no pictures"),
    ],
)
def test_what_is_no_archive_is_a_sentence(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        open_images(tmp_path / name)


@pytest.mark.parametrize(("where", "limit"), [(archives, "MAX_BYTES"), (archive_index, "GROWTH")])
def test_a_packed_member_that_unpacks_without_end_is_a_bad_image(
    tmp_path: Path, monkeypatch, where, limit
) -> None:
    monkeypatch.setattr(where, limit, 10_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", PHOTOS[0])
        file.writestr("b.png", bytes(10**6))
    images = open_images(tmp_path / "a.zip")
    with pytest.raises(BadImage, match=r"unpacks to more than 1\d,\d\d\d bytes"):
        images.picture(1)


@pytest.mark.slow
def test_a_small_zip_file_of_gigabytes_takes_little_memory(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("a.png", "w") as member,
    ):
        for _ in range(14):
            member.write(bytes(2**26))
    script = """
import resource, sys
from byol import ByolError, open_images
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
try:
    open_images(sys.argv[1])
except ByolError as failure:
    print(failure)
print(peak() - before < 500)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "a.zip")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "unpacks to more than" in done.stdout
    assert done.stdout.endswith("True\n")


def test_an_archive_that_shrinks_while_it_is_read_costs_its_images_only(tmp_path: Path) -> None:
    images = open_images(shard(tmp_path / "a.tar", range(4)))
    os.truncate(tmp_path / "a.tar", 1200)
    assert images.picture(0)
    with pytest.raises(BadImage, match="ends before"):
        images.picture(3)


def test_patterns_in_braces_count_and_list(tmp_path: Path) -> None:
    assert archives.expanded("s/{08..11}-{a,b}.tar")[:3] == ["s/08-a.tar", "s/08-b.tar", "s/09-a.tar"]
    assert len(archives.expanded("s/{08..11}-{a,b}.tar")) == 8
    assert len(open_images(shard(tmp_path / "one" / "00.tar", range(2)).with_name("{00..00}.tar"))) == 2
    with pytest.raises(DataError, match="at most"):
        archives.expanded("{0..9999}" * 3)
    shard(tmp_path / "0.tar", range(2))
    with pytest.raises(DataError, match=r"stands for 3 files, of which 2 are not there.*1\.tar"):
        open_images(str(tmp_path / "{0..2}.tar"))
    write_tar(tmp_path / "train" / "train-0.tar", {"a.png": PHOTOS[0]})
    write_tar(tmp_path / "train" / "test-0.tar", {"a.png": PHOTOS[0]})
    with pytest.raises(DataError, match="splits test, train"):
        open_images(tmp_path / "train")


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5119), st.integers(0, 255)), max_size=8), st.booleans())
def test_a_tar_or_zip_file_changed_at_random_is_images_or_one_sentence(
    tmp_path_factory, changes, zipped
) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    path = folder / ("a.zip" if zipped else "a.tar")
    if zipped:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.png", PHOTOS[0])
            file.writestr("a.cls", "1")
    else:
        write_tar(path, {"a.png": PHOTOS[0], "a.cls": b"1", "b.png": PHOTOS[1]})
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    with suppress(ByolError):
        images = open_images(path)
        _ = images.labels, images.fingerprint(), [images.name(row) for row in range(len(images))]
