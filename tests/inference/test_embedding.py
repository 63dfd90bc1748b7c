"""Vectors of a whole prepared set: exact, resumable, shared out among machines."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from m3ae import M3AEForClassification, M3AEForPreTraining
from m3ae.cli import cli
from m3ae.data.prepare import prepare
from m3ae.data.samples import trunk_columns
from m3ae.files import file_sha256, only_process
from m3ae.images.files import load_image
from m3ae.inference import load_model
from tests.data.folder import write_folder
from tests.tasks.tiny_finetuning import save_model

TEXTS = [["large nodule on the left"], None, ["no finding", "nothing"], ["small nodule"], ["no finding"]]


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, ["embed", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    return result


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of five rows in two shards, the second row without text and the fourth without image, and two models."""
    folder = tmp_path_factory.mktemp("embed")
    columns = {"id": [*"abcde"], "image": [9, 90, 150, None, 200], "text": TEXTS}
    write_folder(folder / "data", columns, images=["image"], shards=[3, 2])
    words = [text for texts in TEXTS for text in texts or []]
    save_model(folder / "contrastive", M3AEForPreTraining, words, itc_weight=1.0)
    save_model(folder / "plain", M3AEForPreTraining, words)
    return folder


def read(folder: Path) -> dict[str, list]:
    tables = [pq.read_table(path).to_pydict() for path in sorted(folder.glob("*.parquet"))]
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


def test_vectors_are_those_of_the_model(sets: Path, tmp_path: Path) -> None:
    common = (sets / "data", "--model", sets / "contrastive")
    shown = run(*common, "--output", tmp_path / "out", "--batch-size", 2).output
    assert f"{tmp_path / 'out' / 'embeddings.json'}: 5 train" in shown
    vectors = read(tmp_path / "out")
    assert vectors["id"] == [*"abcde"]
    assert [value is None for value in vectors["image"]] == [False, False, False, True, False]
    assert [value is None for value in vectors["text"]] == [False, True, False, False, False]

    model, processor = load_model(sets / "contrastive", [M3AEForPreTraining])
    rows = pq.read_table(sets / "data" / "train-00000-of-00002.parquet").to_pylist()
    image = trunk_columns(["image"], "text").sample(rows[2], seed=0).picture
    with torch.no_grad():
        inputs = processor(images=image.convert("RGB"), text="no finding", return_tensors="pt")
        inputs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        expected = model.m3ae(**inputs).pooler_output[0]
        image = model.itc_head.embed("image", model.m3ae.encode_image(inputs["pixel_values"]))[0]
    np.testing.assert_allclose(vectors["features"][2], expected, atol=1e-5)
    np.testing.assert_allclose(vectors["image"][2], image, atol=1e-5)
    width = model.config.hidden_size
    assert not np.any(vectors["features"][1][:width]) and np.any(
        vectors["features"][1][width:]
    )  # no text: its half is zero
    assert not np.any(vectors["features"][3][width:])


def test_machines_share_the_work_and_go_on_where_one_stopped(sets: Path, tmp_path: Path) -> None:
    common = (sets / "data", "--model", sets / "plain", "--output")
    run(*common, tmp_path / "one")
    run(*common, tmp_path / "two", "--shard-range", "1:2")
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["train-00001-of-00002.parquet"]
    first = tmp_path / "two" / "train-00000-of-00002.parquet"
    first.write_bytes((tmp_path / "one" / first.name).read_bytes()[:-5])  # a machine lost its power
    (tmp_path / "two" / f"{first.name}.tmp").write_text("begun")
    kept = (tmp_path / "two" / "train-00001-of-00002.parquet").stat().st_mtime_ns
    run(*common, tmp_path / "two", "--shard-range", "0:1")
    run(*common, tmp_path / "two")
    assert (tmp_path / "two" / "train-00001-of-00002.parquet").stat().st_mtime_ns == kept
    assert {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "two").iterdir()
    }
    description = json.loads((tmp_path / "two" / "embeddings.json").read_text())
    assert description["splits"] == {"train": 5} and set(read(tmp_path / "two")) == {"id", "features"}
    assert description["shards"][first.name] == {"rows": 3, "sha256": file_sha256(first)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "contrastive"], "was made by another model, or of other data: choose another folder"),
        (["--model", "plain", "--image-columns", "lateral"], "has no column 'lateral'"),
        (["--model", "plain", "--shard-range", "2:1"], "expected first:end with first < end"),
        (["--model", "absent"], "no M3AE model in"),
    ],
)
def test_what_does_not_fit_is_refused(sets: Path, tmp_path: Path, options: list[str], message: str) -> None:
    run(sets / "data", "--model", sets / "plain", "--output", tmp_path / "out")
    options[1] = str(sets / options[1])
    assert message in run(sets / "data", *options, "--output", tmp_path / "out", status=2).output


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images, of which two cannot be read."""
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "c.png"):
        Image.fromarray(draw.integers(0, 255, (40, 32), dtype=np.uint8)).save(folder / name)
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:-50])
    (folder / "sub" / "d.jpg").write_text("<html>404</html>")
    return folder


def test_a_folder_of_images_is_embedded_without_those_that_cannot_be_read(
    sets: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3ae.inference.embedding.ROWS_PER_SHARD", 2)
    common = (images, "--model", sets / "contrastive", "--batch-size", 1, "--output")
    result = run(*common, tmp_path / "out")
    rejected = {"a.png": None, "c.png": "image truncated or corrupt", "sub/b.png": None, "sub/d.jpg": "not an image"}
    lost = [(name, reason) for name, reason in rejected.items() if reason]
    description = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert [(row["id"], row["reason"]) for row in description["rejected"]] == lost
    for name, reason in lost:
        assert f"left out: {reason}: {images / name}" in result.stderr
    assert description["splits"] == {"all": 2} and len(description["shards"]) == 2
    vectors = read(tmp_path / "out")
    assert vectors["id"] == ["a.png", "sub/b.png"] and vectors["text"] == [None, None]
    model, processor = load_model(sets / "contrastive", [M3AEForPreTraining])
    pixels = processor(images=load_image(images / "sub" / "b.png"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.itc_head.embed("image", model.m3ae.encode_image(pixels))[0]
    np.testing.assert_allclose(vectors["image"][1], expected, atol=1e-5)

    run(*common, tmp_path / "parts", "--shard-range", "1:2")
    run(*common, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "embeddings.json").read_text()) == description


def test_rows_of_a_table_keep_their_text_without_their_image(sets: Path, images: Path, tmp_path: Path) -> None:
    (images / "reports.csv").write_text(
        "id,image,text\nx,a.png,small nodule\ny,c.png,no finding\nz,,nothing\nw,c.png,\nv,gone.png,normal\n"
        "u,a.png,two,cells\n"
    )
    run(images, "--model", sets / "contrastive", "--output", tmp_path / "out")
    vectors = read(tmp_path / "out")
    assert vectors["id"] == [*"xyzv"]
    assert [value is None for value in vectors["image"]] == [False, True, True, True]
    assert not any(value is None for value in vectors["text"])
    rejected = json.loads((tmp_path / "out" / "embeddings.json").read_text())["rejected"]
    assert [(row["id"], row.get("column")) for row in rejected] == [
        ("reports.csv, row 6", None),
        ("y", "image"),
        ("w", None),
        ("v", "image"),
    ]


def test_what_belongs_to_prepared_sets_is_not_ignored(sets: Path, images: Path, tmp_path: Path) -> None:
    common = (images, "--model", sets / "plain", "--output", tmp_path / "out")
    for option in ("--image-columns", "--text-column"):
        shown = run(*common, option, "frontal", status=2).output
        assert f"image_columns and text_column name columns of a prepared set, and {images} is none" in shown
    (images / "manifest.unfinished.jsonl").write_text("{}\n")
    assert "is a prepared set that is not finished: run the same m3ae prepare again" in run(*common, status=2).output
    assert not (tmp_path / "out").exists()


def test_one_process_writes_and_a_damaged_shard_is_written_again(sets: Path, tmp_path: Path) -> None:
    common = (sets / "data", "--model", sets / "plain", "--output", tmp_path / "out")
    with only_process(tmp_path / "out"):
        assert "is being written by process" in run(*common, status=2).output
    run(*common)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shard = tmp_path / "out" / "train-00001-of-00002.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1  # among the vectors
    shard.write_bytes(content)
    run(*common)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_folder_of_something_else_is_left_alone(sets: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    printed = run(sets / "data", "--model", sets / "plain", "--output", tmp_path, status=2).output
    assert "holds notes.txt, which is not of this set" in printed
    (tmp_path / "notes.txt").rename(tmp_path / "embeddings.json")
    printed = run(sets / "data", "--model", sets / "plain", "--output", tmp_path, status=2).output
    assert "embeddings.json was not written by m3ae, and would be replaced" in printed
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_folder_has_the_vectors_of_its_prepared_set(sets: Path, tmp_path: Path) -> None:
    folder, draw = tmp_path / "mine", np.random.default_rng(0)
    folder.mkdir()
    for number in range(3):
        picture = Image.fromarray(draw.integers(0, 255, (40, 32), dtype=np.uint8))
        picture.save(folder / f"{number}.jpg", quality=95)  # small JPEGs are prepared as they are
    table = folder / "table.csv"
    table.write_text("image,text,label,split\n0.jpg,small nodule,a;b,train\n1.jpg,,a,train\n2.jpg,nothing,,train\n")
    prepare("folder", source=folder, output=tmp_path / "data", min_words=1, num_workers=1)
    common = ("--model", sets / "contrastive", "--output")
    for source, name in ((folder, "folder"), (table, "table"), (tmp_path / "data", "set")):
        run(source, *common, tmp_path / name)
    expected = read(tmp_path / "set")
    assert expected["labels"] == [["a", "b"], ["a"], None]
    for name in ("folder", "table"):
        vectors = read(tmp_path / name)
        assert vectors.keys() == expected.keys() and vectors["id"] == expected["id"]
        assert vectors["labels"] == expected["labels"] and vectors["text"][1] is None
        for column in ("features", "image"):
            np.testing.assert_allclose(vectors[column], expected[column], atol=1e-6)


def test_a_model_of_views_reads_all_of_them(tmp_path: Path) -> None:
    views = ["frontal", "lateral"]
    save_model(tmp_path / "model", M3AEForPreTraining, ["nothing"], itc_weight=1.0, views=views)
    columns = {"id": [*"abc"], "frontal": [9, 90, None], "lateral": [40, None, 60], "other": [1, 2, 3]}
    data = write_folder(tmp_path / "data", columns, images=[*views, "other"])
    run(data, "--model", tmp_path / "model", "--output", tmp_path / "out")
    model, processor = load_model(tmp_path / "model", [M3AEForPreTraining])
    rows = pq.read_table(data / "train-00000-of-00001.parquet").to_pylist()
    vectors = read(tmp_path / "out")
    for row, features, image in zip(rows, vectors["features"], vectors["image"], strict=True):
        present = torch.tensor([[row[view] is not None for view in views]])
        shown = [load_image((row[view] or row["other"])["bytes"]).convert("RGB") for view in views]
        pixels = processor(images=shown, return_tensors="pt")["pixel_values"][None]
        with torch.no_grad():
            expected = model.m3ae(pixels, image_present=present).pooler_output[0]
            unit = model.itc_head.embed("image", model.m3ae.encode_image(pixels, None, present))[0]
        np.testing.assert_allclose(features, expected, atol=1e-5)
        np.testing.assert_allclose(image, unit, atol=1e-5)


def test_a_classifier_gives_what_its_head_reads(sets: Path, tmp_path: Path) -> None:
    options = {"id2label": {0: "a", 1: "b"}, "input_streams": ["image"]}
    save_model(tmp_path / "model", M3AEForClassification, ["nothing"], **options)
    run(sets / "data", "--model", tmp_path / "model", "--output", tmp_path / "out")
    model, processor = load_model(tmp_path / "model", [M3AEForClassification])
    vectors = read(tmp_path / "out")
    assert vectors.keys() == {"id", "features"}
    row = pq.read_table(sets / "data" / "train-00000-of-00002.parquet").to_pylist()[2]
    pixels = processor(images=load_image(row["image"]["bytes"]).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.m3ae(pixel_values=pixels).pooler_output[0]
    np.testing.assert_allclose(vectors["features"][2], expected, atol=1e-5)
    assert not np.any(vectors["features"][3]), "it has no image"


def test_one_file_has_what_the_shards_have(sets: Path, tmp_path: Path) -> None:
    common = (sets / "data", "--model", sets / "contrastive", "--output")
    run(*common, tmp_path / "out")
    expected = read(tmp_path / "out")
    for suffix in ("parquet", "csv", "npy"):
        assert f"vectors.{suffix}: 5 train" in run(*common, tmp_path / f"vectors.{suffix}").output
    table = pq.read_table(tmp_path / "vectors.parquet").to_pydict()
    assert table == {"id": expected["id"], "split": ["train"] * 5} | expected
    np.testing.assert_array_equal(np.load(tmp_path / "vectors.npy"), np.float32(expected["features"]))
    with (tmp_path / "vectors.rows.csv").open() as file:
        assert [*csv.DictReader(file)] == [{"id": name, "split": "train"} for name in "abcde"]
    with (tmp_path / "vectors.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [float(rows[4][f"features_{k}"]) for k in range(3)] == pytest.approx(expected["features"][4][:3])
    assert rows[3]["image_0"] == "" and rows[1]["text_0"] == "" and "labels" not in rows[0]
    assert not [*tmp_path.glob("*.shards")]
    assert "needs a folder, got" in run(*common, tmp_path / "v.csv", "--shard-range", "0:1", status=2).output
