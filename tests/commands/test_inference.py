"""The commands that use a trained model, through the real entry point."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from m3ae import M3AEForClassification, M3AEForPreTraining, M3AEForQuestionAnswering
from m3ae.cli import cli
from m3ae.inference import inputs, predict
from m3ae.training.run_folder import RunFolder
from tests.models.tiny_latent import latent_model
from tests.tasks.tiny_finetuning import save_model, tiny_finetuning, write_splits

TEXT = "large nodule on the left"
EXTRAS = (
    "accelerate",
    "datasets",
    "evaluate",
    "gradio",
    "matplotlib",
    "pyarrow",
    "pydantic",
    "scipy",
    "sklearn",
)


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models: `vqa`, `classes`, `masked/model`, `contrastive` and `latent`."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "vqa", M3AEForQuestionAnswering, [TEXT], id2label={0: "yes", 1: "no", 2: "left"})
    save_model(folder / "classes", M3AEForClassification, [TEXT], id2label={0: "mass", 1: "none"})
    save_model(folder / "masked" / "model", M3AEForPreTraining, [TEXT])
    save_model(folder / "contrastive", M3AEForPreTraining, [TEXT], itc_weight=1.0)
    latent_model().save_pretrained(folder / "latent")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images and a table with their texts."""
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(draw.integers(0, 255, (40, 32), dtype=np.uint8)).save(folder / name)
    (folder / "metadata.csv").write_text(f"file_name,text\na.png,{TEXT}\nb.png,no finding\n")
    return folder


def test_predict_answers(models: Path, images: Path, tmp_path: Path) -> None:
    common = ("predict", models / "vqa", images / "a.png", "--question", "Is it large?")
    results = json.loads(run(*common, images / "b.png", "--question", "Which side?", "--json").stdout)
    assert [(Path(row["id"]).name, row["question"]) for row in results] == [
        ("a.png", "Is it large?"),
        ("a.png", "Which side?"),
        ("b.png", "Is it large?"),
        ("b.png", "Which side?"),
    ]
    assert {answer["answer"] for answer in results[0]["answers"]} == {"yes", "no", "left"}
    lines = run(*common, "--top-k", 1, "--attention", tmp_path / "maps").stdout.splitlines()
    best = results[0]["answers"][0]
    assert lines[0] == f"{images / 'a.png'}: Is it large?: {best['answer']} {best['probability']:.3f}"
    assert lines[1] == str(tmp_path / "maps")
    with Image.open(tmp_path / "maps" / "00001.png") as picture:
        assert picture.width > picture.height


def test_predict_of_a_folder_lists_what_cannot_be_used(models: Path, images: Path, tmp_path: Path) -> None:
    (images / "pdf.png").write_text("%PDF-1.7")
    (images / "metadata.csv").write_text("image,label\nA.PNG,x\nb,\npdf.png,y\ngone.png,y\nb.png,y,too much\n")
    maps = ("--attention", tmp_path / "maps")
    result = run("predict", models / "classes", images, "--output", tmp_path / "p.csv", *maps)
    with (tmp_path / "p.csv").open() as file:
        rows = [*csv.DictReader(file)]
    expected = predict(models / "classes", [images / "a.png", images / "b.png"])
    for row, prediction in zip(rows, expected, strict=False):
        names = ["id", "prediction", "probability_mass", "probability_none", "attention", "error"]
        assert [*row] == names and Path(row["attention"]).is_file()
        assert row["prediction"] == prediction["prediction"] and not row["error"]
        for name, probability in prediction["probabilities"].items():
            assert float(row[f"probability_{name}"]) == pytest.approx(probability, abs=1e-6)
    assert [row["error"].partition(":")[0] for row in rows[2:]] == [
        "not an image",
        "image missing",
        "more cells than columns",
    ]
    assert {row["prediction"] for row in rows[2:]} == {""}
    assert "3 of 5 rows have no prediction:\npdf.png: not an image" in result.stderr
    assert "1 of 1 rows" in run("predict", models / "classes", images / "pdf.png", status=1).stderr
    (images / "metadata.csv").unlink()
    (images / "notes.txt").write_text("mine")
    rows = json.loads(run("predict", models / "classes", images, "--json").stdout)
    assert {row["id"]: row.get("error") for row in rows} == {
        "a.png": None,
        "b.png": None,
        "pdf.png": f"not an image: {images / 'pdf.png'}",
        "notes.txt": "not an image: by its suffix",
    }


def test_predict_of_a_prepared_set(models: Path, tmp_path: Path) -> None:
    cells = {"labels": ["x"], "question": "Is it large?"}
    splits = {
        "train": [{"id": "a", "image": 9, "text": ["dark"], **cells}],
        "test": [{"id": "b", "image": 90, "text": [TEXT], **cells}, {"id": "c", "image": None, "text": [TEXT]}],
    }
    data = write_splits(tmp_path / "data", splits)
    rows = json.loads(run("predict", models / "vqa", data, "--json").stdout)
    assert [(row["id"], row["split"], row["question"]) for row in rows] == [
        ("a", "train", "Is it large?"),
        ("b", "test", "Is it large?"),
        ("c", "test", None),
    ]
    assert rows[2]["error"] == "no image and no question"
    rows = json.loads(run("predict", models / "contrastive", data, "--split", "test", "--json").stdout)
    assert (rows[0]["text"], rows[1]["error"]) == (TEXT, "no image")
    assert rows[0].keys() == {"id", "split", "text", "score", "cosine"}


def test_reconstruct(models: Path, images: Path, tmp_path: Path) -> None:
    common = ("reconstruct", "--model", models / "masked", "--image", images / "a.png", "--output", tmp_path / "r.png")
    results = json.loads(run(*common, "--text", TEXT, "--word-ratio", 0.4, "--mask-ratio", 0.5, "--json").stdout)
    (sample,) = results["samples"]
    assert len(sample["words"]) == 2 and 0 < sample["error"] < 1 and results["picture"] == str(tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.width > picture.height, "one sample is a row"
    result = run(*common, "--image", images / "b.png")
    assert result.stderr == f"{tmp_path / 'r.png'} exists, and will be replaced\n"
    lines = result.stdout.splitlines()
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.height > picture.width, "several are columns"
    assert len(lines) == 3 and lines[0].startswith(f"{images / 'a.png'}: mean absolute error 0.")
    (line,) = run("reconstruct", "--model", models / "masked", "--text", TEXT).stdout.splitlines()
    assert line.strip().split(" → ")[0] in TEXT.split(), "nothing is drawn of a text"


@pytest.mark.parametrize("model", ["masked", "contrastive"])
def test_search(models: Path, images: Path, tmp_path: Path, model: str) -> None:
    common = ("search", images, "--model", models / model, "--index", tmp_path / "index")
    results = json.loads(run(*common, "--text", TEXT, "--json", "--picture", tmp_path / "p.png").stdout)
    assert {row["image"]: row["texts"] for row in results} == {"a.png": [TEXT], "b.png": ["no finding"]}
    assert results[0]["score"] >= results[1]["score"] and results[0]["rank"] == 1
    built = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    lines = run(
        *common, "--image", images / "a.png", "--top-k", 1, "--picture", tmp_path / "q.png"
    ).stdout.splitlines()[-2:]
    assert lines[0].split()[2] in ("a.png", "b.png") and lines[1] == str(tmp_path / "q.png")
    assert (tmp_path / "index" / "index.json").stat().st_mtime_ns == built
    assert (tmp_path / "p.png").is_file() and (tmp_path / "q.png").is_file()


def test_search_of_a_prepared_set(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    rows = [{"id": "first", "image": 9, "text": ["dark"]}, {"id": "second", "image": 200, "text": ["bright"]}]
    data = write_splits(tmp_path / "data", {"train": rows})
    lines = run("search", data, "--split", "train", "--model", models / "masked", "--text", "dark").stdout.splitlines()
    assert {line.split()[2] for line in lines} == {"first", "second"}
    assert len(list((tmp_path / "xdg" / "m3ae" / "search").iterdir())) == 1


def test_zero_shot(models: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ("--class", "nodule", "--class", "device=pacemaker", "--class", "device=large", "--template", "{} on")
    common = ("zero-shot", "--model", models / "contrastive", *classes)
    shown = ("--image", images / "a.png", "--image", images / "b.png", "--output", tmp_path / "rows.jsonl")
    results = json.loads(run(*common, *shown, "--json").stdout)
    assert [Path(row["image"]).name for row in results] == ["a.png", "b.png"]
    assert all(sum(row["scores"].values()) == pytest.approx(1) for row in results)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == results
    lines = run(*common, *shown[:2], "--rerank", 2).stdout.splitlines()
    assert lines[0] == f"{images / 'a.png'}:" and {line.split()[1] for line in lines[1:]} == {"nodule", "device"}
    (tmp_path / "broken.png").write_text("no image")
    done = run(*common, *shown[:4], "--image", tmp_path / "broken.png", "--json")
    (*readable, broken), message = json.loads(done.stdout), "not an image: broken.png"
    assert readable == results and message in broken["error"] and "scores" not in broken and message in done.stderr
    assert run(*common, "--image", tmp_path / "missing.png", status=1).stderr.startswith("image missing")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"id": "a", "image": 9, "label": "nodule"}, {"id": "b", "image": 200, "label": "device"}]
    data = write_splits(tmp_path / "data", {"validation": rows})
    measured = (*common, "--data", data, "--label-column", "label", "--split", "validation", "--resamples", 5)
    results = json.loads(run(*measured, "--multi-label", "--image-columns", "image", "--json").stdout)
    assert results["prompts"]["device"] == [["pacemaker on", "large on"], ["no pacemaker", "no large"]]
    assert results["rows"] == 2 and results["metrics"]["nodule_auroc"] in (0, 1)
    lines = run(*measured, "--class", "spot").stdout.splitlines()
    assert lines[-2:] == ["2 rows; 0 without an image or one of the classes left out", "no row has the label spot"]
    assert next(line for line in lines if line.startswith("validation/chance_accuracy")).split()[1] == "0.3333"


def test_generate(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (6, 6), 90).save(tmp_path / "g.png")
    common = ("generate", "--model", models / "latent", "--output", tmp_path / "out")
    results = json.loads(run(*common, "--given", f"glyph={tmp_path / 'g.png'}", "--samples", 2, "--json").stdout)
    assert sorted(results) == ["label", "speech"] and sum(results["label"][0].values()) == pytest.approx(1)
    assert [np.load(path).shape for path in results["speech"]] == [(4, 3), (4, 3)]
    (line,) = run(*common, "--given", "label=b", "--target", "glyph").stdout.splitlines()
    assert line == f"glyph: {tmp_path / 'out' / 'glyph-1.png'}"
    with Image.open(tmp_path / "out" / "glyph-1.png") as picture:
        assert picture.size == (6, 6)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = write_splits(tmp_path / "data", {"test": [{"id": "x", "label": "c"}, {"id": "y", "label": None}]})
    from_row = (*common[:-1], tmp_path / "row", "--data", data, "--given", "label", "--seed", 3, "--target", "speech")
    first = json.loads(run(*from_row, "--row", "x", "--json").stdout)["speech"][0]
    named = (*common[:-1], tmp_path / "named", "--given", "label=c", "--seed", 3, "--target", "speech", "--json")
    second = json.loads(run(*named).stdout)["speech"][0]
    assert np.array_equal(np.load(first), np.load(second))
    kept = Path(second).stat().st_mtime_ns
    assert run(*named, status=2).stderr == f"error: {second} exists, and would be replaced: choose another --output\n"
    assert Path(second).stat().st_mtime_ns == kept and len(list((tmp_path / "named").iterdir())) == 1
    run(*from_row, "--row", "x", "--target", "glyph", status=2)
    assert not list((tmp_path / "row").glob("glyph*")), "nothing is generated where one file would be replaced"
    assert "row 'y' has no label" in run(*from_row, "--row", "y", "--output", tmp_path / "z", status=2).stderr
    assert (
        "has no row 'z': its ids are x, y" in run(*from_row, "--row", "z", "--output", tmp_path / "z", status=2).stderr
    )


def test_errors_say_what_to_do(models: Path, images: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        (line,) = run(*arguments, status=2).stderr.splitlines()
        return line

    image, answer = ("--image", images / "a.png"), (images / "a.png", "--question", "Why?")
    assert "is M3AEForGeneration, expected M3AEForClassification, M3AEForQ" in error(
        "predict", models / "latent", *answer
    )
    assert error("predict", tmp_path / "nowhere", *answer) == (
        f"error: no M3AE model in {str(tmp_path / 'nowhere')!r}: expected a folder with config.json and "
        "model.safetensors, such as runs/quickstart/model, or a name on the hub"
    )
    assert "--attention" in error("predict", models / "vqa", *answer, "--attention", tmp_path)
    assert "--top-k counts answers, and" in error("predict", models / "classes", *answer, "--top-k", 2)
    assert "is no prepared set, and has no splits" in error("predict", models / "vqa", images, "--split", "test")
    assert "--output p.xls: expected a name that ends in .csv or .json" in error(
        "predict", models / "vqa", *answer, "--output", "p.xls"
    )
    assert "images with one text for all or one for each" in error("reconstruct", "--model", models / "masked")
    zero_shot = ("zero-shot", "--model", models / "contrastive", "--class", "a", "--class", "b")
    assert "give either --image or --data" in error(*zero_shot)
    assert "--data needs --label-column, and" in error(*zero_shot, "--data", images)
    assert "takes --split, --image-columns and --resamples alone" in error(*zero_shot, *image, "--split", "test")
    assert "--negative-template needs --multi-label" in error(*zero_shot, *image, "--negative-template", "no {}")
    assert "holds no manifest.json" in error(*zero_shot, "--data", images, "--label-column", "label")
    assert "give either --text or --image" in error("search", images, "--model", models / "masked")
    assert "expected NAME=VALUE, or --data and --row" in error("generate", "--model", "x", "--given", "label")
    assert "--given names a 2 times" in error("generate", "--model", "x", "--given", "a=1", "--given", "a=2")
    damaged = tmp_path / "damaged"
    save_model(damaged, M3AEForQuestionAnswering, [TEXT], id2label={0: "yes", 1: "no"})
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert f"the weights in {damaged} cannot be used: missing, damaged" in error("predict", damaged, *answer)
    assert "device: got 'nonsense', expected one of this machine, such as cpu" in error(
        "predict", models / "vqa", *answer, "--device", "nonsense"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "vqa", "a.png", "--question", "Why?"),
        ("reconstruct", "--model", "masked", "--text", TEXT),
        ("search", ".", "--model", "masked", "--text", TEXT, "--index", "index"),
        ("zero-shot", "--model", "masked", "--image", "a.png", "--class", "large", "--class", "small"),
        ("generate", "--model", "latent", "--given", "label=b", "--target", "label"),
        ("run", "show", "run"),
    ],
)
def test_nothing_but_the_result_is_printed_with_json(
    models: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(images)
    for name in ("vqa", "masked", "latent"):
        (images / name).symlink_to(models / name)
    run_folder = RunFolder(images / "run")
    config = tiny_finetuning("retrieval", images, images / "run")
    run_folder.describe_run(config, step=0, device="", num_processes=1)

    def talkative(function: Any) -> Any:
        def wrapped(*positional: Any, **named: Any) -> Any:
            print("a library, or a function of ours, says something")
            return function(*positional, **named)

        return wrapped

    monkeypatch.setattr("m3ae.inference.inputs._config", talkative(inputs._config))
    monkeypatch.setattr(RunFolder, "describe", talkative(RunFolder.describe))
    result = run(*arguments, "--json")
    assert json.loads(result.stdout) and "says something" in result.stderr


@pytest.mark.parametrize("name", ["generate", "predict", "reconstruct", "search", "zero-shot"])
def test_help_has_an_example(name: str) -> None:
    assert f"m3ae {name} " in run(name, "--help").stdout.partition("Examples:")[2]


def python(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_predicting_needs_no_extra(models: Path, images: Path) -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}));"
    code = f"{blocked} from m3ae_command import main; main()"
    (images / "metadata.csv").unlink()
    common = ("predict", models / "vqa", images, "--question", "Is it large?")
    shown = python(code, *common)
    assert len(shown.splitlines()) == 2, shown
    assert "pip install 'm3ae[figures]'" in python(code, *common, "--attention", images / "maps")


def test_inference_needs_no_extra_before_it_is_asked_for() -> None:
    by_transformers = {"accelerate", "scipy", "sklearn"}  # where they are installed
    code = "import m3ae.inference, sys; print(sorted(sys.modules.keys() & set(sys.argv[1:])))"
    assert python(code, *sorted({*EXTRAS} - by_transformers)).strip() == "[]"
