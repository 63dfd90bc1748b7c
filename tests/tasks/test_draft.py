"""The first config of a prepared folder."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from m3ae.data.pictures import describe_labels, label_counts
from m3ae.tasks import draft
from m3ae.tasks.draft import draft_config, read_contents
from m3ae.training.config import load_config
from tests.data.small_folder import picture, stored, write_splits


def study(number: int, **cells: Any) -> dict[str, Any]:
    row = {"id": f"{number}", "image": stored(picture(number, (96, 80))), "text": ["a report of ten words"] * 2}
    return row | {"labels": ["a", "b"] if number % 3 else ["a"], "site": "xy"[number % 2], **cells}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_splits(tmp_path / "set", train=[*map(study, range(30))], validation=[study(30)], test=[study(31)])


def seconds_of(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> list[Any]:
    """Let each considered model take so many seconds a step; return the configs."""
    configs: list[Any] = []

    def time_step(config: Any) -> float:
        configs.append(config)
        return seconds[len(configs) - 1]

    monkeypatch.setattr(draft, "time_step", time_step)
    return configs


def test_contents_decide_what_can_be_learnt(folder: Path) -> None:
    contents = read_contents(folder)
    assert contents.tasks == ["classification", "pretraining", "retrieval", "report_generation", "generation"]
    assert contents.rows == {"train": 30, "validation": 1, "test": 1}
    assert (contents.images, contents.side) == (["image"], 80)
    assert contents.labels == {"labels": ["a", "b"], "site": ["x", "y"]} and contents.multi_label == {"labels"}
    assert contents.is_mixed and contents.words == 5 and not contents.questions


@pytest.mark.parametrize("task", draft.EPOCHS)
def test_the_config_of_each_task_parses(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [study(number, question="Where?", answer="here" if number % 2 else "there") for number in range(30)]
    folder = write_splits(tmp_path / "set", train=rows, validation=rows[:12], test=[])
    seconds_of(monkeypatch, 0.1, 0.1, 0.1, 9)
    (tmp_path / "a.yaml").write_text(draft_config(folder, task), encoding="utf-8")
    config = load_config(tmp_path / "a.yaml")
    assert (config.task, config.data.path) == (task, folder)
    assert config.training.validate_every == config.training.max_steps // 10
    assert config.training.best_metric != "validation/loss" or task in ("pretraining", "generation")
    assert not getattr(config.evaluation, "word_groups", None)


@pytest.mark.parametrize(
    ("seconds", "minutes", "steps", "size"),
    [
        ((1.0, 2.5), 10, 200, ("mini", 80)),  # the second is too slow for all steps
        ((1.0,), 2, 84, ("mini", 80)),  # nor does the first have the time
        ((0.01, 0.1), 10, 200, ("small", 80)),
    ],
)
def test_model_and_steps_fit_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], minutes: float, steps: int, size: Any
) -> None:
    monkeypatch.setattr(draft, "SIZES", (("mini", 96, 1.0), ("small", 224, 2.0)))
    configs = seconds_of(monkeypatch, *seconds)
    values = yaml.safe_load(text := draft_config(folder, minutes=minutes))
    assert len(configs) == len(seconds)
    assert values["training"]["max_steps"] == steps
    assert (values["model"]["size"], values["model"]["overrides"]["image_config"]["image_size"]) == size
    assert values["model"]["overrides"]["image_config"]["resize"] == "pad"  # all images are wider than high
    assert ("--minutes 5 would do for 200 steps" in text) == (steps < 200)
    assert values["classification"] == {"label_column": "labels", "multi_label": True, "labels": ["a", "b"]}
    assert "best_metric" not in values["training"]  # one row of validation


def test_what_cannot_be_learnt_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--task: the rows of .*set cannot teach question_answering, expected"):
        draft_config(folder, "question_answering")
    new = write_splits(tmp_path / "new", train=[], test=[study(0)])
    with pytest.raises(ValueError, match=r"new has no training rows: it has \{'test': 1\}; prepare it without"):
        draft_config(new)


def test_labels_are_listed(folder: Path) -> None:
    rows = datasets.Dataset.from_list([{"labels": ["a", "b"]}] * 3 + [{"labels": ["a"]}])
    assert describe_labels(label_counts({"train": rows, "test": rows.select([3])})) == (
        "labels, train: a 4, b 3\nlabels, test: a 1\n"
    )
