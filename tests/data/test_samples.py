from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae.data.collate import Collator, drop_modalities
from m3ae.data.prepare import prepare
from m3ae.data.prepared import load_split
from m3ae.data.samples import Columns, Sample, SampleDataset, Visit, trunk_columns
from m3ae.data.sets import SampleStream, StreamedSet
from m3ae.data.tokenizer import train_tokenizer
from m3ae.images.augment import centre_crop
from m3ae.images.files import StoredImage
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modalities import KINDS, BatchOptions, Modality, configure
from tests.data.folder import grey, write_folder
from tests.data.small_folder import picture, stored, write_splits


def modalities(**options: dict[str, Any]) -> dict[str, Modality]:
    model = M3AEConfig.named("tiny")
    return {name: KINDS[own["kind"]](name, configure(name, own), model) for name, own in options.items()}


def image(channels: int, size: int) -> dict[str, Any]:
    return {"kind": "image", "encoder": "mlp", "shape": [channels, size, size]}


LABEL = {"kind": "label", "labels": ["a", "c"]}
DIGITS = modalities(
    image=image(1, 28),
    speech={"kind": "sequence", "shape": [4, 3]},
    vector={"kind": "vector", "shape": [2]},
    label=LABEL,
)
STUDY = modalities(frontal=image(1, 64), lateral=image(1, 64), text={"kind": "text"})
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
    kinds = modalities(labels={"kind": "labels", "labels": ["large heart", "opacity"]})
    batch = Collator(kinds)(samples(dataset(folder, kinds), [0, 1, 2, 3]))
    assert batch["labels"]["values"].tolist() == [[0, 1], [0, 0], [0, 0], [1, 1]]
    assert batch["labels"]["present"].tolist() == [True, True, False, True]
    kinds["labels"].check_column(lambda: rows)
    wrong = modalities(labels={"kind": "labels", "labels": ["opacty"]})["labels"]
    with pytest.raises(ValueError, match=r"no training row has the label 'opacty'; did you mean opacity\?"):
        wrong.check_column(lambda: rows)


def dataset(folder: Path, kinds: dict[str, Modality], split: str = "train", **options: Any) -> SampleDataset:
    return SampleDataset(folder, split, Columns(kinds), **options)


def samples(dataset: SampleDataset, rows: list[int], seed: int = 0) -> list[Any]:
    return [dataset[Visit(row, seed)] for row in rows]


def test_digits(digits: Path) -> None:
    rows = dataset(digits, DIGITS)
    assert rows.ids == ["d0", "d1", "d2", "d3", "d4"]
    batch = Collator(DIGITS)(samples(rows, [0, 1, 2, 3, 4]))
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
    texts = dataset(studies, STUDY).texts()
    tokenizer = train_tokenizer(texts, 290)
    assert texts == [*REPORTS, REPORTS[1], REPORTS[0]]
    batch = Collator(STUDY, BatchOptions(tokenizer))(samples(dataset(studies, STUDY), [0, 1, 2, 3]))
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
    kinds = modalities(frontal=image(3, 32))
    pixels = Collator(kinds)(samples(dataset(studies, kinds), [0, 1]))["frontal"]["pixel_values"]
    assert pixels.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(pixels[1, 2].numpy(), crop(picture(2), 32))


def test_a_visit_draws_one_of_several_texts(studies: Path) -> None:
    rows = dataset(studies, {"text": STUDY["text"]})
    assert [rows[Visit(0, seed << 32)].cells["text"] for seed in range(4)] == [*REPORTS, *REPORTS]


def test_a_sample_does_not_depend_on_its_batch(studies: Path) -> None:
    rows = dataset(studies, STUDY)
    collator = Collator(STUDY, BatchOptions(train_tokenizer(REPORTS, 290)), missing_rate=0.5)
    visits = [rows[Visit(row % 4, seed)] for row, seed in enumerate(range(40, 60))]
    together = collator(visits)
    for place, visit in enumerate(visits):
        for name, part in collator([visit]).items():
            for key, value in part.items():
                other = together[name][key][place]
                assert torch.equal(value[0], other[: value.shape[1]] if name == "text" and value.ndim > 1 else other)


def test_only_what_may_be_hidden_is_hidden(studies: Path) -> None:
    rows, options = dataset(studies, STUDY), BatchOptions(train_tokenizer(REPORTS, 290))
    names = [name for name in STUDY if name != "text"]
    batch = Collator(STUDY, options, missing_rate=0.9, hidden=names)([rows[Visit(0, seed)] for seed in range(30)])
    assert batch["text"]["present"].all()
    shown = torch.stack([batch[name]["present"] for name in names])
    assert not shown.all() and shown.any(0).all()


def test_images_stay_encoded_until_they_are_batched(studies: Path) -> None:
    cell = dataset(studies, STUDY)[Visit(0, 0)].cells["frontal"]
    assert cell.content == stored(picture(0)) and cell.decode().tobytes() == picture(0).tobytes()


def test_small_images_are_decoded_once_and_large_ones_at_every_visit(
    digits: Path, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = StoredImage.decode

    def count(image: StoredImage) -> Image.Image:
        decoded.append(image.row)
        return decode(image)

    monkeypatch.setattr(StoredImage, "decode", count)
    for folder, kinds in ((digits, {"image": image(1, 28)}), (studies, {"frontal": image(3, 96)})):
        collator = Collator(built := modalities(**kinds))
        first, again = (collator(samples(dataset(folder, built), [0, 2])) for _ in range(2))
        (name,) = kinds
        assert torch.equal(first[name]["pixel_values"], again[name]["pixel_values"])
    assert decoded == ["d0", "d2", *["both", "no report"] * 2]


def test_a_visit_draws_one_of_several_views_and_joins_columns_of_texts(tmp_path: Path) -> None:
    row = {"id": "r", "frontal": stored(picture(0)), "lateral": stored(picture(1)), "asked": "why?", "answer": "so"}
    folder = write_splits(tmp_path / "set", train=[row, {**row, "id": "s", "frontal": None, "answer": None}])
    kinds = {"image": STUDY["frontal"], "text": STUDY["text"]}
    columns = Columns(kinds, {"image": ["frontal", "lateral"], "text": ["asked", "answer"]})
    rows = SampleDataset(folder, "train", columns)
    views = [rows[Visit(0, seed)].cells["image"].content for seed in range(3)]
    assert views == [stored(picture(0)), stored(picture(1)), stored(picture(0))]
    assert [rows[Visit(number, 0)].cells["text"] for number in range(2)] == ["why? so", "why?"]
    assert rows[Visit(1, 0)].cells["image"].content == stored(picture(1))
    assert rows.first(0, 1).cells["image"].content == stored(picture(0)) and rows.first(0, 1).seed == 1


def test_a_damaged_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_splits(tmp_path / "set", train=[{"id": "x7", "image": stored(picture(1))[:60]}])
    kinds = {"image": DIGITS["image"]}
    with pytest.raises(ValueError, match=r"row 'x7': its image is damaged \(.*\); prepare the folder again"):
        Collator(kinds)(samples(dataset(folder, kinds), [0]))


def test_phantoms_with_their_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    prepare("phantom", tmp_path / "out", num_studies=30, image_size=32, num_workers=1)
    table = load_split(tmp_path / "out", "train")
    names = {column: sorted({*table[column]} - {None}) for column in ("finding", "side")}
    labels = {column: {"kind": "label", "labels": own} for column, own in names.items()}
    kinds = modalities(frontal=image(1, 32), text={"kind": "text"}, **labels)
    rows = dataset(tmp_path / "out", kinds)
    batch = Collator(kinds, BatchOptions(train_tokenizer(rows.texts(), 300)))(samples(rows, [*range(24)]))
    sides = dict(enumerate(names["side"]))
    assert sides == {0: "left", 1: "right"}
    for place, text in enumerate(rows.texts()):
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
    collator, visits = Collator(DIGITS, missing_rate=0.6), samples(dataset(digits, DIGITS), [0] * 8)
    batch = collator([visit._replace(seed=seed) for seed, visit in enumerate(visits)])
    again = collator([visit._replace(seed=seed) for seed, visit in enumerate(visits)])
    present = torch.stack([part["present"] for part in batch.values()], 1)
    assert present.any(1).all() and not present.all() and len({tuple(row) for row in present.tolist()}) > 2
    for name, key in (("image", "pixel_values"), ("speech", "values"), ("vector", "values"), ("label", "labels")):
        part = batch[name]
        assert (part[key][~part["present"]] == 0).all()
        assert torch.equal(part[key], again[name][key])
    assert visits[0].present.all(), "the sample keeps what the batch does not show"


def test_augmentation_changes_images_and_depends_on_the_visit_alone(digits: Path) -> None:
    own, plain = dataset(digits, DIGITS), Collator(DIGITS)
    collator = Collator(DIGITS, BatchOptions(augmentation="affine"))
    rows = [*samples(own, [0, 0, 1], seed=1), *samples(own, [0], seed=2)]
    batch, alone, before = collator(rows), collator(rows[:1]), plain(rows)
    images = batch["image"]["pixel_values"]
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], alone["image"]["pixel_values"][0])
    assert not torch.equal(images[0], images[3]) and not torch.equal(images[0], before["image"]["pixel_values"][0])
    assert not images[2].any(), "what is missing stays so"
    assert torch.equal(batch["speech"]["values"], before["speech"]["values"])


def test_labels_are_numbered_as_in_training(digits: Path) -> None:
    kinds = {"label": DIGITS["label"]}
    assert dataset(digits, kinds, "test")[Visit(0, 0)].cells["label"] == 1
    assert dataset(digits, kinds, limit=2).ids == ["d0", "d4"]
    kinds["label"].check_column(lambda: ["c", None, "a", "c"])
    with pytest.raises(ValueError, match=r"got \['a', 'c'\], but the training split has \['a', 'b'\]; name them"):
        kinds["label"].check_column(lambda: ["b", "a"])
    with pytest.raises(ValueError, match=r"'label' has the label 'z', which no training row has; these have a, c"):
        kinds["label"].check_column(lambda: ["a", "z"], training=False)
    with pytest.raises(ValueError, match=r"row 'd0': label: got 'z', expected one of a, c"):
        dataset(digits, kinds, "odd")[Visit(0, 0)]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"lateral": STUDY["lateral"]}, "no column 'lateral'; it has id, image, speech, vector, label"),
        ({"image": STUDY["text"]}, r"'image' of .* holds Image.*, expected text; it can be image\."),
        ({"label": DIGITS["image"]}, r"'label' of .* expected image; it can be text or label\."),
        (
            {"speech": DIGITS["label"]},
            r"'speech' of .* expected label; it can be vector or sequence or volume or slices\.",
        ),
    ],
)
def test_columns_of_another_kind_are_refused(digits: Path, kinds: dict[str, Modality], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataset(digits, kinds)


def test_wrong_options_are_refused(digits: Path) -> None:
    with pytest.raises(ValueError, match=r"Texts need a tokenizer, got none for text, report\."):
        Collator({"image": DIGITS["image"], "text": STUDY["text"], "report": STUDY["text"]})
    with pytest.raises(ValueError, match=r"missing_rate is 1.5, expected 0 to 1"):
        Collator(DIGITS, missing_rate=1.5)
    with pytest.raises(ValueError, match=r"row 'd0': vector: got an array of shape \(2,\), expected \(3,\)"):
        dataset(digits, modalities(vector={"kind": "vector", "shape": [3]}))[Visit(0, 0)]


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_name_their_row(tmp_path: Path, number: float) -> None:
    rows = [{"id": "a", "vector": [1.0, 2.0]}, {"id": "b", "vector": None}, {"id": "c", "vector": [number, 2.0]}]
    folder = write_splits(tmp_path / "set", train=rows)
    with pytest.raises(ValueError, match=r"row 'c': vector has NaN or infinity, expected finite numbers, or null"):
        dataset(folder, modalities(vector={"kind": "vector", "shape": [2]}))
    columns = Columns(modalities(vector={"kind": "vector", "shape": [2]}))
    samples = SampleStream([StreamedSet(folder, columns)], seed=0).share(0, 1)
    with pytest.raises(ValueError, match=r"row 'c': vector has NaN or infinity, expected finite numbers, or null"):
        [next(samples) for _ in rows]


REPORT_ROWS = {
    "id": ["a", "b", "c", "d"],
    "frontal": [10, None, 30, None],
    "lateral": [11, 21, None, None],
    "text": [["first report", "second report"], None, ["third report of c"], ["only text here"]],
    "question": ["Where?", "What?", None, "Why?"],
    "answer": ["left lung", None, None, "ill"],
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory):
    return write_folder(tmp_path_factory.mktemp("prepared"), REPORT_ROWS, images=["frontal", "lateral"])


def trunk(reports, text_column="text", **options) -> SampleDataset:
    return SampleDataset(reports, "train", trunk_columns(["frontal", "lateral"], text_column), **options)


def test_missing_sides_are_none(reports) -> None:
    found = [trunk(reports).first(index, 0) for index in range(4)]
    assert [(s.id, grey(s.picture) if s.images else None, s.text) for s in found] == [
        ("a", 10, "first report"),
        ("b", 21, None),
        ("c", 30, "third report of c"),
        ("d", None, "only text here"),
    ]


def test_visits_draw_views_and_texts_by_their_seed(reports) -> None:
    dataset = trunk(reports)
    seeds = [view + (text << 32) for view in range(4) for text in range(4)]
    visits = [dataset[Visit(0, seed)] for seed in seeds]
    assert [grey(sample.picture) for sample in visits] == [10, 10, 10, 10, 11, 11, 11, 11] * 2
    assert [sample.text for sample in visits] == ["first report", "second report"] * 8
    assert [sample.seed for sample in visits] == seeds


def test_all_texts_are_samples_of_their_own(reports) -> None:
    dataset = trunk(reports, texts="all")
    found = [dataset[Visit(index, 7 << 32)] for index in range(len(dataset))]
    assert [(sample.id, sample.text) for sample in found] == [
        ("a", "first report"),
        ("a", "second report"),
        ("b", None),
        ("c", "third report of c"),
        ("d", "only text here"),
    ]


@pytest.mark.parametrize("texts", ["one", "all"])
def test_the_length_of_a_visit_is_that_of_its_text(reports, texts) -> None:
    dataset = trunk(reports, texts=texts)
    for visit in (Visit(index, seed << 31) for index in range(len(dataset)) for seed in range(6)):
        assert dataset.length(visit) == len(dataset[visit].text or "")


def test_questions_are_texts_and_answers_are_joined_to_them(reports) -> None:
    questions, both = trunk(reports, "question"), trunk(reports, ["question", "answer"])
    assert [questions.first(i, 0).text for i in range(4)] == ["Where?", "What?", None, "Why?"]
    assert [both.first(i, 0).text for i in range(4)] == ["Where? left lung", "What?", None, "Why? ill"]
    assert both.texts() == ["Where? left lung", "What?", "Why? ill"]
    assert both.length(Visit(0, 5)) == len("Where? left lung")


def test_limit_spreads_over_the_split(reports) -> None:
    dataset = trunk(reports, limit=2)
    assert [dataset.first(index, 0).id for index in range(len(dataset))] == ["a", "d"]


def test_texts(reports) -> None:
    assert trunk(reports).texts() == ["first report", "second report", "third report of c", "only text here"]
    assert trunk(reports, None).texts() == []
    assert trunk(reports).texts_of("text") == [row or [] for row in REPORT_ROWS["text"]]


def test_unknown_columns_list_those_there_are(reports) -> None:
    with pytest.raises(
        ValueError,
        match=r"no column 'image'; it has id, frontal, lateral, text, question, answer. Set data.image_columns",
    ):
        SampleDataset(reports, "train", trunk_columns(["image"], "text"))


def test_lists_of_texts_cannot_be_joined(reports) -> None:
    with pytest.raises(ValueError, match=r"Column 'text' of .* only columns of one text each can be joined"):
        trunk(reports, ["question", "text"])


def questions(folder: Path, images: list[int | None], limit: int | None = None) -> SampleDataset:
    """Two questions about each row."""
    rows = [{"id": f"r{i}", "image": image, "text": "own text", "kind": "k"} for i, image in enumerate(images)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    dataset = SampleDataset(write_folder(folder, columns, ["image"]), "train", trunk_columns(["image"], "text"))
    asked = [Sample(f"e{i}", {"text": f"text {i}"}, target=i, row=i // 2) for i in range(2 * len(images))]
    return dataset.of(asked, limit)


def shade(sample: Sample) -> int | None:
    return grey(sample.picture) if sample.images else None


def test_a_task_makes_samples_of_rows(tmp_path: Path) -> None:
    dataset = questions(tmp_path / "data", [10, 20])
    second = dataset[Visit(2, 7)]
    assert (second.id, second.text, second.target, second.seed, shade(second)) == ("e2", "text 2", 2, 7, 20)
    assert dataset.length(Visit(2, 7)) == 6 and dataset.ids == ["e0", "e1", "e2", "e3"]
    assert dataset.texts() == [f"text {i}" for i in range(4)] and dataset.first(3).text == "text 3"
    assert list(dataset.rows())[1] == {"id": "r1", "text": "own text", "kind": "k"}
    half = dataset.of([sample for sample in dataset.samples if sample.target > 1])
    assert [half.first(index).id for index in range(len(half))] == ["e2", "e3"] and len(dataset) == 4
    assert len(dataset.of([])) == 0
    rows = dataset.of([Sample("r0", {}, row=0)])
    assert rows.first(0).text == "own text" and rows.texts() == ["own text"], "what it does not say, the row does"


def test_a_limit_keeps_samples_from_everywhere(tmp_path: Path) -> None:
    assert [sample.row for sample in questions(tmp_path / "data", [0, 1, 2], limit=3).samples] == [0, 1, 2]


def test_other_images_differ_in_the_image_alone(tmp_path: Path) -> None:
    dataset = questions(tmp_path / "data", [10, 10, None, 10, 20, 30])
    dataset = dataset.of(dataset.samples[::2])
    others = dataset.with_other_images()
    samples = [(dataset[Visit(i)], others[Visit(i)]) for i in range(len(dataset))]
    # three further on; where that is the same image or none, the next after it
    assert [shade(other) for _, other in samples] == [20, 20, None, 20, 10, 10]
    for sample, other in samples:
        assert other._replace(cells={**other.cells, "image": sample.cells["image"]}, row=sample.row) == sample


def test_without_another_image_the_own_one_stays(tmp_path: Path) -> None:
    assert shade(questions(tmp_path / "data", [10, 10]).with_other_images()[Visit(0)]) == 10
