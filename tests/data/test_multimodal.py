from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae.data.augment import centre_crop
from m3ae.data.multimodal import Kind, MultimodalCollator, MultimodalDataset, drop_modalities
from m3ae.data.prepare import prepare
from m3ae.data.tokenizer import train_tokenizer
from m3ae.training.sampler import Visit
from tests.data.small_folder import picture, stored, write_splits

DIGITS: dict[str, Kind] = {"image": "image", "speech": "sequence", "vector": "vector", "label": "label"}
STUDY: dict[str, Kind] = {"frontal": "image", "lateral": "image", "text": "text"}
REPORTS = ["Small effusion on the left side.", "The lungs are clear."]


def digit(number: int, **cells: Any) -> dict[str, Any]:
    speech = np.arange(12, dtype=np.float32).reshape(4, 3) + 100 * number
    given = {"image": stored(picture(number, (28, 28))), "speech": speech, "vector": [number, -0.5]}
    return {"id": f"d{number}", **given, "label": "ca"[number % 2], **cells}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = [digit(0), digit(1, image=None, label=None), digit(2, speech=None), digit(3, vector=None), digit(4)]
    return write_splits(
        tmp_path_factory.mktemp("data") / "digits", train=train, test=[digit(6)], odd=[digit(0, label="z")]
    )


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = [
        {"id": "both", "frontal": stored(picture(0)), "lateral": stored(picture(1, (60, 90))), "text": REPORTS},
        {"id": "one view", "frontal": stored(picture(2).convert("RGB")), "text": REPORTS[1:]},
        {"id": "no report", "frontal": stored(picture(3), "JPEG"), "lateral": stored(picture(4)), "text": None},
        {"id": "report", "text": REPORTS[:1]},
    ]
    return write_splits(tmp_path_factory.mktemp("data") / "studies", train=train)


def test_labels_are_any_number_of_classes(tmp_path: Path) -> None:
    rows = [["opacity", "rare"], [], None, ["large heart", "opacity"]]
    folder = write_splits(tmp_path / "set", train=[{"id": f"r{n}", "labels": own} for n, own in enumerate(rows)])
    kinds: dict[str, Kind] = {"labels": "labels"}
    classes = {"labels": ["large heart", "opacity"]}
    batch = MultimodalCollator(kinds)(
        samples(MultimodalDataset(folder, "train", kinds, image_size=1, classes=classes), [0, 1, 2, 3])
    )
    assert batch["labels"]["values"].tolist() == [[0, 1], [0, 0], [0, 0], [1, 1]]
    assert batch["labels"]["present"].tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match=r"no training row has the label 'opacty'; did you mean opacity\?"):
        MultimodalDataset(folder, "train", kinds, image_size=1, classes={"labels": ["opacty"]})


def samples(dataset: MultimodalDataset, rows: list[int], seed: int = 0) -> list[Any]:
    return [dataset[Visit(row, seed)] for row in rows]


def test_digits(digits: Path) -> None:
    dataset = MultimodalDataset(digits, "train", DIGITS, image_size=28)
    assert dataset.ids == ["d0", "d1", "d2", "d3", "d4"] and dataset.label_names == {"label": ["a", "c"]}
    batch = MultimodalCollator(DIGITS)(samples(dataset, [0, 1, 2, 3, 4]))
    assert {name: list(part) for name, part in batch.items()} == {
        "image": ["pixel_values", "present"],
        "speech": ["values", "present"],
        "vector": ["values", "present"],
        "label": ["labels", "present"],
    }
    present = torch.stack([part["present"] for part in batch.values()])
    assert present.dtype == torch.bool
    assert (~present).nonzero().tolist() == [[0, 1], [1, 2], [2, 3], [3, 1]]
    pixels = batch["image"]["pixel_values"]
    assert (pixels.dtype, pixels.shape) == (torch.float32, (5, 1, 28, 28))
    for number, own in enumerate(pixels):
        expected = np.zeros((28, 28)) if number == 1 else np.asarray(picture(number, (28, 28))) / np.float32(255)
        np.testing.assert_array_equal(own[0].numpy(), expected)
    speech, vector = batch["speech"]["values"], batch["vector"]["values"]
    assert (speech.dtype, speech.shape) == (torch.float32, (5, 4, 3))
    for number in (0, 1, 3, 4):
        assert speech[number].tolist() == digit(number)["speech"].tolist()
    assert (speech[2] == 0).all()
    assert vector.tolist() == [[0, -0.5], [1, -0.5], [2, -0.5], [0, 0], [4, -0.5]]
    assert batch["label"]["labels"].dtype == torch.int64
    assert batch["label"]["labels"].tolist() == [1, 0, 1, 0, 1]  # classes a and c; row 1 has none


def test_studies_with_what_they_have(studies: Path) -> None:
    dataset = MultimodalDataset(studies, "train", STUDY, image_size=64)
    tokenizer = train_tokenizer(dataset.texts(), 290)
    assert dataset.texts() == [*REPORTS, REPORTS[1], REPORTS[0]]
    batch = MultimodalCollator(STUDY, tokenizer=tokenizer)(samples(dataset, [0, 1, 2, 3]))
    assert {name: part["present"].tolist() for name, part in batch.items()} == {
        "frontal": [True, True, True, False],
        "lateral": [True, False, True, False],
        "text": [True, True, False, True],
    }
    frontal, lateral = batch["frontal"]["pixel_values"], batch["lateral"]["pixel_values"]
    assert frontal.shape == lateral.shape == (4, 1, 64, 64)
    assert frontal.min() >= 0 and frontal.max() <= 1 and (frontal[3] == 0).all() and (lateral[[1, 3]] == 0).all()
    np.testing.assert_array_equal(lateral[0, 0].numpy(), crop(picture(1, (60, 90)), 64))
    np.testing.assert_array_equal(frontal[1, 0].numpy(), crop(picture(2), 64), "grey, although stored in colour")
    ids, mask = batch["text"]["input_ids"], batch["text"]["attention_mask"]
    assert ids.dtype == mask.dtype == torch.int64 and ids.shape == mask.shape
    found = [tokenizer.decode(own[real == 1]) for own, real in zip(ids, mask, strict=True)]
    assert found == [f"<s>{text}</s>" for text in (f" {REPORTS[0]}", f" {REPORTS[1]}", "", f" {REPORTS[0]}")]
    assert (ids[mask == 0] == tokenizer.pad_token_id).all()


def crop(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(centre_crop(image, size)) / np.float32(255)


def test_colour(studies: Path) -> None:
    modalities: dict[str, Kind] = {"frontal": "image"}
    dataset = MultimodalDataset(studies, "train", modalities, image_size=32, grayscale=False)
    pixels = MultimodalCollator(modalities)(samples(dataset, [0, 1]))["frontal"]["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(pixels[1, 2].numpy(), crop(picture(2), 32))


def test_a_visit_draws_one_of_several_texts(studies: Path) -> None:
    dataset = MultimodalDataset(studies, "train", {"text": "text"}, image_size=32)
    assert [dataset[Visit(0, seed << 32)].cells["text"] for seed in range(4)] == [*REPORTS, *REPORTS]


def test_a_sample_does_not_depend_on_its_batch(studies: Path) -> None:
    dataset = MultimodalDataset(studies, "train", STUDY, image_size=32)
    collator = MultimodalCollator(STUDY, tokenizer=train_tokenizer(REPORTS, 290), missing_rate=0.5)
    visits = [dataset[Visit(row % 4, seed)] for row, seed in enumerate(range(40, 60))]
    together = collator(visits)
    for place, visit in enumerate(visits):
        for name, part in collator([visit]).items():
            for key, value in part.items():
                other = together[name][key][place]
                assert torch.equal(value[0], other[: value.shape[1]] if name == "text" and value.ndim > 1 else other)


def test_images_are_decoded_once(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = MultimodalDataset(studies, "train", STUDY, image_size=32)
    first = dataset[Visit(0, 0)]
    monkeypatch.delattr("m3ae.data.multimodal.centre_crop")
    np.testing.assert_array_equal(dataset[Visit(0, 1)].cells["frontal"], first.cells["frontal"])


def test_a_damaged_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_splits(tmp_path / "set", train=[{"id": "x7", "image": stored(picture(1))[:60]}])
    dataset = MultimodalDataset(folder, "train", {"image": "image"}, image_size=32)
    with pytest.raises(ValueError, match=r"row 'x7': its image is damaged \(.*\); prepare the folder again"):
        dataset[Visit(0, 0)]


def test_phantoms_with_their_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    prepare("phantom", tmp_path / "out", num_studies=30, image_size=32, num_workers=1)
    modalities: dict[str, Kind] = {"frontal": "image", "text": "text", "finding": "label", "side": "label"}
    dataset = MultimodalDataset(tmp_path / "out", "train", modalities, image_size=32)
    batch = MultimodalCollator(modalities, tokenizer=train_tokenizer(dataset.texts(), 300))(
        samples(dataset, [*range(24)])
    )
    assert dataset.label_names["side"] == ["left", "right"]
    sides = dict(enumerate(dataset.label_names["side"]))
    for place, text in enumerate(dataset.texts()):
        number, there = batch["side"]["labels"][place].item(), batch["side"]["present"][place].item()
        assert {side for side in sides.values() if f"{side} " in text.replace(".", " ")} == (
            {sides[number]} if there else set()
        )
    assert batch["finding"]["present"].all() and batch["text"]["present"].all()
    assert not batch["side"]["present"].all() and batch["frontal"]["pixel_values"].std() > 0.1


def test_dropping_keeps_what_the_noise_says() -> None:
    present = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    noise = torch.tensor([[0.1, 0.6, 0.5], [0.1, 0.3, 0.2], [0.1, 0.9, 0.2], [0.9, 0.0, 0.9], [0.9, 0.9, 0.9]])
    expected = [[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert drop_modalities(present, noise, 0.5).int().tolist() == expected
    assert torch.equal(drop_modalities(present, noise, 0.0), present)
    assert drop_modalities(present, noise, 1.0).sum(1).tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("rate", [0.3, 0.9])
@pytest.mark.parametrize("count", [2, 4])
def test_the_share_that_is_dropped(rate: float, count: int) -> None:
    noise = torch.rand(20_000, count, generator=torch.Generator().manual_seed(0))
    kept = drop_modalities(torch.ones(20_000, count, dtype=torch.bool), noise, rate)
    expected = rate - rate**count / count
    torch.testing.assert_close(1 - kept.float().mean(0), torch.full((count,), expected), rtol=0, atol=0.02)


def test_dropped_modalities_look_like_missing_ones(digits: Path) -> None:
    dataset = MultimodalDataset(digits, "train", DIGITS, image_size=28)
    collator, visits = MultimodalCollator(DIGITS, missing_rate=0.6), samples(dataset, [0] * 8)
    batch = collator([visit._replace(seed=seed) for seed, visit in enumerate(visits)])
    again = collator([visit._replace(seed=seed) for seed, visit in enumerate(visits)])
    present = torch.stack([part["present"] for part in batch.values()], 1)
    assert present.any(1).all() and not present.all() and len({tuple(row) for row in present.tolist()}) > 2
    for name, key in (("image", "pixel_values"), ("speech", "values"), ("vector", "values"), ("label", "labels")):
        part = batch[name]
        assert (part[key][~part["present"]] == 0).all()
        assert torch.equal(part[key], again[name][key])
    assert visits[0].cells["image"].any(), "the dataset keeps what the batch does not show"


def test_augmentation_changes_images_and_depends_on_the_visit_alone(digits: Path) -> None:
    dataset, plain = MultimodalDataset(digits, "train", DIGITS, image_size=28), MultimodalCollator(DIGITS)
    collator = MultimodalCollator(DIGITS, augmentation="affine")
    rows = [*samples(dataset, [0, 0, 1], seed=1), *samples(dataset, [0], seed=2)]
    batch, alone, before = collator(rows), collator(rows[:1]), plain(rows)
    images = batch["image"]["pixel_values"]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], alone["image"]["pixel_values"][0])
    assert not torch.equal(images[0], images[3]) and not torch.equal(images[0], before["image"]["pixel_values"][0])
    assert not images[2].any(), "what is missing stays so"
    assert torch.equal(batch["speech"]["values"], before["speech"]["values"])
    assert rows[0].cells["image"].tobytes() == samples(dataset, [0])[0].cells["image"].tobytes()


def test_labels_are_numbered_as_in_training(digits: Path) -> None:
    dataset = MultimodalDataset(digits, "test", {"label": "label"}, image_size=28)
    assert dataset.label_names == {"label": ["a", "c"]} and dataset[Visit(0, 0)].cells["label"] == 1
    limited = MultimodalDataset(digits, "train", {"label": "label"}, image_size=28, limit=2)
    assert limited.ids == ["d0", "d4"] and limited.label_names == {"label": ["a", "c"]}
    with pytest.raises(ValueError, match=r"'label' has the label 'z', which no training row has; these have a, c"):
        MultimodalDataset(digits, "odd", {"label": "label"}, image_size=28)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"lateral": "image"}, "no column 'lateral'; it has id, image, speech, vector, label"),
        ({"image": "text"}, r"'image' of .* holds Image.*, expected text; it can be image\."),
        ({"label": "image"}, r"'label' of .* expected image; it can be text or label\."),
        ({"speech": "label"}, r"'speech' of .* expected label; it can be vector or sequence\."),
    ],
)
def test_columns_of_another_kind_are_refused(digits: Path, modalities: dict[str, Kind], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultimodalDataset(digits, "train", modalities, image_size=28)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Texts need a tokenizer, got none for text, report\."):
        MultimodalCollator({"image": "image", "text": "text", "report": "text"})
    with pytest.raises(ValueError, match=r"missing_rate is 1.5, expected 0 to 1"):
        MultimodalCollator(DIGITS, missing_rate=1.5)
