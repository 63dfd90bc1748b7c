"""The example of each page of the Python interface runs as it is written, and every public name has a place."""

import re
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

import m3ae
from m3ae.metrics.reports import REPORT_METRICS
from m3ae.models.modalities import KINDS
from m3ae.models.objectives import OBJECTIVES
from m3ae.training.config import dump_config
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].glob("docs/api/*.md")}
EXAMPLE = re.compile(r"<!-- example -->\n```python\n(.*?)```", re.DOTALL)
NEED_RUNS = {"training", "settings", "evaluation", "inference", "search", "zero_shot"}
EXAMPLES = {name: code for name, text in PAGES.items() for code in EXAMPLE.findall(text)}


def test_every_public_name_has_a_place() -> None:
    listed = {name for text in PAGES.values() for name in re.findall(r"(?m)^::: m3ae\.(\w+)$", text)}
    without = {"M3AEImageProcessor"}  # a part of the processor
    assert set(m3ae.__all__) - without <= listed and EXAMPLES.keys() == PAGES.keys() - {"published"}


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - NEED_RUNS))
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with patch.dict(REPORT_METRICS), patch.dict(KINDS), patch.dict(OBJECTIVES):
        exec(EXAMPLES[name], found := {})
    if name == "models":
        assert found["features"].shape == (4, 2 * found["config"].hidden_size)
    if name == "latent":
        assert found["blood"].shape == (1, 3)


def test_images_are_found_and_classified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLES["data"], {})
    save_model(Path("runs/contrast/model"), m3ae.M3AEForPreTraining, itc_weight=1.0)
    for name in ("a", "b"):
        Image.new("L", (40, 30), 90).save(f"{name}.png")
    exec(EXAMPLES["search"], found := {})
    assert found["hit"].texts
    exec(EXAMPLES["zero_shot"], classified := {})
    assert classified["classifier"].names == ["effusion", "nodule"]


def test_a_run_is_trained_measured_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"{n}", "image": 20 * n, "text": "a text", "label": "ab"[n % 2]} for n in range(8)]
    write_splits(Path("data"), {"train": rows, "validation": rows[:4], "test": rows[4:]})
    sections = {"data": {"text_column": None, "image_columns": ["image"]}, "classification": {"label_column": "label"}}
    config = tiny_finetuning("classification", Path("data"), Path("runs/mine"), **sections)
    Path("mine.yaml").write_text(dump_config(config), encoding="utf-8")
    for name in ("a", "b"):
        Image.new("L", (40, 30), 90).save(f"{name}.png")
    exec(EXAMPLES["settings"], read := {})
    assert read["config"].optimizer.lr == 1e-4
    exec(EXAMPLES["training"], trained := {})
    exec(EXAMPLES["evaluation"], measured := {})
    assert measured["metrics"]["test/accuracy"] == trained["results"]["test/accuracy"]
    exec(EXAMPLES["inference"], used := {})
    assert [*used["predictions"][0]["probabilities"]] == ["a", "b"]
