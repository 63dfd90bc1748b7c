"""Runs on studies of two views, either of them missing, through the loop of every task."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from m3ae.data.prepared import Manifest, SplitInfo
from m3ae.data.samples import SampleDataset, trunk_columns
from m3ae.evaluation.report import LatentReport
from m3ae.tasks import task_class
from m3ae.tasks.evaluation import evaluate
from m3ae.tasks.generation import Generation
from m3ae.tasks.pretraining import PreTraining
from m3ae.training.config import ConfigError, RunConfig, make_config
from m3ae.training.loop import train

VIEWS = ["frontal", "lateral"]
FEATURES = datasets.Features(
    {"id": datasets.Value("string")}
    | {view: datasets.Image() for view in VIEWS}
    | {"text": datasets.List(datasets.Value("string")), "finding": datasets.Value("string")}
    | {name: datasets.Value("string") for name in ("question", "answer", "answer_type")}
)


def png(value: int | None) -> dict[str, Any] | None:
    buffer = io.BytesIO()
    if value is not None:
        noise = np.random.default_rng(value).integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
    return None if value is None else {"bytes": buffer.getvalue(), "path": None}


def row(split: int, number: int) -> dict[str, Any]:
    """One in three studies lacks its lateral view, one its frontal one."""
    name, value = f"{split}-{number}", 20 * split + 2 * number
    finding = "effusion" if number % 2 else "clear"
    return {
        "id": name,
        "frontal": png(None if number % 3 == 1 else value),
        "lateral": png(None if number % 3 == 2 else value + 1),
        "text": [f"{finding} lungs in study {number}"],
        "finding": finding,
        "question": f"is there an effusion in study {number}?",
        "answer": "yes" if number % 2 else "no",
        "answer_type": "closed",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, infos = tmp_path_factory.mktemp("data"), {}
    for number, split in enumerate(("train", "validation", "test")):
        rows = [row(number, place) for place in range(6)]
        columns = {name: [own[name] for own in rows] for name in FEATURES}
        table = datasets.Dataset.from_dict(columns, features=FEATURES).data.table
        pq.write_table(table, path / f"{split}.parquet")
        infos[split] = SplitInfo(6, {"frontal": 4, "lateral": 4}, None, 0, {f"{split}.parquet": ""})
    (path / "manifest.json").write_text(Manifest("test", {}, "", infos, {}, {}).to_json())
    return path


def run(task: str, folder: Path, output: Path, **sections: Any) -> RunConfig:
    training = {"mixed_precision": "no", "max_steps": 2, "batch_size": 3, "validate_every": 2, "checkpoint_every": 2}
    options: dict[str, Any] = {
        "task": task,
        "output_dir": output,
        "data": {"path": folder, "image_columns": VIEWS, "views": "all", "text_column": "text"},
        "tokenizer": {"vocab_size": 300},
        "model": {"size": "tiny", "overrides": {}},
        "training": training | {"log_every": 1, "tracker": "none"},
        "evaluation": {},
    }
    for name, values in sections.items():
        options[name] = {**options.get(name, {}), **values}
    return make_config(options)


LATENT = {
    "size": 3,
    "modalities": {"frontal": {"kind": "image"}, "lateral": {"kind": "image"}, "text": {"kind": "text"}},
}
RUNS: dict[str, dict[str, Any]] = {
    "pretraining": {"model": {"size": "tiny", "overrides": {"latent": LATENT, "itc_weight": 1.0}}},
    "question_answering": {"data": {"text_column": "question"}},
    "classification": {"classification": {"label_column": "finding"}},
    "retrieval": {"model": {"size": "tiny", "overrides": {"num_negatives": 1}}},
}


@pytest.mark.parametrize("task_name", RUNS)
def test_a_run_of_every_task(folder: Path, tmp_path: Path, task_name: str) -> None:
    sections = RUNS[task_name]
    config = run(task_name, folder, tmp_path, **sections | {"data": sections.get("data", {}) | {"missing_rate": 0.5}})
    task = task_class(config.task).from_config(config)
    assert task.model.config.views == VIEWS
    metrics = train(config, task)
    assert np.isfinite(metrics["test/loss"])
    if task_name == "pretraining":
        assert {"test/mim_psnr", "test/nll_lateral", "test/shuffled_mim_loss"} <= metrics.keys()
    loaded = type(task.model).from_pretrained(tmp_path / "model")
    assert loaded.config.views == VIEWS and hasattr(loaded.base_model, "view_types")


@pytest.mark.parametrize("names", [VIEWS, ["image"]])
def test_evaluation_measures_both_halves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """The latent head reads the trunk's columns, whatever its modalities are called."""
    monkeypatch.setattr(Generation, "_draw", lambda *arguments: [])  # a test of its own looks at figures
    images = {name: {"kind": "image"} for name in names}
    latent = {"size": 3, "modalities": images | {"text": {"kind": "text", "max_length": 8}}}
    options = {"model": {"size": "tiny", "overrides": {"latent": latent}}}
    options["data"] = {"views": "all" if names == VIEWS else "one"}
    task = PreTraining.from_config(run("pretraining", folder, tmp_path, **options))
    task.save(task.model, tmp_path / "model", {})
    options |= {"model": {"path": str(tmp_path / "model")}}
    options["evaluation"] = {"latent": {"importance_samples": [2]}}
    metrics = evaluate(run("pretraining", folder, tmp_path, **options))
    assert {"test/shuffled_mlm_loss", "test/kl", "test/latent_elbo", "test/latent_kl"} <= metrics.keys()
    report = LatentReport.read(tmp_path / "evaluation" / "latent.json")
    assert report.subsets[-1].given == [*names, "text"] and report.subsets[-1].rows == (2 if names == VIEWS else 6)


def test_a_batch_has_each_view_in_its_place(folder: Path) -> None:
    data = SampleDataset(folder, "train", trunk_columns(VIEWS[::-1], "text", VIEWS))
    assert list(data.first(0).cells) == [*VIEWS, "text"]
    task = task_class("pretraining").from_config(run("pretraining", folder, folder))
    batch = task.evaluation_collate([data.first(number, number) for number in range(3)])
    assert batch["pixel_values"].shape == (3, 2, 3, 32, 32) and batch["image_noise"].shape == (3, 2, 16)
    assert batch["image_present"].tolist() == [[True, True], [False, True], [True, False]]
    assert not batch["pixel_values"][1, 0].any() and batch["pixel_values"][1, 1].any()
    stored = Image.open(io.BytesIO(png(1)["bytes"]))  # type: ignore[index]
    expected = task.processor.image_processor(stored, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(batch["pixel_values"][0, 1], expected, atol=1e-5, rtol=0)
    assert len(set(batch["image_ids"].tolist())) == 3


def test_training_alone_hides_modalities_and_leaves_one(folder: Path) -> None:
    config = run("pretraining", folder, folder, data={"missing_rate": 1.0})
    task, data = (
        task_class("pretraining").from_config(config),
        SampleDataset(folder, "train", trunk_columns(VIEWS, "text", VIEWS)),
    )
    samples = [data.first(0, seed) for seed in range(40)]
    for collate, left in ((task.collate, 1), (task.evaluation_collate, 3)):
        batch = collate(samples)
        present = torch.cat([batch["image_present"], batch["text_present"][:, None]], 1)
        assert (present.sum(1) == left).all() and present.any(0).all()


def test_other_columns_than_the_views_are_refused(folder: Path, tmp_path: Path) -> None:
    config = run("pretraining", folder, tmp_path, data={"also": [{"path": folder, "image_columns": ["image"]}]})
    with pytest.raises(ValueError, match=r"image_columns: got \['image'\] with data.views=all, expected some of"):
        task_class(config.task).from_config(config)


def test_views_are_one_or_all(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.*views.*'one' or 'all'"):
        run("pretraining", folder, tmp_path, data={"views": "both"})
