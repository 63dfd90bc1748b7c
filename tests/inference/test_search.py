import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae import M3AEForImageTextRetrieval, M3AEForPreTraining, M3AEImageProcessor, M3AEProcessor
from m3ae.data.tokenizer import train_tokenizer
from m3ae.files import LOCK, only_process
from m3ae.inference import SearchIndex, index_folder, open_collection, open_index, search
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.retrieval import encode_texts
from tests.models.tiny import tiny_of
from tests.tasks.tiny_finetuning import write_splits

TEXTS = ["large nodule", "small effusion on the left", "no finding", "normal"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, of which one has two texts and one has none, and a text without image."""
    path, draw = tmp_path / "images", np.random.default_rng(0)
    (path / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "c.png"):
        Image.fromarray(draw.integers(0, 255, (32, 32), dtype=np.uint8)).save(path / name)
    lines = ['{"file_name": "a.png", "text": ["large nodule", "small effusion on the left"]}']
    lines += ['{"file_name": "sub/b.png"}', '{"file_name": "c.png", "text": "no finding"}', '{"text": "normal"}']
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def processor() -> M3AEProcessor:
    return M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer(TEXTS, 300))


def build(processor: M3AEProcessor, model_class: type[M3AEPreTrainedModel], **options: Any) -> Any:
    return tiny_of(model_class, text_config={"vocab_size": len(processor.tokenizer)}, **options)


def matrix(model: Any, processor: M3AEProcessor, collection: Any) -> torch.Tensor:
    """The score of every text and image, each pair computed alone from scratch."""
    score = model.score
    rows = []
    with torch.no_grad():
        for text in collection.texts:
            ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
            row = []
            for number in range(len(collection)):
                image = processor.image_processor(collection.load(number), return_tensors="pt")
                row.append(score(model.m3ae.encode_text(ids), model.m3ae.encode_image(**image)))
            rows.append(torch.cat(row))
    return torch.stack(rows)


def test_a_folder_with_a_table(folder, capsys):
    collection = open_collection(folder)
    assert collection.names == ["a.png", "sub/b.png", "c.png"]
    assert collection.texts == TEXTS and collection.owners.tolist() == [0, 0, 2, -1]
    assert collection.texts_of(0) == TEXTS[:2] and collection.load(1).size == (32, 32)


def test_a_list_of_records_is_a_table(folder):
    (folder / "metadata.jsonl").unlink()
    (folder / "reports.json").write_text('[{"image": "a.png", "text": "large nodule"}]')
    collection = open_collection(folder)
    assert (collection.names, collection.texts, [*collection.owners]) == (["a.png"], ["large nodule"], [0])


def test_images_alone(folder):
    (folder / "metadata.jsonl").unlink()
    (folder / ".hidden" / "none").mkdir(parents=True)
    (folder / "a.png").rename(folder / ".hidden" / "a.png")
    collection = open_collection(folder)
    assert collection.names == ["c.png", "sub/b.png"] and collection.texts == []
    with pytest.raises(ValueError, match="holds no image"):
        open_collection(folder / ".hidden" / "none")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_collection(folder / "nowhere")


def test_a_prepared_set(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"id": "a", "image": 9, "text": ["one", "two"]}, {"id": "b", "image": None, "text": ["three"]}]
    rows.append({"id": "c", "image": 200, "text": None})
    collection = open_collection(write_splits(tmp_path / "data", {"test": rows}))
    assert ([*collection.names], collection.texts[:]) == (["a", "c"], ["one", "two", "three"])
    assert collection.owners.tolist() == [0, 0, -1] and collection.texts_of(0) == ["one", "two"]
    assert collection.texts_of(1) == []
    assert collection.load(1).getpixel((0, 0)) == 200


@pytest.mark.parametrize(
    ("model_class", "options"),
    [
        (M3AEForPreTraining, {}),
        (M3AEForPreTraining, {"itc_weight": 1.0}),
        (M3AEForImageTextRetrieval, {"itc_weight": 1.0}),
    ],
)
def test_what_is_found_is_what_the_matching_head_says(folder, processor, tmp_path, model_class, options, capsys):
    model, collection = build(processor, model_class, **options), open_collection(folder)
    index = open_index(model, processor, collection, tmp_path / "index")
    expected = matrix(model, processor, collection)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if options else {"rtol": 2e-3, "atol": 2e-3}  # stored in half precision
    for row, text in enumerate(collection.texts):
        hits = index.find(text, k=3)
        torch.testing.assert_close(
            torch.tensor([hit.score for hit in hits]), expected[row].sort(descending=True)[0], **tolerance
        )
        assert [hit.row for hit in hits] == expected[row].argsort(descending=True).tolist()
    for number in range(len(collection)):
        hits = index.find(collection.load(number), k=4)
        torch.testing.assert_close(
            torch.tensor([hit.score for hit in hits]), expected[:, number].sort(descending=True)[0], **tolerance
        )
        assert hits[0].texts == [collection.texts[hits[0].row]]


@pytest.mark.parametrize("itc_weight", [0.0, 1.0])
def test_padding_is_kept_out_of_the_index(folder, processor, tmp_path, itc_weight):
    for name, size in (("a.png", (16, 40)), ("c.png", (64, 16))):
        Image.open(folder / name).resize(size).save(folder / name)
    padding = M3AEProcessor(M3AEImageProcessor.for_size(32, "pad"), processor.tokenizer)
    model = build(padding, M3AEForImageTextRetrieval, itc_weight=itc_weight, image_config={"resize": "pad"})
    collection = open_collection(folder)
    expected = matrix(model, padding, collection)
    index = open_index(model, padding, collection, tmp_path / "index")
    for query, values in [*zip(TEXTS, expected, strict=True), (collection.load(0), expected[:, 0])]:
        scores = {hit.row: hit.score for hit in index.find(query)}
        found = torch.tensor([scores[row] for row in range(len(values))])
        torch.testing.assert_close(found, values, rtol=2e-3, atol=2e-3)


def test_the_first_stage_is_the_cosine(folder, processor, tmp_path, capsys):
    model, collection = build(processor, M3AEForPreTraining, itc_weight=1.0), open_collection(folder)
    index = open_index(model, processor, collection, tmp_path / "index")
    text = processor.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    pixels = processor.image_processor([collection.load(row) for row in range(3)], return_tensors="pt")
    with torch.no_grad():
        head, trunk = model.itc_head, model.m3ae
        cosines = (
            head.embed("image", trunk.encode_image(pixels["pixel_values"]))
            @ head.embed("text", trunk.encode_text(text))[0]
        )
    hits = index.find(TEXTS[0], k=2, rerank=0)
    assert [hit.row for hit in hits] == cosines.topk(2).indices.tolist()
    torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), cosines.topk(2).values)
    reranked = index.find(TEXTS[0], k=2, rerank=1)
    assert [hit.row for hit in reranked] == [hits[0].row], "the matching head sees the best one only"


@pytest.mark.parametrize(
    "model_class, untrained", [(M3AEForPreTraining, "itm_weight"), (M3AEForImageTextRetrieval, "num_negatives")]
)
def test_an_untrained_matching_head_is_not_asked(folder, processor, tmp_path, capsys, model_class, untrained):
    model = build(processor, model_class, itc_weight=1.0, **{untrained: 0})
    index = open_index(model, processor, open_collection(folder), tmp_path / "index")
    assert index.find(TEXTS[0], k=2) == index.find(TEXTS[0], k=2, rerank=0)


def test_the_index_is_used_again_until_model_or_data_change(folder, processor, tmp_path, monkeypatch, capsys):
    build(processor, M3AEForPreTraining).save_pretrained(tmp_path / "model")
    built = []
    monkeypatch.setattr(search, "_build", lambda *given, build=search._build: built.append(build(*given)))

    def opened(**options: Any) -> SearchIndex:
        model = M3AEForPreTraining.from_pretrained(tmp_path / "model").eval()
        return open_index(model, processor, open_collection(folder), tmp_path / "index", **options)

    first = opened().find(TEXTS[0])
    assert opened().find(TEXTS[0]) == first and len(built) == 1
    os.utime(tmp_path / "model" / "model.safetensors", ns=(1, 1))
    opened()
    assert len(built) == 1
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    opened()
    assert len(built) == 2
    Image.new("L", (32, 32)).save(folder / "a.png")
    assert opened().find(TEXTS[0]) != first and len(built) == 3
    opened(rebuild=True)
    assert len(built) == 4 and sorted(path.name for path in tmp_path.iterdir()) == ["images", "index", "model"]
    assert "left out" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="something other than an index"):
        open_index(build(processor, M3AEForPreTraining), processor, open_collection(folder), folder)


@pytest.mark.parametrize(
    "description", ['{"name": "my site"}', '{"size": 8, "kind": "Flat"}', "[]", "[" * 100_000, "mine", '{"format": 1}']
)
def test_a_folder_of_something_else_is_left_alone(folder, processor, tmp_path, description):
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.json").write_text(description)
    (site / "images.npy").write_text("years of work")
    with pytest.raises(ValueError, match=r"index\.json is not that of an index: choose another folder"):
        open_index(build(processor, M3AEForPreTraining), processor, open_collection(folder), site, rebuild=True)
    assert {path.name: path.read_text() for path in site.iterdir()} == {
        "index.json": description,
        "images.npy": "years of work",
    }


def test_a_new_index_takes_away_the_old_one_alone(folder, processor, tmp_path, capsys):
    index, collection = tmp_path / "index", open_collection(folder)
    open_index(build(processor, M3AEForPreTraining), processor, collection, index)
    (index / "notes.txt").write_text("mine")
    assert (index / "lengths.npy").is_file()
    contrastive = build(processor, M3AEForPreTraining, itc_weight=1.0)
    open_index(contrastive, processor, collection, index, rebuild=True)
    assert sorted(path.name for path in index.iterdir()) == ["images.npy", "index.json", "notes.txt", "texts.npy"]
    assert (index / "notes.txt").read_text() == "mine"
    description = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps({"format": 1, "model": "", "data": description["data"]}))  # earlier
    open_index(contrastive, processor, collection, index)
    again = json.loads((index / "index.json").read_text())
    for stored in (description, again):  # times aside
        stored["arrays"] = {name: (size, digest) for name, (size, _, digest) in stored["arrays"].items()}
    assert again == description


@pytest.mark.parametrize("name", ["images.npy", "texts.npy", "index.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_index_is_built_again(folder, processor, tmp_path, capsys, name, damage):
    model, collection = build(processor, M3AEForPreTraining, itc_weight=1.0), open_collection(folder)
    expected = open_index(model, processor, collection, tmp_path / "index").find(TEXTS[0])
    file = tmp_path / "index" / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content if damage == "flipped" else content[:-9])
    if damage == "gone":
        file.unlink()
    if (name, damage) == ("index.json", "gone"):
        with pytest.raises(ValueError, match="holds something other than an index"):
            open_index(model, processor, collection, tmp_path / "index")
    else:
        assert open_index(model, processor, collection, tmp_path / "index").find(TEXTS[0]) == expected


def test_a_build_that_was_killed_leaves_nothing(folder, processor, tmp_path, capsys):
    model, collection, index = build(processor, M3AEForPreTraining), open_collection(folder), tmp_path / "index"
    index.mkdir()
    (index / "index.json").write_text(json.dumps({"kind": search.KIND}))
    for name in ("texts.npy", "images.npy.tmp", LOCK):
        (index / name).write_bytes(b"half of it")
    first = open_index(model, processor, collection, index).find(TEXTS[0])
    assert sorted(path.name for path in index.iterdir()) == ["images.npy", "index.json", "lengths.npy", "texts.npy"]
    assert open_index(model, processor, collection, tmp_path / "other").find(TEXTS[0]) == first


def test_a_full_disk_is_an_error_before_anything_is_mapped(folder, processor, tmp_path, monkeypatch):
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left on device"):
        open_index(build(processor, M3AEForPreTraining), processor, open_collection(folder), tmp_path / "index")
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.json"]


def test_two_processes_do_not_build_one_index(folder, processor, tmp_path):
    model = build(processor, M3AEForPreTraining)
    with only_process(tmp_path / "index"), pytest.raises(BlockingIOError, match="is being written by process"):
        open_index(model, processor, open_collection(folder), tmp_path / "index")


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("options", [{}, {"itc_weight": 1.0}])
def test_images_that_cannot_be_read_are_left_out_with_their_path(folder, processor, tmp_path, capsys, table, options):
    (folder / "sub" / "b.png").write_text("<html>404</html>")
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:-40])
    if not table:
        (folder / "metadata.jsonl").unlink()
        (folder / "sub" / "c.png").symlink_to("nowhere.png")
    model, collection = build(processor, M3AEForPreTraining, **options), open_collection(folder)
    for _ in range(2):  # built, and opened again
        index = open_index(model, processor, collection, tmp_path / "index")
        assert [hit.image for hit in index.find(TEXTS[0])] == ["a.png"]
        assert not table or {hit.texts[0] for hit in index.find(collection.load(0))} == {*TEXTS}
    lines = capsys.readouterr().err.splitlines()
    left_out = sorted(line for line in lines if line.startswith("left out: "))
    paths = ["sub/b.png", "c.png"] if table else ["sub/b.png", "sub/c.png", "c.png"]
    assert len(left_out) == len(paths) and all(f"{folder / path}" in "".join(left_out) for path in paths)
    (folder / "a.png").write_text("")
    with pytest.raises(ValueError, match=r"none of the \d images can be read"):
        open_index(model, processor, open_collection(folder), tmp_path / "index")


@pytest.mark.parametrize("options", [{}, {"itc_weight": 1.0}])
def test_texts_are_indexed_a_batch_at_a_time(folder, processor, tmp_path, capsys, monkeypatch, options):
    model, collection = build(processor, M3AEForPreTraining, **options), open_collection(folder)
    expected = open_index(model, processor, collection, tmp_path / "whole").find(collection.load(0))
    monkeypatch.setattr(search, "BATCH_SIZE", 1)
    sizes = []

    def encode(trunk, input_ids, batch_size):
        sizes.append(len(input_ids))
        return encode_texts(trunk, input_ids, batch_size)

    monkeypatch.setattr(search, "encode_texts", encode)
    index = open_index(model, processor, collection, tmp_path / "batches")
    assert sizes == [1] * len(TEXTS)
    hits = index.find(collection.load(0))
    assert [hit.texts for hit in hits] == [hit.texts for hit in expected]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)


def test_images_outside_of_the_folder_are_not_read(folder, processor, tmp_path, capsys):
    (folder / "a.png").rename(tmp_path / "secret.png")
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(f'\n{{"file_name": "../secret.png"}}\n{{"file_name": "{tmp_path}/secret.png"}}')
    index = open_index(build(processor, M3AEForPreTraining), processor, open_collection(folder), tmp_path / "index")
    assert {hit.image for hit in index.find(TEXTS[0])} == {"sub/b.png", "c.png"}
    assert capsys.readouterr().err.count("left out: path leaves the source folder") == 3


def test_a_pre_trained_and_a_fine_tuned_model_of_the_same_weights_rank_alike(folder, processor, tmp_path, capsys):
    pretrained = build(processor, M3AEForPreTraining)
    pretrained.save_pretrained(tmp_path / "model")
    tuned = M3AEForImageTextRetrieval.from_pretrained(tmp_path / "model").eval()
    models, collection = {"pretrained": pretrained, "tuned": tuned}, open_collection(folder)
    one, two = (open_index(model, processor, collection, tmp_path / name) for name, model in models.items())
    assert all(one.find(text) == two.find(text) for text in TEXTS)
    assert one.find(collection.load(0)) == two.find(collection.load(0))


def test_what_cannot_be_searched(folder, processor, tmp_path, capsys):
    with pytest.raises(ValueError, match="neither a matching nor a contrastive head"):
        open_index(
            build(processor, M3AEForPreTraining, itm_weight=0.0), processor, open_collection(folder), tmp_path / "i"
        )
    (folder / "metadata.jsonl").unlink()
    index = open_index(build(processor, M3AEForPreTraining), processor, open_collection(folder), tmp_path / "i")
    for options in ({"k": 0}, {"k": -1}, {"rerank": -1}):
        with pytest.raises(ValueError, match=r"k is .* and rerank .*: expected at least 1 and 0"):
            index.find("normal", **options)
    with pytest.raises(ValueError, match="images only"):
        index.find(Image.new("L", (32, 32)))


def test_each_model_and_set_has_an_index_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {index_folder("org/model", data, split) for data in (Path("a"), Path("b")) for split in ("train", "test")}
    assert len(paths) == 4 and all(path.parent == tmp_path / "m3ae" / "search" for path in paths)
    (tmp_path / "run" / "model").mkdir(parents=True)
    assert index_folder(tmp_path / "run", Path("a"), "test") == index_folder(
        tmp_path / "run" / "model", Path("a"), "test"
    )
