import json

import pytest
import torch
from safetensors.torch import load_file

from m3ae.training.engine import build_accelerator
from m3ae.training.loop import NonFiniteLossError, train
from m3ae.training.progress import read_metrics
from m3ae.training.run_folder import RunFolder
from m3ae.training.trained_model import prepare_model

from .toy import Killed, ToyTask, checkpoint_weights, toy_config


def weights(folder, name="model"):
    return load_file(folder / name / "model.safetensors")


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def records(folder):
    return [{k: v for k, v in r.items() if k != "samples_per_second"} for r in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(toy_config(folder), ToyTask())


def test_a_run_leaves_its_records(uninterrupted, capsys):
    folder, result = uninterrupted
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "best",
        "model",
        "figures",
    }
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == ["losses.png", "toy.txt"]
    assert (result["step"], result["skipped_steps"], result["validation/size"]) == (8, 0, 64)
    (start,) = json.loads((folder / "environment.json").read_text())
    assert (start["step"], start["device"], start["seeds"]) == (0, "cpu", [0])
    assert start["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_metrics_are_logged_by_optimiser_step(uninterrupted):
    lines = records(uninterrupted[0])
    logged = [line for line in lines if "training/loss" in line]
    assert [line["step"] for line in logged] == [2, 3, 4, 6, 8]  # every 2, every checkpoint
    assert [line["step"] for line in lines if "validation/loss" in line] == [4, 8, 8]  # the last is the report
    for line in logged:
        assert line["training/loss"] == pytest.approx(line["training/square"] + line["training/absolute"])
    # one step of warm-up of 8, then linear: 1 - p with p = (step - 1) / 7, where step counts from 0
    assert [line["lr"] for line in logged] == pytest.approx([0.01, 0.01 * 6 / 7, 0.01 * 5 / 7, 0.01 * 3 / 7, 0.01 / 7])


@pytest.mark.parametrize("kill_at", [1, 6, 9, 12, 15])
def test_resuming_after_a_kill_is_exact(uninterrupted, tmp_path, kill_at, capsys):
    with pytest.raises(Killed):
        train(toy_config(tmp_path), ToyTask(kill_at=kill_at))
    assert not (tmp_path / "model").exists()
    result = train(toy_config(tmp_path), ToyTask(), resume=True)
    assert ("starting afresh" in capsys.readouterr().out) == (kill_at < 6)
    folder, expected = uninterrupted
    assert result == expected
    assert_equal(weights(tmp_path), weights(folder))
    assert_equal(weights(tmp_path, "best"), weights(folder, "best"))
    assert records(tmp_path) == records(folder)


def test_the_average_of_the_weights_is_saved_and_resumed_exactly(uninterrupted, tmp_path, capsys):
    config = toy_config(tmp_path / "average", ema_decay=0.5, checkpoint_every=1, keep_checkpoints=9)
    result = train(config, ToyTask())
    steps = [checkpoint_weights(path) for path in sorted((tmp_path / "average" / "checkpoints").iterdir())]
    assert_equal(steps[-1], weights(uninterrupted[0]))  # training does not notice the average
    expected = dict(ToyTask().model.state_dict())
    for number, trained in enumerate(steps, start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = {name: decay * value + (1 - decay) * trained[name] for name, value in expected.items()}
    for name, value in weights(tmp_path / "average").items():
        torch.testing.assert_close(value, expected[name])
    with pytest.raises(Killed):
        train(toy_config(tmp_path / "killed", ema_decay=0.5), ToyTask(kill_at=12))
    assert train(toy_config(tmp_path / "killed", ema_decay=0.5), ToyTask(), resume=True) == result
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "average"))
    assert_equal(weights(tmp_path / "killed", "best"), weights(tmp_path / "average", "best"))
    assert records(tmp_path / "killed")[-1] == records(tmp_path / "average")[-1]


def test_an_average_starts_and_ends_with_any_checkpoint(uninterrupted, tmp_path, capsys):
    checkpoint = uninterrupted[0] / "checkpoints" / "step-00000006"
    train(toy_config(tmp_path / "started", ema_decay=0.5), ToyTask(), resume=checkpoint)
    assert "training.ema_decay changes from None to 0.5" in capsys.readouterr().out
    checkpoints = tmp_path / "started" / "checkpoints"
    assert_equal(checkpoint_weights(checkpoints / "step-00000008"), weights(uninterrupted[0]))
    assert not torch.equal(weights(tmp_path / "started")["body.weight"], weights(uninterrupted[0])["body.weight"])
    train(toy_config(tmp_path / "ended"), ToyTask(), resume=checkpoints / "step-00000008")
    assert_equal(weights(tmp_path / "ended"), weights(uninterrupted[0]))


def test_the_average_has_the_trained_weights_alone(tmp_path):
    task = ToyTask()
    task.model.body.requires_grad_(False)
    config = toy_config(tmp_path, ema_decay=0.9)
    trained = prepare_model(task.model, config, build_accelerator(config, RunFolder(tmp_path)))
    assert trained.average.keys() == {"head.weight", "head.bias"}
    assert trained.whole.body.weight is task.model.body.weight
    assert trained.whole.head.weight is not task.model.head.weight


def test_resuming_a_finished_run_writes_the_model_again(uninterrupted, tmp_path):
    config = toy_config(tmp_path)
    expected = train(config, ToyTask())
    (tmp_path / "model" / "model.safetensors").unlink()
    task = ToyTask()
    assert train(config, task, resume=True) == expected
    assert task.visits == []
    assert_equal(weights(tmp_path), weights(uninterrupted[0]))


def test_a_checkpoint_of_another_folder_can_be_continued(uninterrupted, tmp_path):
    checkpoint = uninterrupted[0] / "checkpoints" / "step-00000006"
    train(toy_config(tmp_path), ToyTask(), resume=checkpoint)
    assert_equal(weights(tmp_path), weights(uninterrupted[0]))


def test_changed_settings_are_announced_and_in_force(tmp_path, capsys):
    settings = {"batch_size": 4, "max_steps": 9, "checkpoint_every": 5}
    before = toy_config(tmp_path / "before", {"weight_decay": 0.0, "schedule": "constant"}, **settings)
    train(before, ToyTask(dropout=0.0))
    checkpoint = tmp_path / "before" / "checkpoints" / "step-00000005"
    changes = {"gradient_accumulation_steps": 3, "max_steps": 6}  # 5 steps of 2 micro-batches are no multiple of 3
    after = toy_config(tmp_path / "after", {"lr": 0.1, "weight_decay": 10.0, "warmup": 0}, **settings | changes)
    task = ToyTask(dropout=0.0)
    train(after, task, resume=checkpoint)
    printed = capsys.readouterr().out
    assert "optimizer.lr changes from 0.01 to 0.1" in printed
    assert "training.gradient_accumulation_steps changes from 2 to 3" in printed
    assert len(task.visits) == 3
    # The last of 6 linear steps has a sixth of the rate; weights shrink by 10 · 0.1 / 6, beside AdamW's own step.
    start, end = checkpoint_weights(checkpoint)["body.weight"], weights(tmp_path / "after")["body.weight"]
    assert not torch.equal(start, end)
    assert (end - start * (1 - 10 * 0.1 / 6)).abs().max() < 2 * 0.1 / 6


def test_validation_does_not_disturb_training(uninterrupted, tmp_path):
    train(toy_config(tmp_path, validate_every=1, checkpoint_every=100), ToyTask())
    assert_equal(weights(tmp_path), weights(uninterrupted[0]))


def test_accumulation_averages_micro_batches(tmp_path):
    small = toy_config(tmp_path / "small", batch_size=2, gradient_accumulation_steps=2, log_every=1)
    large = toy_config(tmp_path / "large", batch_size=4, gradient_accumulation_steps=1, log_every=1)
    for config in (small, large):
        train(config, ToyTask(dropout=0.0, samples=4))
    for name, value in weights(tmp_path / "small").items():
        torch.testing.assert_close(value, weights(tmp_path / "large")[name])


def test_workers_give_the_same_run(uninterrupted, tmp_path):
    config = toy_config(tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"num_workers": 1})})
    train(config, ToyTask())
    assert_equal(weights(tmp_path), weights(uninterrupted[0]))


def test_a_non_finite_step_changes_nothing_and_is_counted(tmp_path, capsys):
    config = toy_config(tmp_path, optimizer={"schedule": "constant", "warmup": 0}, max_steps=2, log_every=1)
    result = train(config, ToyTask(nan_at=[3]))
    assert result["skipped_steps"] == 1
    assert "step 2 skipped, not finite: process 0: loss = nan, square = nan, absolute = nan" in capsys.readouterr().out
    first, second = [line for line in records(tmp_path) if "lr" in line]
    assert (first["skipped_steps"], second["skipped_steps"]) == (0, 1)
    assert "training/loss" not in second
    one_step = toy_config(tmp_path / "one", optimizer={"schedule": "constant", "warmup": 0}, max_steps=1)
    train(one_step, ToyTask())
    assert_equal(weights(tmp_path), weights(tmp_path / "one"))


def test_too_many_non_finite_steps_in_a_row_stop_the_run(tmp_path):
    task = ToyTask(nan_at=[2, 4, 8, 10, 12])
    with pytest.raises(
        NonFiniteLossError, match=r"3 steps in a row, up to step 7 \(process 0: loss = nan.*"
    ) as caught:
        train(toy_config(tmp_path, max_skipped_steps=3), task)
    assert "last finite values: loss = " in str(caught.value)
    assert "lower optimizer.lr" in str(caught.value)


@pytest.mark.parametrize(("mode", "best", "step"), [("min", 1.0, 2), ("max", 3.0, 4)])
def test_the_best_model_is_kept(tmp_path, mode, best, step):
    scores = iter([9.0, 1.0, 3.0, float("nan"), 2.0, 0.0])  # before the first step; the last is the report's
    task = ToyTask()
    task.evaluate = lambda *_: {"score": next(scores)}
    settings = {"best_metric": "validation/score", "best_mode": mode, "checkpoint_every": 2, "keep_checkpoints": 9}
    assert train(toy_config(tmp_path, validate_every=2, **settings), task)["best"] == best
    assert_equal(weights(tmp_path, "best"), checkpoint_weights(tmp_path / f"checkpoints/step-0000000{step}"))


def test_an_unknown_best_metric_names_those_there_are(tmp_path):
    task = ToyTask()
    with pytest.raises(ValueError, match=r"got validation/auc, expected one of validation/loss, validation/size$"):
        train(toy_config(tmp_path, best_metric="validation/auc"), task)
    assert not task.visits, "a step was taken"


def test_a_used_folder_is_not_overwritten(uninterrupted):
    with pytest.raises(FileExistsError, match="pass --resume to continue it, or another output_dir"):
        train(toy_config(uninterrupted[0]), ToyTask())


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*absent"):
        train(toy_config(tmp_path), ToyTask(), resume=tmp_path / "absent")


def test_tensorboard_and_bf16(tmp_path):
    train(toy_config(tmp_path, max_steps=1, tracker="tensorboard", mixed_precision="bf16"), ToyTask())
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_an_absent_tracker_says_how_to_install_it(tmp_path, monkeypatch, tracker):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pip install 'm3ae\[{tracker}\]'"):
        train(toy_config(tmp_path, tracker=tracker), ToyTask())


@pytest.mark.filterwarnings("default")  # of the tracker's own libraries
def test_mlflow_gets_the_metrics(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    train(toy_config(tmp_path / "run", max_steps=1, tracker="mlflow"), ToyTask())
    (experiment,) = mlflow.search_experiments(filter_string="name = 'pretraining'")
    (found,) = mlflow.MlflowClient().search_runs([experiment.experiment_id])
    assert found.info.run_name == "run" and found.info.status == "FINISHED"
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert found.data.metrics["training/loss"] == pytest.approx(logged[0]["training/loss"])


def test_gradient_checkpointing_needs_a_model_that_supports_it(tmp_path):
    with pytest.raises(ValueError, match="ToyModel does not support it"):
        train(toy_config(tmp_path, gradient_checkpointing=True), ToyTask())
