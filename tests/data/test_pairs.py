import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from m3ae.data.pairs import PairCollator, PairDataset, random_crop
from m3ae.data.prepared import Manifest, SplitInfo
from m3ae.data.tokenizer import train_tokenizer
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.training.sampler import Visit

ROWS = {
    "id": ["a", "b", "c", "d"],
    "frontal": [10, None, 30, None],
    "lateral": [11, 21, None, None],
    "text": [["first report", "second report"], None, ["third report of c"], ["only text here"]],
}


def jpeg(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (40, 32), value).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("prepared")
    cells = {
        name: [None if v is None else {"bytes": jpeg(v), "path": None} for v in values]
        if name in ("frontal", "lateral")
        else values
        for name, values in ROWS.items()
    }
    features = datasets.Features(
        id=datasets.Value("string"),
        frontal=datasets.Image(),
        lateral=datasets.Image(),
        text=datasets.List(datasets.Value("string")),
    )
    datasets.Dataset.from_dict(cells, features=features).to_parquet(path / "train-00000-of-00001.parquet")
    info = SplitInfo(4, {"frontal": 2, "lateral": 2}, 3, 0, {"train-00000-of-00001.parquet": ""})
    manifest = Manifest("test", {}, "", {"train": info}, {}, {})
    (path / "manifest.json").write_text(manifest.to_json())
    assert json.loads((path / "manifest.json").read_text())["splits"]
    return path


def pairs(folder, **options) -> PairDataset:
    return PairDataset(folder, "train", ["frontal", "lateral"], "text", **options)


def grey(image: Image.Image | None) -> int | None:
    return None if image is None else round(np.asarray(image).mean())


def test_missing_sides_are_none(folder) -> None:
    found = [pairs(folder).first(index, 0) for index in range(4)]
    assert [(p.id, grey(p.image), p.text) for p in found] == [
        ("a", 10, "first report"),
        ("b", 21, None),
        ("c", 30, "third report of c"),
        ("d", None, "only text here"),
    ]


def test_visits_draw_views_and_texts_by_their_seed(folder) -> None:
    dataset = pairs(folder)
    visits = [dataset[Visit(0, seed)] for seed in range(60)]
    assert {grey(pair.image) for pair in visits} == {10, 11}
    assert {pair.text for pair in visits} == {"first report", "second report"}
    again = [dataset[Visit(0, seed)] for seed in range(60)]
    assert [(p.image_id, p.text_id) for p in visits] == [(p.image_id, p.text_id) for p in again]


def test_limit_spreads_over_the_split(folder) -> None:
    dataset = pairs(folder, limit=2)
    assert [dataset.first(index, 0).id for index in range(len(dataset))] == ["a", "d"]


def test_texts(folder) -> None:
    assert pairs(folder).texts() == ["first report", "second report", "third report of c", "only text here"]
    assert PairDataset(folder, "train", ["frontal"], None).texts() == []


def test_unknown_columns_list_those_there_are(folder) -> None:
    with pytest.raises(ValueError, match=r"no column 'image'; it has id, frontal, lateral, text"):
        PairDataset(folder, "train", ["image"], "text")


@pytest.fixture(scope="module")
def collator() -> PairCollator:
    tokenizer = train_tokenizer(["first second third report of only text here c"] * 2, 300)
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer)
    return PairCollator(processor, num_patches=16, max_text_length=24, crop_scale=(0.5, 1.0))


def test_batch(folder, collator) -> None:
    batch = collator([pairs(folder).first(index, index) for index in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and (batch["pixel_values"][3] == 0).all()
    assert batch["image_present"].tolist() == [True, True, True, False]
    assert batch["text_present"].tolist() == [True, False, True, True]
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["attention_mask"].sum(1)[1] == 2  # <s></s>
    assert batch["image_noise"].shape == (4, 16) and batch["match_noise"].shape == (4, 2)
    assert batch["text_noise"].shape == (*batch["input_ids"].shape, 2)
    complete = collator([pairs(folder).first(index, index) for index in (0, 2)])
    assert "image_present" not in complete and "text_present" not in complete


def test_a_sample_does_not_depend_on_its_batch(folder, collator) -> None:
    dataset = pairs(folder)
    alone, together = collator([dataset.first(0, 5)]), collator([dataset.first(2, 7), dataset.first(0, 5)])
    assert torch.equal(alone["pixel_values"][0], together["pixel_values"][1])
    for name in ("image_noise", "match_noise", "text_noise"):
        length = alone[name].shape[1]
        assert torch.equal(alone[name][0], together[name][1, :length])


def test_equal_content_has_equal_ids(folder, collator) -> None:
    dataset = pairs(folder)
    batch = collator([dataset.first(0, 1), dataset.first(0, 2), dataset.first(2, 3)])
    assert batch["image_ids"][0] == batch["image_ids"][1] != batch["image_ids"][2]
    assert batch["text_ids"][0] == batch["text_ids"][1] != batch["text_ids"][2]


def test_random_crop() -> None:
    image = Image.fromarray(np.arange(100 * 80, dtype=np.uint32).astype(np.uint8).reshape(80, 100))
    draw = np.random.default_rng(0)
    assert random_crop(image, draw, (1.0, 1.0)) is image
    for _ in range(20):
        width, height = random_crop(image, draw, (0.25, 0.64)).size
        assert 50 <= width <= 80 and 40 <= height <= 64
        assert width / height == pytest.approx(1.25, abs=0.03)


def test_tokenizer_without_mask_token_is_refused() -> None:
    tokenizer = train_tokenizer(["some text"], 300)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="needs a tokenizer with a mask_token"):
        M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer)
