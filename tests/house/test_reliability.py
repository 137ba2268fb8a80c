"""Pages that promise keep to the tests that are there, and importing the package keeps to itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("page", "head", "least"),
    [("docs/reliability.md", "| fault ", 51), ("docs/guides/other-libraries.md", "| defect ", 21)],
)
def test_every_promise_of_the_page_names_a_test(page, head, least):
    lines = (ROOT / page).read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    if head == "| defect ":
        rows = [row for row in rows if re.match(r"\| \d+ ", row)]
    rows = [row for row in rows if not row.startswith(head)]
    assert len(rows) >= least
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= there, set(named) - there


def test_importing_the_package_opens_no_connection_and_starts_no_process():
    script = """
import sys
seen = []
events = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto")
events += ("subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "os.exec", "os.fork", "os.forkpty")
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)) if event in events else None)
import byol
for name in byol.__all__:
    getattr(byol, name)
assert "torch" in sys.modules
print(seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=250, cwd=ROOT
    )
    found = [
        line for line in ast.literal_eval(done.stdout) if "ldconfig" not in str(line)
    ]  # torch looks for libraries
    assert found == [], done.stderr
