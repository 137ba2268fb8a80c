"""What a notebook shows of a run, in a real kernel."""

import re

from jupyter_client.manager import start_new_kernel

CELL = """
import numpy as np, byol
from byol.train import log
from byol.train.config import ModelConfig
log.FIRST_SECONDS = log.BAR_SECONDS = 0.0  # told of each step
images = np.random.default_rng(0).integers(0, 255, (64, 16, 16, 3), np.uint8)
run = byol.pretrain("convnet", images, byol.TrainConfig(
    out={out!r}, image_size=16, batch_size=8, epochs=2.0, device="cpu",
    model=ModelConfig(width=4, projection_hidden_size=16, projection_size=8),
))
"""


def test_a_notebook_shows_one_bar_that_moves_and_goes_and_keeps_the_words(tmp_path):
    messages = []
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        reply = client.execute_interactive(
            CELL.format(out=str(tmp_path / "run")), timeout=120, output_hook=messages.append
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    shown = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    updates = [m["content"] for m in messages if m["msg_type"] == "update_display_data"]
    assert len(shown) == 1
    assert {u["transient"]["display_id"] for u in updates} == {shown[0]["transient"]["display_id"]}
    drawn = [u["data"]["text/html"] for u in updates]
    found = [
        re.match(r'<progress value="(\d+)" max="16"></progress> \1/16  (\d+)%  (.*)', d) for d in drawn[:-1]
    ]
    assert [int(f[1]) for f in found] == list(range(17))
    assert all(abs(int(f[2]) - 100 * int(f[1]) / 16) <= 0.5 for f in found)
    assert re.fullmatch(r"epoch 2.0  loss \d\.\d{3}  [\d,]+ images/s  .*left 0s", found[-1][3])
    assert drawn[-1] == ""
    said = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert "finished   16 steps" in said
    assert "step 5/16" not in said  # that is the bar's
