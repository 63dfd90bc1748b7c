"""Checkpoints that were cut short, changed or robbed of a part after they were written, and disks without room."""

import json
import random
import resource
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from m3ae.files import CHECKSUMS, find_damage
from m3ae.training.checkpoint import list_checkpoints
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics

from ..training.toy import ToyTask, checkpoint_weights, toy_config

WEIGHTS, MEANS, SQUARES = (f"shard-00001-model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
PARTS = ("SHA256SUMS", "random_states_0.pkl", WEIGHTS, MEANS, SQUARES, "state.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps with checkpoints after 6 and 8."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, train(toy_config(folder), ToyTask())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path, position=None):
    contents = bytearray(path.read_bytes())
    position = len(contents) * 4 if position is None else position
    contents[position // 8] ^= 1 << position % 8
    path.write_bytes(contents)


def remove(path):
    path.unlink()


def test_every_part_is_watched(finished, tmp_path):
    checkpoint = shutil.copytree(list_checkpoints(finished[0])[-1], tmp_path / "step-00000008")
    assert tuple(sorted(path.name for path in checkpoint.iterdir())) == PARTS
    assert find_damage(checkpoint, last="state.json") is None
    draw = random.Random(0)
    for part in PARTS:
        path = checkpoint / part
        contents = path.read_bytes()
        flips = [partial(flip_a_bit, position=draw.randrange(len(contents) * 8)) for _ in range(40)]
        for harm in [cut, remove, *flips]:
            harm(path)
            problem = find_damage(checkpoint, last="state.json")
            assert problem and (part == CHECKSUMS or problem.startswith(part))
            path.write_bytes(contents)
    *lines, _ = (checkpoint / CHECKSUMS).read_text().splitlines(keepends=True)
    (checkpoint / CHECKSUMS).write_text("".join(lines))  # cut exactly between two lines
    assert find_damage(checkpoint, last="state.json") == "SHA256SUMS is cut short"


@pytest.mark.parametrize(
    ("part", "harm", "problem"),
    [
        (SQUARES, cut, f"{SQUARES} has changed since it was written"),
        (WEIGHTS, flip_a_bit, f"{WEIGHTS} has changed since it was written"),
        ("state.json", remove, "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, capsys, part, harm, problem):
    folder, expected = finished
    run = shutil.copytree(folder, tmp_path / "run")
    harm(run / "checkpoints" / "step-00000008" / part)
    assert train(toy_config(run), ToyTask(), resume=True) == expected
    (said,) = [line for line in capsys.readouterr().out.splitlines() if " is damaged" in line]
    assert said == (
        f"step-00000008 is damaged ({problem}): falling back to the checkpoint before; it is now step-00000008.damaged"
    )
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008", "step-00000008.damaged"]
    for name in ("model", "best"):
        was, found = (load_file(root / name / "model.safetensors") for root in (folder, run))
        assert all(torch.equal(was[key], found[key]) for key in was)
    was, found = (checkpoint_weights(root / "checkpoints" / "step-00000008") for root in (folder, run))
    assert all(torch.equal(was[key], found[key]) for key in was)


def test_damage_in_another_folder_is_passed_over_and_left_alone(finished, tmp_path, capsys):
    other = shutil.copytree(finished[0], tmp_path / "other")
    cut(other / "checkpoints" / "step-00000008" / "state.json")
    train(toy_config(tmp_path / "run"), ToyTask(), resume=other)
    assert "falling back to the checkpoint before\n" in capsys.readouterr().out
    assert len(list_checkpoints(other)) == 2


def test_without_any_intact_checkpoint_all_are_named(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    for checkpoint in list_checkpoints(run):
        remove(checkpoint / MEANS)
    with pytest.raises(ValueError, match=rf"step-00000008: {MEANS} is missing; step-00000006: .*move this one"):
        train(toy_config(run), ToyTask(), resume=True)
    assert len(list_checkpoints(run)) == 2  # nothing was set aside


@pytest.fixture
def disk_is_full():
    """A task during whose given micro-batches no file may grow beyond 250 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FullDisk(ToyTask):
        def __init__(self, full):
            super().__init__()
            self.full = full

        def collate(self, samples):
            limit = 250 if len(self.visits) in self.full else limits[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            return super().collate(samples)

    yield FullDisk
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_costs_what_was_to_be_written_and_nothing_else(finished, disk_is_full, tmp_path, capsys):
    folder, expected = finished
    result = train(toy_config(tmp_path, checkpoint_every=2), disk_is_full(range(4, 10)))  # steps 3 to 5
    said = capsys.readouterr().out
    assert "warning: the checkpoint of step 4 was not written: [Errno 27] File too large; going on" in said
    assert "warning: the best model so far at step 4: [Errno 2" in said
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000008"]
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".*.incomplete"))
    steps = {line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert {6, 8} <= steps and 4 not in steps
    was, found = (load_file(root / "model" / "model.safetensors") for root in (folder, tmp_path))
    assert all(torch.equal(was[key], found[key]) for key in was)
    best = json.loads((tmp_path / "checkpoints" / "step-00000008" / "state.json").read_text())["training"]["best"]
    assert best == result["best"] == result["validation/loss"]  # that of step 4 is not remembered: it was not kept
    assert (result["step"], expected["step"]) == (8, 8)


def test_older_checkpoints_outlive_a_full_disk(disk_is_full, tmp_path, capsys):
    with pytest.raises(OSError, match="No space left"):  # which the final model needs
        train(toy_config(tmp_path, checkpoint_every=1, keep_checkpoints=1), disk_is_full(range(4, 99)))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
    assert find_damage(list_checkpoints(tmp_path)[0], last="state.json") is None
    assert not (tmp_path / "model").exists()
