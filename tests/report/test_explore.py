"""The explorer in a real browser: what it shows, selects and remembers, by mouse and by keyboard alone."""

import base64
import csv
import json
import multiprocessing
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, browser
from PIL import Image
from reading import CLASSES, Page

import byol
from byol.cli import main
from byol.commands.explore import serve
from byol.features.neighbours import near_duplicates, search
from byol.report import embeddings_file
from byol.report.explorer import Column, Map, map_order

COUNT, TITLES = 240, ("<b>before", "<b>after")
page_needed = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def explored(tmp_path_factory):
    """Maps of 240 images with names and classes that are markup: the folder, and both features."""
    root, generator = tmp_path_factory.mktemp("explored"), np.random.default_rng(0)
    kinds = np.arange(COUNT) % 3
    names = [f"<img src=x onerror=alert({row})> {row:03}.png" for row in range(COUNT)]
    (root / "photos").mkdir()
    for row, name in enumerate(names):
        colour = ((row % 8) * 32 + 16, (row // 8) * 8 + 4, kinds[row] * 100)
        Image.new("RGB", (40, 24), colour).save(root / "photos" / name)
    centres, found = generator.normal(size=(3, 12)), []
    for title, spread in zip(TITLES, (2.0, 0.4), strict=True):
        x = (centres[kinds] + spread * generator.normal(size=(COUNT, 12))).astype(np.float32)
        x[10] = x[7] * 3  # copies of one another, in three groups
        x[20], x[21], x[30] = x[11] * 1.0001, x[11], x[31]
        found.append(byol.Features(x, kinds, names, CLASSES))
        found[-1].save(root / f"{title}.npz")
    with (root / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "<i>prediction</i>"])
        table.writerows((name, "<u>a</u>" if row % 2 else "b") for row, name in enumerate(names))
    flags = [
        "--data",
        str(root / "photos"),
        "--table",
        str(root / "table.csv"),
        "--device",
        "cpu",
        "--k",
        "5",
    ]
    flags += ["--clusters", "3", "--map", "pca"]
    for out, titles in (("one", TITLES[1:]), ("two", TITLES)):
        files = [str(root / f"{title}.npz") for title in titles]
        assert main(["explore", *files, "--out", str(root / out), *flags]) == 0
    return root, *found


@pytest.fixture(scope="session")
def chromium():
    with browser("--disable-3d-apis") as one:
        yield one


@pytest.fixture
def page(explored, chromium):
    """The page of one map, opened from disk; it may end with nothing said and nothing but its files read."""
    chromium.said.clear()
    chromium.requests.clear()
    chromium.ask("Page.navigate", url="about:blank")
    chromium.open(address(explored))
    yield chromium
    assert chromium.said == []
    folder = explored[0].as_uri()
    assert [url for url in chromium.requests if not url.startswith(("about:", "blob:", folder))] == []


def address(explored, out="one", words=""):
    return (explored[0] / out / "index.html").as_uri() + words


def data(folder, name):
    """What a script of data holds."""
    text = (folder / "data" / f"{name}.js").read_text("ascii")
    return json.loads(text.removeprefix(f'explorer("{name}",').rstrip()[:-1])


def spots(page, explored, out="one", place=0):
    """Where every row is drawn in the window, of a map that shows everything."""
    coded = base64.b64decode(data(explored[0] / out, f"map{place}"))
    points = np.frombuffer(coded, "<u2").reshape(-1, 2) / 65535
    box = page.js(
        f"(() => {{ const b = document.querySelectorAll('.map')[{place}].getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height] })()"
    )
    scale = 0.92 * min(box[2:])
    return (points - 0.5) * scale + np.array(box[:2]) + np.array(box[2:]) / 2


def opened(page):
    """The row whose image is open."""
    return page.js("new URLSearchParams(location.hash.slice(1)).get('row')")


def rows_in(page, panel):
    return page.js(
        f"[...document.querySelectorAll('#panel-{panel} [data-row]')].map((one) => +one.dataset.row)"
    )


def type_into(page, words):
    page.js("document.getElementById('search').focus()")
    page.js(f"document.getElementById('search').value = {json.dumps(words)}")
    page.js("document.getElementById('search').dispatchEvent(new Event('input'))")


@page_needed
def test_the_page_opens_from_disk_and_asks_for_nothing_but_its_own_files(page, explored):
    policy = page.js("document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy
    assert "http" not in policy
    assert page.js("document.getElementById('count').textContent") == f"{COUNT} images shown"
    assert any("/data/map0.js" in url for url in page.requests)  # so the list of requests tells something


@page_needed
def test_axe_finds_nothing_serious_whatever_is_open(page, explored):
    for number, (words, width) in enumerate(
        (("#row=5", 1280), ("#tab=list", 390), ("#tab=copies", 1280), ("#picked=1.2&tab=picked&row=3", 390))
    ):
        page.dark(number % 2 == 1)
        page.open(address(explored, "two", f"?axe{number}{words}"), width=width)
        assert page.inaccessible() == []
    page.dark(False)


@page_needed
def test_names_of_strangers_stay_text(page, explored):
    for words in ("#row=5", "#tab=list", "#tab=copies", "#picked=1.2&tab=picked", "#q=<img&tab=list"):
        page.open(address(explored, "two", f"?{abs(hash(words))}{words}"))
        assert page.js("document.querySelectorAll('img, b, u, i, iframe').length") == 0
        assert page.js("document.querySelectorAll('script').length") == 2  # the page's own and its data
    page.open(address(explored, "two", "?#row=5"))
    text = page.js("document.body.innerText")
    assert "<img src=x onerror=alert(5)> 005.png" in text
    assert "<b>before" in text
    assert CLASSES[0] in text
    assert "<i>prediction</i>" in text


@page_needed
def test_what_is_under_the_pointer_is_told_and_a_click_opens_it_with_its_neighbours(page, explored):
    page.js("document.getElementById('thumbs').click()")
    x, y = spots(page, explored)[40]
    page.mouse("mouseMoved", x, y)
    page.until("!document.getElementById('tip').hidden")
    told = page.js("document.getElementById('tip').textContent")
    row = int(re.search(r"(\d\d\d)\.png", told)[1])
    found = spots(page, explored)
    assert np.hypot(*(found[row] - found[40])) <= 3  # where points are drawn upon one another
    page.click(x, y)
    page.until("document.querySelectorAll('#panel-image [data-row]').length === 5")
    page.until("location.hash.includes('row=')")
    assert opened(page) == str(row)
    x = unit(explored[2].x)
    cosines = x @ x[row]
    cosines[row] = -2
    near = rows_in(page, "image")
    assert cosines[near] == pytest.approx(np.sort(cosines)[::-1][:5], abs=1e-5)
    label = page.js("document.querySelector('#panel-image .thumb[role=img]').getAttribute('aria-label')")
    assert label == f"{explored[2].names[row]}, {CLASSES[row % 3]}"


@page_needed
def test_what_was_under_the_pointer_is_not_told_where_it_no_longer_is(page, explored):
    page.js("document.getElementById('thumbs').click()")
    found = spots(page, explored)
    middle = found[np.hypot(*(found - found.mean(axis=0)).T).argmin()]
    x, y = map(float, middle)
    page.mouse("mouseMoved", x, y)
    page.until("!document.getElementById('tip').hidden")
    page.mouse("mouseWheel", x + 40, y + 40, wheel=-400)
    page.until("location.hash.includes('view=')")
    assert page.js("document.getElementById('tip').hidden")
    page.js("document.getElementById('whole').click()")
    page.until("!location.hash.includes('view=')")
    page.mouse("mouseMoved", x, y)
    page.until("!document.getElementById('tip').hidden")


@page_needed
def test_thumbnails_are_a_sample_of_all_rows_however_these_are_sorted(page, explored, tmp_path):
    """Folders are sorted by class: the first row of each place would show the first classes alone."""
    page.picture(tmp_path / "a.png")
    seen = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    seen, pixels = np.unique(seen, axis=0, return_counts=True)
    colours = np.array([((row % 8) * 32 + 16, (row // 8) * 8 + 4, row % 3 * 100) for row in range(COUNT)])
    unlike = np.abs(seen.astype(int) - colours[:, None]).max(axis=2)
    nearest = np.where(unlike.min(axis=0) <= 4, unlike.argmin(axis=0), COUNT)
    rows = np.flatnonzero(np.bincount(nearest, weights=pixels)[:COUNT] > 200)
    assert len(rows) > 12
    assert 0.38 < rows.mean() / COUNT < 0.62


@page_needed
def test_search_and_filter_choose_what_is_shown(page, explored):
    page.js("document.getElementById('tab-list').click()")
    type_into(page, "ALERT(1")
    wanted = [row for row, name in enumerate(explored[2].names) if "alert(1" in name]
    page.until(f"document.getElementById('count').textContent.startsWith('{len(wanted)} of {COUNT}')")
    page.until(f"[...document.querySelectorAll('#panel-list [data-row]')].length === {min(40, len(wanted))}")
    assert rows_in(page, "list") == wanted[:40]
    hidden = page.js(
        "document.querySelector('#legend input').parentElement.querySelector('.name').textContent"
    )
    page.js("document.querySelector('#legend input').click()")
    kept = [row for row in wanted if CLASSES[row % 3] != hidden]
    page.until(f"document.getElementById('count').textContent.startsWith('{len(kept)} of {COUNT}')")
    page.until(
        f"document.querySelector('#panel-list .buttons').textContent.includes('Select all {len(kept)}')"
    )
    assert rows_in(page, "list") == kept[:40]


@page_needed
def test_everything_can_be_done_by_keyboard(page, explored):
    page.js("document.querySelector('.map').focus()")
    said = "document.getElementById('said').textContent"
    page.key("ArrowRight")
    first = page.until(f"{said}.includes('.png') && {said}")
    page.key("ArrowRight")
    page.until(f"{said} !== {json.dumps(first)}")
    page.key("Enter")
    page.until(f"{said}.startsWith('opened')")
    page.until("location.hash.includes('row=')")
    row = int(opened(page))
    page.key("n")
    page.until(f"{said}.startsWith('neighbour 1 of 5')")
    x = unit(explored[2].x)
    cosines = x @ x[row]
    cosines[row] = -2
    told = page.js(said)
    assert float(re.search(r"similarity ([\d.]+)", told)[1]) == pytest.approx(cosines.max(), abs=1e-3)
    page.key("s")
    page.until("document.getElementById('count').textContent.includes('1 selected')")
    before = page.js("location.hash")
    page.key("+")
    page.until(f"location.hash !== {json.dumps(before)} && location.hash.includes('view=')")
    page.key("0")
    page.until("!location.hash.includes('view=')")
    page.key("ArrowLeft", shift=True)
    page.until("location.hash.includes('view=')")
    page.key("Escape")
    page.until("!location.hash.includes('row=')")
    page.js("document.getElementById('tab-image').focus()")
    page.key("ArrowRight")
    page.until("document.activeElement.id === 'tab-list'")
    page.until("document.querySelectorAll('#panel-list [data-row]').length === 40")
    page.js("document.querySelector('#panel-list [data-row]').focus()")
    page.key("ArrowDown")
    page.key("Enter")
    page.until("location.hash.includes('row=1')")


@page_needed
def test_the_view_lives_in_the_address(page, explored):
    words = "#row=7&colour=cluster&q=png&filter=0-1&tab=list&page=2&thumbs=no&picked=3.9&view=0.4,0.6,3"
    page.open(address(explored, "one", "?again" + words))
    everything = """(() => { const at = (id) => document.getElementById(id); return [
      at('search').value, at('count').textContent, at('colour').selectedOptions[0].textContent,
      at('thumbs').checked, document.querySelector('[role=tab][aria-selected=true]').id,
      [...document.querySelectorAll('#panel-list [data-row]')].map((one) => one.dataset.row).join()] })()"""
    shown = page.js(everything)
    assert shown[:5] == ["png", "160 of 240 images shown, 2 selected", "cluster", False, "tab-list"]
    assert shown[5].split(",")[0] == str([row for row in range(COUNT) if row % 3 != 1][40])
    page.js("document.getElementById('zoom-in').click()")
    page.until("location.hash.includes('view=0.4%2C0.6%2C4.5')")
    here = page.js("location.href")
    page.ask("Page.navigate", url="about:blank")
    page.open(here)
    assert page.js(everything) == shown
    assert page.js("location.hash") == here[here.index("#") :]
    page.open(
        address(explored, "one", "?bad#row=99999&colour=%3Cb%3E&tab=x&view=a&filter=9-1&similar=zzz&page=-1")
    )
    assert page.js("document.getElementById('count').textContent") == f"{COUNT} images shown"


@page_needed
def test_a_lasso_selects_what_is_in_it_and_the_list_can_be_taken(page, explored, tmp_path):
    found = spots(page, explored)
    low, high = np.quantile(found, 0.3, axis=0), found.max(axis=0) + 5
    (left, top), (right, bottom) = low.round() + 0.5, high.round() + 0.5
    page.drag((left, top), (right, top), (right, bottom), (left, bottom), shift=True)
    inside = np.flatnonzero(((found > (left, top)) & (found < (right, bottom))).all(axis=1))
    assert 20 < len(inside) < COUNT - 20
    page.until(f"document.getElementById('count').textContent.includes('{len(inside)} selected')")
    page.js("document.getElementById('tab-picked').click()")
    page.until("document.querySelector('#panel-picked button.main') !== null")
    page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.js("document.querySelector('#panel-picked button.main').click()")
    end = time.monotonic() + 60
    while not (tmp_path / "selection.txt").exists() and time.monotonic() < end:
        time.sleep(0.05)
    listed = (tmp_path / "selection.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [explored[2].names[row] for row in inside]


@page_needed
def test_near_duplicates_are_grouped_by_the_similarity_that_is_chosen(page, explored):
    page.js("document.getElementById('tab-copies').click()")
    page.until("document.getElementById('similar') !== null")
    for similarity in (0.9999, 0.95, 0.9):
        slider = "document.getElementById('similar')"
        page.js(f"{slider}.value = {similarity}; {slider}.dispatchEvent(new Event('input'))")
        groups = near_duplicates(explored[2], float(page.js(f"{slider}.value")))
        words = f"{len(groups):,} group{'s' * (len(groups) > 1)} of {sum(map(len, groups)):,} images in all."
        page.until(f"document.getElementById('groups').textContent === {json.dumps(words)}")
        assert rows_in(page, "copies")[: min(8, len(groups[0]))] == groups[0][:8].tolist()
    assert page.js("document.querySelector('svg.histogram').getAttribute('aria-label')")
    page.js(
        "[...document.querySelectorAll('#panel-copies button')]"
        ".find((one) => one.textContent.startsWith('Select all but')).click()"
    )
    extra = sum(len(rows) - 1 for rows in groups)
    page.until(f"document.getElementById('count').textContent.includes('{extra} selected')")


@page_needed
def test_two_files_are_two_maps_of_the_same_images(page, explored):
    page.open(address(explored, "two", "#thumbs=no"))
    assert page.js("document.querySelectorAll('.map').length") == 2
    x, y = spots(page, explored, "two", 1)[55]
    page.click(x, y)
    page.until("document.querySelectorAll('#panel-image [data-row]').length === 10")
    page.until("location.hash.includes('row=')")
    row = int(opened(page))
    near = rows_in(page, "image")
    for place, features in enumerate(explored[1:]):
        x = unit(features.x)
        cosines = x @ x[row]
        cosines[row] = -2
        those = near[5 * place : 5 * place + 5]
        assert cosines[those] == pytest.approx(np.sort(cosines)[::-1][:5], abs=1e-5)


@page_needed
def test_webgl_draws_what_the_pixels_of_a_canvas_draw(explored, chromium, tmp_path):
    chromium.open(address(explored, "one", "?draw=2d#thumbs=no"))
    assert chromium.js("document.querySelector('.map').dataset.draw") == "2d"
    chromium.picture(tmp_path / "2d.png")
    with browser("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader") as other:
        other.open(address(explored, "one", "?draw=webgl#thumbs=no"))
        if other.js("document.querySelector('.map').dataset.draw") != "webgl":
            pytest.skip("this Chromium has no WebGL, not even in software")
        time.sleep(0.5)
        other.picture(tmp_path / "webgl.png")
        other.open(address(explored, "one", "?unforced#thumbs=no"))  # WebGL by software is the slower one
        assert other.js("document.querySelector('.map').dataset.draw") == "2d"
    plain, drawn = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
                    for name in ("2d", "webgl"))  # fmt: skip
    coloured = [np.ptp(one[150:700, 20:800], axis=2) > 40 for one in (plain, drawn)]
    assert coloured[0].sum() > 2000
    assert (coloured[0] & coloured[1]).sum() > 0.6 * (coloured[0] | coloured[1]).sum()


def test_thumbnails_lie_where_the_page_looks_for_them(explored):
    folder = explored[0] / "one"
    told = json.loads(Page((folder / "index.html").read_text(encoding="utf-8")).texts("script")[0])
    slots = np.frombuffer(base64.b64decode(data(folder, "slots")), "<i4")
    assert sorted(slots.tolist()) == list(range(COUNT))
    points = np.frombuffer(base64.b64decode(data(folder, "map0")), "<u2").reshape(-1, 2)
    first = points[np.argsort(slots)[: told["overview"]]] // 2048
    assert len({*map(tuple, first.tolist())}) == told["overview"] > 50  # the first are spread over the map
    many, rows = 5000, np.arange(5000)  # in squares of a few rows each, which are sorted
    places, shown = map_order(np.random.default_rng(0).random((many, 2)).astype(np.float32))
    assert abs(rows[places < shown].mean() / many - 0.5) < 0.05
    side, across = told["side"], told["sheet"]
    assert side == 40  # what the images have
    sheets = [np.asarray(Image.open(path).convert("RGB")).astype(int)
              for path in sorted((folder / "sheets").iterdir())]  # fmt: skip
    for row in range(COUNT):
        sheet, place = divmod(int(slots[row]), across * across)
        top, left = place // across * side, place % across * side
        middle = sheets[sheet][top + side // 2, left + side // 2]
        wanted = ((row % 8) * 32 + 16, (row // 8) * 8 + 4, row % 3 * 100)
        assert np.abs(middle - wanted).max() <= 4, row


def answer(port: int, path: str, host: str, method: str = "GET") -> tuple[int, bytes]:
    """What the server says to a request: status and content."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, response.read()


def test_it_is_served_to_this_machine_alone(tmp_path):
    """The page's own files and nothing else, and not to a page from elsewhere whose name leads here."""
    folder, secret = tmp_path / "m", tmp_path / "secret"
    (folder / "folder").mkdir(parents=True)
    (folder / "index.html").write_text("a map", encoding="utf-8")
    secret.write_text("nobody's business", encoding="utf-8")
    (folder / "link").symlink_to(secret)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = multiprocessing.get_context("fork").Process(target=serve, args=(folder, port))
    server.start()
    try:
        for _ in range(1000):
            with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            time.sleep(0.01)
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
            assert answer(port, "/index.html", host) == answer(port, "/", host) == (200, b"a map")
        strangers = ("evil.example:80", "evil.example", "127.0.0.1.evil.example", "[::1]:80", "0.0.0.0", "")
        for host in strangers:
            assert answer(port, "/index.html", host)[0] == 403, host
            assert answer(port, "/index.html", host, "HEAD")[0] == 403, host
        assert answer(port, "/index.html", "localhost", "HEAD") == (200, b"")
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"):
            assert answer(port, "/index.html", "localhost", method)[0] == 501, method  # not implemented
        outside = ("/../secret", "/..%2fsecret", "/%2e%2e/secret", "//..//secret", str(secret))
        for path in ("/link", "/folder/", *outside, "http://evil.example/index.html"):
            status, content = answer(port, path, "localhost:1")
            assert (status, b"business" in content) == (404, False), path
        with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass  # the whole of 127.0.0.0/8 is this machine; a server for everybody would answer
    finally:
        server.kill()
        server.join()


@pytest.mark.slow
def test_a_map_is_served_until_ctrl_c(explored, tmp_path):
    command = [sys.executable, "-m", "byol", "explore", str(explored[0] / f"{TITLES[1]}.npz"), "--out",
               str(tmp_path / "m"), "--map", "pca", "--clusters", "0", "--serve"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = next(line for line in process.stdout if line.startswith("serving"))
            port = int(re.search(r"127\.0\.0\.1:(\d+)", said)[1])
            page = (200, (tmp_path / "m" / "index.html").read_bytes())
            assert answer(port, "/", f"localhost:{port}") == page
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["F", "F", "F"], "3 files"),
        (["F", "--k", "0"], "k"),
        (["F", "--out", "HERE"], "not a map"),
        (["F", "--table", "HERE/table.txt"], "--table"),
        (["F", "--table", "HERE/bad.csv"], "names, titled"),
        (["F", "G"], "same images"),
        (["F", "--port", "99999"], "--port"),
    ],
)
def test_what_cannot_be_is_a_sentence(words, part, explored, tmp_path, capsys):
    few = byol.Features(explored[2].x[:50])
    few.save(tmp_path / "few.npz")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    places = {
        "F": str(explored[0] / f"{TITLES[1]}.npz"),
        "G": str(tmp_path / "few.npz"),
        "HERE": str(tmp_path),
    }
    given = [places.get(word, word.replace("HERE", str(tmp_path))) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "m")]
    assert main(["explore", *given, *out, "--map", "pca", "--clusters", "0"]) in (2, 3)
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_no_flag_serves_it_to_other_machines(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["explore", "f.npz", "--out", str(tmp_path / "m"), "--serve", "--host", "0.0.0.0"])
    assert refused.value.code == 2
    assert "--host" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_map_replaces_a_map_and_nothing_else(explored, tmp_path):
    features, out = str(explored[0] / f"{TITLES[1]}.npz"), tmp_path / "m"
    flags = ["explore", features, "--out", str(out), "--map", "pca", "--clusters", "0"]
    assert main(flags) == 0
    assert main(flags) == 0
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(flags) == 2
    assert (out / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_lies_beside_the_map_has_the_columns_that_other_programs_ask_for(explored):
    """FiftyOne: files, and an array of rows and points. Spotlight: files, lists of one length, words as
    categories. embedding-atlas: --x, --y, --vector, and --neighbors of ids and distances."""
    root, _, last = explored
    table = pq.read_table(root / "two" / "embeddings.parquet")
    assert table.num_rows == COUNT
    files = table["filepath"].to_pylist()
    assert all(
        Path(path).is_absolute() and Path(path).name == name
        for path, name in zip(files, last.names, strict=True)
    )
    with Image.open(files[9]) as image:
        assert image.size == (40, 24)
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)
    assert table.schema.field("embedding").type.value_type == pa.float32()
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), last.x)
    for axis in ("projection_x", "projection_y", "before_x", "before_y"):
        assert pa.types.is_floating(table.schema.field(axis).type)
        assert np.isfinite(table[axis].to_numpy()).all()
    for place, kind in enumerate(("before", "projection")):  # as the page draws them
        drawn = np.frombuffer(base64.b64decode(data(root / "two", f"map{place}")), "<u2").reshape(-1, 2)
        for axis, values in zip("xy", drawn.T, strict=True):
            assert np.corrcoef(values, table[f"{kind}_{axis}"].to_numpy())[0, 1] > 0.9999
    near = table["neighbors"].to_pylist()
    cosines = unit(last.x.astype(np.float64)) @ unit(last.x.astype(np.float64)).T
    np.fill_diagonal(cosines, -2)
    for row, found in enumerate(near):
        assert len(found["ids"]) == len(found["distances"]) == 5
        assert row not in found["ids"]
        assert found["distances"] == pytest.approx(1 - np.sort(cosines[row])[::-1][:5], abs=1e-5)
        assert found["distances"] == pytest.approx(1 - cosines[row, found["ids"]], abs=1e-5)
    assert table["label"].to_pylist() == [CLASSES[kind] for kind in last.y]
    assert pa.types.is_floating(table.schema.field("outlier score").type)
    assert {*table["<i>prediction</i>"].to_pylist()} == {"<u>a</u>", "b"}


@page_needed
def test_a_table_s_column_named_as_one_of_ours_says_so_and_the_address_finds_it(explored, tmp_path, chromium):
    """Such as one of labels, of images whose folders are labels too."""
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "cluster", "seen", "seen"])
        table.writerows((name, "a", "b", "c", "d") for name in explored[2].names)
    flags = ["--table", str(tmp_path / "labels.csv"), "--map", "pca", "--device", "cpu", "--k", "5"]
    assert main(["explore", str(explored[0] / f"{TITLES[1]}.npz"), "--out", str(tmp_path / "m"), *flags]) == 0
    told = json.loads(Page((tmp_path / "m" / "index.html").read_text(encoding="utf-8")).texts("script")[0])
    names = ["label", "label in labels.csv", "cluster in labels.csv", "seen", "seen in labels.csv", "cluster",
             "outlier score"]  # fmt: skip
    assert [one["name"] for one in told["columns"]] == names
    assert {*names} <= {*pq.read_table(tmp_path / "m" / "embeddings.parquet").column_names}
    chromium.open((tmp_path / "m" / "index.html").as_uri() + "#colour=label+in+labels.csv")
    assert chromium.js("document.getElementById('legend').textContent") == f"AllNonea{COUNT}"


def test_columns_of_one_name_are_told_apart_and_rows_of_several_parts_stay_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings_file, "ROWS", 7)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    near = search(byol.Features(x), rows=range(20), k=2)
    columns = [Column("embedding", np.arange(20.0)), Column("name", np.arange(20) % 2, ("a", "b"))]
    words = [f"\udcff{row}" for row in range(20)]
    maps = [Map("a", x[:, :2], "PCA", 1.0, near)]
    embeddings_file.write_embeddings(tmp_path / "a.parquet", byol.Features(x), maps, words, columns)
    table = pq.read_table(tmp_path / "a.parquet")
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), x)
    assert table["embedding 2"].to_pylist() == list(range(20))
    assert table["name 2"].to_pylist() == ["a", "b"] * 10
    assert (
        table["name"].to_pylist() == table["filepath"].to_pylist() == [f"\\udcff{row}" for row in range(20)]
    )
    assert table["projection_x"].to_numpy() == pytest.approx(x[:, 0])
