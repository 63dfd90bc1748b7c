import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from m3ae.files import CHECKSUMS, write_checksums
from m3ae.training.checkpoint import list_checkpoints, recorded_precision
from m3ae.training.loop import train
from m3ae.training.trained_model import is_moment, read_tensors, stored_shapes

from .toy import Killed, ToyTask, toy_config


def test_the_checkpoints_of_a_run_are_listed(tmp_path):
    assert list_checkpoints(tmp_path) == []
    for name in ("step-00000010", "step-00000002", "step-00000020.tmp", "step-00000030.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    checkpoints = [tmp_path / "checkpoints" / name for name in ("step-00000002", "step-00000010")]
    assert list_checkpoints(tmp_path) == checkpoints
    assert list_checkpoints(checkpoints[0]) == checkpoints[:1]
    renamed = checkpoints[1].rename(tmp_path / "kept")
    for content in ("", "[]", '{"config": []}', "[" * 100_000):
        (renamed / "state.json").write_text(content)
        assert list_checkpoints(renamed) == [renamed] and recorded_precision([renamed]) is None


def test_what_somebody_has_put_beside_or_into_checkpoints_stays(tmp_path):
    folder, config = tmp_path / "checkpoints", toy_config(tmp_path)
    with pytest.raises(Killed):
        train(config, ToyTask(kill_at=2 * config.training.checkpoint_every))
    first = list_checkpoints(tmp_path)[0]
    (first / "notes.txt").write_text("mine")
    for name in ("step-notes.tmp", f"{first.name}.damaged"):
        (folder / name).mkdir()
        (folder / name / "notes.txt").write_text("mine")
    train(config, ToyTask(), resume=True)
    assert not first.exists()
    kept = {path.parent.name for path in folder.rglob("notes.txt")}
    assert kept == {"step-notes.tmp", f"{first.name}.damaged", f"{first.name}.kept"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ToyTask(width=16), r"3 tensors differ, first body.weight is \(8, 4\) in the checkpoint and \(16, 4\) in the"),
        (ToyTask(), r"1 tensors differ, first extra.weight is absent in the checkpoint and \(2, 2\) in the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, task, message):
    train(toy_config(tmp_path, max_steps=1), ToyTask())
    if task.model.body.out_features == 8:
        task.model.extra = nn.Linear(2, 2, bias=False)
    with pytest.raises(ValueError, match=f"{message}.*model.size"):
        train(toy_config(tmp_path, max_steps=2), task, resume=True)


def test_a_checkpoint_of_whole_files_is_continued_exactly(tmp_path):
    """As this package wrote them before it used torch's distributed checkpoint."""
    train(toy_config(tmp_path / "expected"), ToyTask())
    with pytest.raises(Killed):
        train(toy_config(tmp_path / "run"), ToyTask(kill_at=7))
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    tensors = {name: torch.empty(shape) for name, shape in stored_shapes(checkpoint).items()}
    read_tensors(tensors, checkpoint)
    for shard in [*checkpoint.glob("*.safetensors"), checkpoint / CHECKSUMS]:
        shard.unlink()
    for name, moments in (("model", False), ("optimizer", True)):
        kind = {key: value for key, value in tensors.items() if is_moment(key) == moments}
        save_file(kind, checkpoint / f"{name}.safetensors")
    write_checksums(checkpoint, last="state.json")
    train(toy_config(tmp_path / "run"), ToyTask(), resume=True)
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("expected", "run"))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_tied_weights_survive(tmp_path):
    tasks = [ToyTask(width=4, kill_at=kill_at) for kill_at in (None, 14, None)]
    for task in tasks:
        task.model.body.bias = nn.Parameter(torch.zeros(4))
        task.model.tied = task.model.body
        task.save = lambda *_: None
    config, resumed = toy_config(tmp_path / "a"), toy_config(tmp_path / "b")
    train(config, tasks[0])
    with pytest.raises(Killed):
        train(resumed, tasks[1])
    train(resumed, tasks[2], resume=True)
    assert torch.equal(tasks[0].model.tied.weight, tasks[2].model.body.weight)
