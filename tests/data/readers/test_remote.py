"""Shards on a web server: the images of local ones, read by ranges; and what goes wrong there."""

import json
import pickle
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from batching import plan_for, same, streamed
from pictures import encoded, photo
from range_server import serving

from byol.data.images import Images, open_images
from byol.data.pack import pack
from byol.data.readers import remote
from byol.data.readers.archive_index import in_cache
from byol.errors import DataError

COUNT = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two classes, packed into three shards."""
    for seed in range(COUNT):
        path = tmp_path / "photos" / "ab"[seed % 2] / f"{seed:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(20, 24, seed)))
    pack(open_images(tmp_path / "photos"), tmp_path / "shards", each=15)
    return tmp_path / "shards"


def asked(address: str) -> dict[str, int]:
    with urlopen(f"{address}/counts") as answer:
        return json.load(answer)


def raw(images: Images) -> list[bytes]:
    return [images.reader.read(row) for row in images.rows.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("indexed", [True, False], ids=["packed", "without an index"])
def test_shards_of_a_server_give_the_batches_of_local_ones(shards: Path, workers: int, indexed: bool) -> None:
    local = open_images(shards)
    if not indexed:
        for index in shards.glob("*.byol-index"):
            index.unlink()
    with serving(shards) as address:
        images = open_images(f"{address}/{{00000..00002}}.tar")
        assert images.classes == local.classes == ("a", "b")
        assert images.labels.tolist() == local.labels.tolist()
        assert [images.name(row) for row in (0, COUNT - 1)] == [local.name(row) for row in (0, COUNT - 1)]
        plan = plan_for(COUNT, batch_size=16, windows=images.windows())
        mine = list(streamed(images, plan, range(6), workers))
        assert same(mine, list(streamed(local, plan, range(6))))
        again = pickle.loads(pickle.dumps(images))
        assert again.fingerprint() == images.fingerprint()
        assert torch.equal(torch.from_numpy(again.array(7)), torch.from_numpy(local.array(7)))


def test_an_index_is_fetched_or_made_once_kept_here_and_made_anew_for_another_shard(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sum(path.stat().st_size for path in shards.glob("*.tar"))
    sent = []
    with serving(shards) as address:
        pattern = f"{address}/{{00000..00002}}.tar"

        def opened() -> Images:
            before = asked(address)["sent"]
            images = open_images(pattern)
            sent.append(asked(address)["sent"] - before)  # a sample of the pictures in any case
            return images

        images = opened()
        opened()
        for index in shards.glob("*.byol-index"):
            index.unlink()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        opened()
        fetched, kept, made = sent
        assert kept < fetched < kept + whole / 2
        assert made >= kept + whole
        (shards / "00000.tar").write_bytes((shards / "00001.tar").read_bytes())
        other = open_images(pattern)
        assert other.reader.read(0) == images.reader.read(15)
        assert other.fingerprint() != images.fingerprint()
        assert images.checksum() != other.checksum()


def test_a_server_that_stumbles_is_requested_again_and_one_that_is_gone_is_a_sentence(shards: Path) -> None:
    local = open_images(shards)
    with serving(shards, fail=2) as address:
        images = open_images(f"{address}/00001.tar")
        assert images.reader.read(3) == local.reader.read(18)
    with pytest.raises(
        DataError, match=r"00001\.tar cannot be read .*, 3 times\. The same command continues"
    ):
        images.reader.read(4)


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [({"ranges": False}, "00000.tar", "in parts"), ({}, "00009.tar", "there is no such thing"),
     ({}, "", "Where a server lists no files, name them")],
)  # fmt: skip
def test_what_a_server_cannot_give_is_a_sentence(shards: Path, options: dict, name: str, said: str) -> None:
    with serving(shards, **options) as address, pytest.raises(DataError, match=said):
        open_images(f"{address}/{name}")


def test_an_address_may_have_a_query_and_its_server_may_hide_what_is_not_there(shards: Path) -> None:
    """As ?download=true, or the signature of an address that is good for a day."""
    first = raw(open_images(shards / "00000.tar"))
    for beside in (*shards.glob("*.byol-index"), shards / "byol-pack.json"):
        beside.unlink()
    with serving(shards, lists=False) as address:
        images = open_images(f"{address}/00000.tar?download=true")
        assert images.name(0).startswith("00000.tar:")
        assert raw(images) == first
        with pytest.raises(DataError, match="is not a tar or zip file"):
            open_images(f"{address}/00000.png?download=true")


def test_a_list_of_addresses_is_the_shards_at_them(shards: Path, tmp_path: Path) -> None:
    local = open_images(shards)
    urls = [f"file://{path}" for path in sorted(shards.glob("*.tar"))]
    (tmp_path / "urls.txt").write_text("\n".join(urls))
    assert raw(open_images(tmp_path / "urls.txt")) == raw(local)
    with serving(shards) as address:
        urls = [f"{address}/0000{number}.tar?download=true" for number in range(3)]
        (tmp_path / "urls.txt").write_text("\n".join(urls))
        images = open_images(tmp_path / "urls.txt")
        assert (raw(images), images.classes) == (raw(local), ("a", "b"))


def test_without_versions_some_bytes_tell_shards_apart_and_features_are_not_kept(shards: Path) -> None:
    with serving(shards, versions=False) as address:
        images = open_images(f"{address}/00000.tar")
        assert images.checksum() is None
        (shards / "00000.tar").write_bytes((shards / "00001.tar").read_bytes())
        changed = open_images(f"{address}/00000.tar")  # beside which the index is of what it was before
        assert changed.fingerprint() != images.fingerprint()
        assert changed.reader.read(0) == open_images(shards / "00001.tar").reader.read(0)


def test_a_damaged_index_in_the_cache_is_made_anew(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(shards) as address:
        url = f"{address}/00000.tar"
        first = open_images(url).fingerprint()
        kept = in_cache(url)
        kept.write_bytes(kept.read_bytes()[:-30])
        assert open_images(url).fingerprint() == first
        assert "had a damaged index" in caplog.text


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_other_file_systems_are_listed(shards: Path, scheme: str) -> None:
    """Those that fsspec brings: of files, and of memory, which answers one request after the other."""
    import fsspec

    where = f"{scheme}://{shards}"
    if scheme == "memory":
        fsspec.filesystem("memory").put(f"{shards}/", f"{shards}/", recursive=True)
    local = open_images(shards)
    each = [f"{where}/0000{number}.tar" for number in range(3)]
    for source in (where, f"{where}/*.tar", each):
        images = open_images(source)
        plan = plan_for(COUNT, batch_size=16, windows=images.windows())
        assert same(list(streamed(images, plan, range(3))), list(streamed(local, plan, range(3))))


def test_without_fsspec_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(DataError, match=r"pip install 'byol\[remote\]'"):
        open_images("https://example.org/{0..9}.tar")
