"""What a newcomer does: a folder and a table as people have them, a first config, a short run, predictions."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from m3ae.training.progress import read_metrics
from tests.images.test_dicom import write as write_dicom
from tests.test_tutorials import m3ae

ROWS, NEW = 24, 4
SHORT = [
    *("training.max_steps=30", "training.batch_size=4", "training.validate_every=15", "training.checkpoint_every=30"),
    *("training.tracker=none", "model.size=tiny", "evaluation.resamples=0"),
]
CLASSES = ["größer", "normal"]


def pixels(number: int) -> np.ndarray:
    """Draw dark images for one class and bright ones for the other."""
    return np.random.default_rng(number).integers(60, 120, (40, 48)).astype(np.uint8) + 100 * np.uint8(number % 2)


def semicolons(folder: Path, numbers: range) -> list[str]:
    lines = ["Patient ID;Image Index;Diagnosis;Alter"]
    for number in numbers:
        Image.fromarray(pixels(number)).save(folder / f"img_{number}.PNG")
        lines.append(f"{number};C:\\Scans\\IMG_{number}.png;{CLASSES[number % 2]};40")
    (folder / "daten.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    return []


def two_views(folder: Path, numbers: range) -> list[str]:
    lines = ["id\tPA\tLateral view\tlabel"]
    for number in numbers:
        Image.fromarray(pixels(number)).save(folder / f"{number}_pa.png")
        Image.fromarray(pixels(number)[:, ::-1]).save(folder / f"{number}_lat.png")
        lines.append(f"study {number}\t{number}_PA\t{number}_LAT\t{CLASSES[number % 2]}")
    (folder / "studies.csv").write_text("\n".join(lines), encoding="utf-16")
    return []


def excel(folder: Path, numbers: range) -> list[str]:
    book = pytest.importorskip("openpyxl").Workbook()
    book.active.append(["Datei", "Befundung", "Befund"])
    for number in numbers:
        Image.fromarray(pixels(number)).save(folder / f"{number}.tif")
        book.active.append([number, CLASSES[number % 2], f"Herz {CLASSES[number % 2]}, Lunge frei."])
    book.save(folder / "Tabelle.xlsx")
    return ["--label-column", "Befundung", "--text-column", "Befund"]


def dicom(folder: Path, numbers: range) -> list[str]:
    lines = ["file_name,class"]
    for number in numbers:
        write_dicom(folder / f"1.2.{number}", pixels(number))
        lines.append(f"1.2.{number},{CLASSES[number % 2]}")
    (folder / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return []


@pytest.mark.parametrize(
    "make", [semicolons, *(pytest.param(make, marks=pytest.mark.slow) for make in (two_views, excel, dicom))]
)
def test_from_a_folder_to_predictions(
    make: Callable[[Path, range], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, numbers in (("mine", range(ROWS)), ("new", range(ROWS, ROWS + NEW))):
        Path(name).mkdir()
        options = make(Path(name), numbers)
    m3ae(["prepare", "folder", "--source", "mine", "--output", "data/mine", "--split", "stratified", *options])
    manifest = json.loads(Path("data/mine/manifest.json").read_text())
    assert manifest["rejected"] == {} and sum(split["rows"] for split in manifest["splits"].values()) == ROWS
    Path("mine.yaml").write_text(m3ae(["init", "data/mine", "--minutes", "0.1"]), encoding="utf-8")
    config = yaml.safe_load(Path("mine.yaml").read_text(encoding="utf-8"))
    views = ["pa", "lateral_view"] if make is two_views else ["image"]
    assert (config["task"], config["data"]["image_columns"]) == ("classification", views)
    assert sorted(config["classification"]["labels"]) == CLASSES
    m3ae(["train", "mine.yaml", *SHORT])
    metrics = {key: value for record in read_metrics(Path("runs/mine/metrics.jsonl")) for key, value in record.items()}
    assert metrics["step"] == 30 and {"validation/accuracy", "test/accuracy", "test/majority_accuracy"} <= {*metrics}
    assert not [name for name in metrics if "finding" in name]  # which only phantoms have
    m3ae(["predict", "runs/mine", "new", "--output", "predictions.csv"])
    with Path("predictions.csv").open(encoding="utf-8", newline="") as file:
        predictions = [*csv.DictReader(file)]
    assert len(predictions) == NEW
    for row in predictions:
        scores = [float(value) for name, value in row.items() if any(label in name for label in CLASSES)]
        assert len(scores) == 2 and sum(scores) == pytest.approx(1, abs=1e-3)
