"""Examples of other data than images learn something small, and the notebook's cells run as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = {
    "sound": (1, 40, 100),
    "series": (3, 128),
    "table": (32,),
    "bands": (13, 32, 32),
    "video": (1, 8, 24, 24),
    "volumes": (1, 16, 16, 16),
}


@pytest.mark.slow
def test_every_modality_trains_without_collapse_and_keeps_its_shape(tmp_path):
    words = ["all", "--samples", "300", "--epochs", "6", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "modalities.py"), *words], capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(
        r"^(\w+) +(\([\d, ]+\)): ([a-z ]+); (kNN.*Linear ([\d.]+) %\.)", done.stdout, re.MULTILINE
    )
    assert {name: shape for name, shape, *_ in said} == {name: str(shape) for name, shape in SHAPES.items()}
    for name, _, state, words, linear in said:
        assert state not in ("collapsed", "collapsing", "diverging"), words
        assert float(linear) > 20, name  # by chance 12.5 to 20
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [line for line in lines if "representation_std" in line][-1]["representation_std"] > 0.1


CHECKED = """
assert len(features.x) == len(images)
assert scores["knn"].top1 > 0.3  # of 18 photographs by chance 0.06
assert encoder.checksum() == run.encoder.checksum()
"""


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    assert all(cell.get("outputs", []) == [] for cell in notebook.cells)  # no one's results are kept
    notebook.cells[3].source = notebook.cells[3].source.replace("epochs=2", "epochs=0.5")
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKED))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises what a cell raises
