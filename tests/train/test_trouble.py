"""What a run does when something around it goes wrong: disks, memory, folders, signals, other networks."""

import json
import os
import re
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from full_disk import largest_file
from PIL import Image
from small_runs import StopsItself, Tiny, seeded, small_config
from torch import Tensor, nn

import byol
from byol.commands.demo import free_folder
from byol.train.checkpoint import Saver
from byol.train.config import DataConfig, ModelConfig
from byol.train.log import BadImages


class Meets(Tiny):
    """Calls a function in one of its training passes."""

    def __init__(self, at_pass: int, trouble) -> None:
        super().__init__()
        self.left, self.trouble = at_pass, trouble

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                self.trouble()
        return super().forward(x)

    def __deepcopy__(self, memo: dict) -> "Tiny":
        copy = Tiny()
        copy.load_state_dict(self.state_dict())
        return copy


# What is said


def watched(source, look):
    """Images that call `look` before a picture is decoded."""
    images = byol.open_images(source)

    class Watched(type(images.reading)):
        def picture(self, raw):
            look()
            return super().picture(raw)

    return byol.Images(images.reader, Watched(**vars(images.reading)))


def test_the_plan_is_printed_when_a_few_pictures_are_decoded(tmp_path, photos, capsys):
    """At most 16, which tell whether they are gray."""
    said = []
    images = watched(photos, lambda: said.append(capsys.readouterr().err))
    byol.pretrain(seeded(), images, small_config(tmp_path))
    assert "optimizer  " in "".join(said[:17])


# Disk and memory


def test_a_full_disk_at_the_stop_is_no_claim_that_the_run_was_saved(tmp_path, arrays):
    def trouble():
        disk.enter_context(largest_file(0))
        os.kill(os.getpid(), signal.SIGTERM)

    said = r"step 3 of 14 could not be saved\. No checkpoint"
    with ExitStack() as disk, pytest.raises(byol.ByolError, match=said) as failure:
        byol.pretrain(seeded(Meets, 5, trouble), arrays, small_config(tmp_path, save_every_steps=100))
    assert failure.value.exit_code == 70


def test_a_full_disk_costs_metrics_and_one_warning_and_ends_in_a_sentence(tmp_path, arrays, caplog):
    config = small_config(tmp_path, log_every_steps=1, save_every_steps=100)
    said = r"cannot be written: File too large\."
    with ExitStack() as disk, pytest.raises(byol.ByolError, match=said) as failure:
        # Trains to its end, where the encoder cannot be saved.
        byol.pretrain(seeded(Meets, 5, lambda: disk.enter_context(largest_file(0))), arrays, config)
    assert failure.value.exit_code == 70
    assert sum("Metrics are lost" in record.message for record in caplog.records) == 1
    assert sum("checkpoint of step 14 " in record.message for record in caplog.records) == 1


def test_a_disk_that_is_full_for_a_while_costs_the_checkpoints_of_that_time_alone(tmp_path, arrays, caplog):
    """No file of more than 4 kB can be written in steps 3 to 7; then there is room again."""
    disk = ExitStack()

    def fill() -> None:
        disk.enter_context(largest_file(4096))
        net.left, net.trouble = 10, disk.close

    net = seeded(Meets, 5, fill)  # of two passes a step
    config = small_config(tmp_path / "a", save_every_steps=1, keep_checkpoints=20)
    with disk:
        run = byol.pretrain(net, arrays, config)
    there = sorted(int(path.name[5:]) for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert there == [1, 2, *range(8, 15)]
    lost = [record.getMessage() for record in caplog.records if "is lost" in record.message]
    assert [int(line.split()[4]) for line in lost] == [3, 4, 5, 6, 7]
    assert all(re.search(r"\(0\.\d MB\) is lost, training goes on", line) for line in lost)
    undisturbed = byol.pretrain(seeded(), arrays, replace(config, out=str(tmp_path / "b")))
    assert run.encoder.checksum() == undisturbed.encoder.checksum()


def test_an_image_that_can_be_read_again_is_taken_off_the_list(tmp_path):
    """As after a disk that was away for a moment; a last line that a kill cut short is forgotten too."""
    for number in range(20):
        Image.new("RGB", (20, 20), (number * 10, 0, 0)).save(tmp_path / f"{number:02}.png")
    images, path = byol.open_images(tmp_path), tmp_path / "bad_files.jsonl"
    (tmp_path / "03.png").write_bytes(b"")
    before = BadImages(path, images, 0.12)
    before("03.png", "it is empty")
    before("05.png", "it is away")
    with path.open("a") as file:
        file.write('{"name": "b.p')
    now = BadImages(path, images, 0.12)
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["name"] for line in listed] == ["03.png"]
    assert str(now).startswith("; 1 unreadable image (1 x ")


def test_images_that_were_away_more_than_once_stop_no_run_that_can_read_them_again(tmp_path):
    for number in range(20):
        Image.new("RGB", (20, 20), (number * 10, 0, 0)).save(tmp_path / f"{number:02}.png")
    images, path = byol.open_images(tmp_path), tmp_path / "bad_files.jsonl"
    bad = BadImages(path, images, 0.12)
    for number in range(9):
        bad(f"{number:02}.png", "it is away")
    assert len(path.read_text().splitlines()) <= 2
    for number in (1, 2, 3):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    bad("01.png", "it is empty")
    bad("02.png", "it is empty")
    with pytest.raises(byol.DataError, match=r"3 of 20 images cannot be read \(3 x "):
        bad("03.png", "it is empty")
    listed = [json.loads(line)["name"] for line in path.read_text().splitlines()]
    assert listed == ["01.png", "02.png", "03.png"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on a machine that does nothing else
def test_memory_and_open_files_do_not_grow_with_the_steps(tmp_path, photos):
    def taken() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    seen = []

    class Watched(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and torch.is_grad_enabled():  # the online network: a pass for each view
                seen.append(taken())
            return super().forward(x)

    config = small_config(tmp_path, epochs=500, workers=2, save_every_steps=100, log_every_steps=50)
    byol.pretrain(seeded(Watched), photos, replace(config, data=DataConfig(in_memory=False)))
    assert len(seen) > 2 * 2_200
    first = len(seen) - 2 * 2_000
    early, late = seen[first], seen[-1]
    assert late[0] < 1.05 * early[0]
    assert late[1] <= max(files for _, files in seen[:first])


def test_full_memory_is_a_sentence_about_what_to_lower(tmp_path, arrays):
    with pytest.raises(
        byol.ByolError, match=r"not enough memory .* Lower --batch-size or --image-size"
    ) as failure:
        byol.pretrain(
            seeded(Meets, 5, lambda: torch.empty(2**55, dtype=torch.uint8)), arrays, small_config(tmp_path)
        )
    assert failure.value.exit_code == 70
    assert "--optim.accumulation" in str(failure.value)


# Folders


@pytest.mark.parametrize(
    "left", [".DS_Store", ".tmp-4194999-config.yaml", ".tmp-4194999-encoder.safetensors"]
)
def test_a_file_that_a_killed_run_or_a_file_manager_left_is_no_obstacle(tmp_path, arrays, left):
    (tmp_path / left).touch()
    byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert (tmp_path / left).exists() == (left == ".DS_Store")


def test_nothing_is_reported_while_a_budget_is_measured(tmp_path, photos):
    import shutil

    pictures = shutil.copytree(photos, tmp_path / "pictures")
    (pictures / "dark" / "3.png").write_bytes(b"")
    settings = {
        "epochs": None,
        "data": DataConfig(max_bad=0.5),
        "model": ModelConfig(width=2, projection_hidden_size=16),
    }
    with pytest.raises(byol.ConfigError, match=r"only 0\.0 steps"):  # known once it is measured
        byol.pretrain("convnet", pictures, small_config(tmp_path / "a", budget="0.0001s", **settings))
    assert not (tmp_path / "a").exists()


def test_checkpoints_of_another_network_are_refused(tmp_path, arrays):
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), arrays, small_config(tmp_path))
    for other in (nn.Sequential(Tiny(), nn.Linear(12, 12)), Tiny()):
        if isinstance(other, Tiny):
            other.layers[4] = nn.Conv2d(8, 12, 5, 2, 2)
        with pytest.raises(byol.CheckpointError, match=r"step 3 .* is of another network"):
            byol.pretrain(other, arrays, small_config(tmp_path))


@pytest.mark.parametrize("damage", ["cut", "a field less", "a field more"])
def test_a_plan_that_cannot_be_read_is_a_sentence(tmp_path, arrays, damage):
    with pytest.raises(byol.Stopped):
        byol.pretrain(seeded(StopsItself, 5), arrays, small_config(tmp_path))
    text = (tmp_path / "plan.json").read_text()
    stored = json.loads(text)
    if damage == "a field less":
        del stored["plan"]["momentum"]
    stored["plan"]["new"] = 1
    (tmp_path / "plan.json").write_text(text[:100] if damage == "cut" else json.dumps(stored))
    with pytest.raises(byol.CheckpointError, match=r"plan\.json cannot be read"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))


def test_a_finished_run_without_checkpoints_is_not_trained_over(tmp_path, arrays):
    import shutil

    byol.pretrain(seeded(), arrays, small_config(tmp_path))
    before = (tmp_path / "encoder.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(byol.CheckpointError, match="finished run whose checkpoints are gone"):
        byol.pretrain(seeded(), arrays, small_config(tmp_path))
    assert (tmp_path / "encoder.safetensors").read_bytes() == before


def test_a_stopped_demo_is_continued_and_a_finished_one_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_folder() == "runs/demo"
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert free_folder() == "runs/demo-2"  # whatever that folder is
    (tmp_path / "runs" / "demo" / "plan.json").touch()
    assert free_folder() == "runs/demo"
    (tmp_path / "runs" / "demo" / "encoder.safetensors").touch()
    assert free_folder() == "runs/demo-2"


# Networks and numbers


def test_a_buffer_that_is_minus_infinity_is_trained_with(tmp_path, arrays):
    class Masked(Tiny):
        """As an attention mask is: infinite on purpose."""

        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

        def forward(self, x):
            return super().forward(x) * self.mask.softmax(0)[0]

    run = byol.pretrain(seeded(Masked), arrays, small_config(tmp_path, save_every_steps=1))
    assert run.plan.total_steps == 14
    assert run.encoder.net.mask[1] == float("-inf")


def test_a_representation_that_is_not_finite_ends_in_a_sentence(tmp_path, arrays):
    class Overflows(Tiny):
        passes = 0

        def forward(self, x):
            Overflows.passes += self.training and torch.is_grad_enabled()
            return super().forward(x) * (1.0 if self.training or Overflows.passes < 10 else float("inf"))

    with pytest.raises(
        byol.TrainingError, match=r"After step 7 the representation of some images is not finite.* checkpoint"
    ) as failure:
        byol.pretrain(seeded(Overflows), arrays, small_config(tmp_path))
    assert failure.value.exit_code == 4


def test_an_evaluation_size_that_the_network_cannot_take_is_refused_before_anything_is_written(
    tmp_path, arrays
):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12))
    with pytest.raises(byol.ConfigError, match="takes images of 16 pixels and none of 24"):
        byol.pretrain(net, arrays, small_config(tmp_path / "a", eval_size=24))
    assert not (tmp_path / "a").exists()


# When a run is saved


def saver_of(tmp_path: Path, **changes: object) -> Saver:
    net = Tiny()
    return Saver(tmp_path, net, torch.optim.SGD(net.parameters()), "plan", small_config(tmp_path, **changes))


def test_a_run_is_saved_by_number_and_whenever_five_minutes_have_passed(tmp_path):
    saver = saver_of(tmp_path)
    assert [step for step in range(1, 31) if saver.due(step, every=10)] == [10, 20, 30]
    saver.saved_at -= 301
    assert saver.due(31, every=10)
    assert saver.save(31)
    assert not saver.due(32, every=10)


def test_checkpoints_take_no_more_of_a_run_than_a_budget_sets_aside(tmp_path):
    saver = saver_of(tmp_path)
    saver.started -= 100
    saver.spent = 1.9
    assert saver.due(10, every=10)
    saver.spent = 2.5
    assert not saver.due(10, every=10)
    requested = saver_of(tmp_path, save_every_steps=5)
    requested.spent, requested.started = 2.5, requested.started - 100
    assert requested.due(5, every=5)
