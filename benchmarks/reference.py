"""Make a finished run the reference curve of a preset, which its reports draw behind the user's own.

byol demo --seed 1 --out runs/reference
python benchmarks/reference.py runs/reference demo "byol demo --seed 1, 2026-11-29, one of two virtual cores"
"""

import sys

from byol.report.plots import CURVES, RIVALS
from byol.report.record import read_record
from byol.report.reference import write_reference

run, preset, made = sys.argv[1:]
metrics = (*(metric for metric, *_ in CURVES), *RIVALS.values(), "knn_low", "knn_high", "knn_images")
write_reference(read_record(run), preset, made, metrics)
