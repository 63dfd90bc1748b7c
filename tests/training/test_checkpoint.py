import pytest
import torch
from torch import nn

from m3ae.training.checkpoint import complete_folder, find_checkpoint
from m3ae.training.loop import train

from .toy import Killed, ToyTask, toy_config


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for name in ("step-00000002", "step-00000010", "step-00000020.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "state.json").touch()
    (tmp_path / "checkpoints" / "step-00000030").mkdir()
    newest = tmp_path / "checkpoints" / "step-00000010"
    assert find_checkpoint(tmp_path) == newest
    assert find_checkpoint(newest) == newest


def test_a_folder_appears_only_when_complete(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with complete_folder(target) as folder:
            (folder / content).touch()
    with pytest.raises(RuntimeError), complete_folder(target) as folder:
        (folder / "third").touch()
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["second"]


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
