import json
from pathlib import Path

import pytest

from m3ae.data.tokenizer import train_tokenizer
from m3ae.transfer.text_encoders import load_tokenizer

TEXTS = ["A small nodule projects over the left upper zone.", "Clear lungs; no effusion.", "Œdème — 3×4 cm"] * 3


def test_trained_tokenizer_has_the_layout_of_roberta() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 4]
    ids = tokenizer("Clear lungs")["input_ids"]
    assert ids[0] == 0 and ids[-1] == 2
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Clear lungs"


def test_any_text_survives_encoding() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    for text in ("Ödem – 5 µm ≈ 0.2″", "日本語", TEXTS[2]):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text


def test_a_clause_without_blanks_is_no_token() -> None:
    texts = [
        "两肺未见明显异常改变，心影不大。",
        "両肺野に異常陰影を認めない。",
        "ปอดปกติไม่พบความผิดปกติ",
        "MRI: no lesion",
    ] * 9
    tokenizer = train_tokenizer(texts, 2000)
    for text in texts:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        assert 3 <= max(end - start for start, end in spans) <= 6, "four characters, or parts of two of them and three"
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
    long = train_tokenizer(["cholecystolithiasis and pneumoperitoneum", "两肺"] * 9, 2000)
    assert len(long("pneumoperitoneum", add_special_tokens=False)["input_ids"]) == 1, "most words have blanks"


def test_training_is_deterministic() -> None:
    first, second = (train_tokenizer(TEXTS, 350).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_save_and_load(tmp_path) -> None:
    tokenizer = train_tokenizer(TEXTS, 350)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [([""], 400, "at least one non-empty training text"), (TEXTS, 100, r"at least 261 \(all bytes\), got 100")],
)
def test_bad_input(texts, size, message) -> None:
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, size)


def test_a_missing_tokenizer_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"No tokenizer in .*leave tokenizer\.path out"):
        load_tokenizer(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "ids"),  # by an implementation of byte-level BPE from its description, with the published files
    [
        ("Hello world", [0, 31414, 232, 2]),
        ("3.5 cm, L4-5", [0, 246, 4, 245, 25434, 6, 226, 306, 12, 245, 2]),
        ("12.25mm (2x3) T2/FLAIR.", [0, 1092, 4, 1244, 5471, 36, 176, 1178, 246, 43, 255, 176, 73, 7613, 35518, 4, 2]),
    ],
)
def test_ids_of_the_published_vocabulary(shared: Path, text: str, ids: list[int]) -> None:
    assert load_tokenizer(str(shared / "vocab"))(text)["input_ids"] == ids


def test_files_of_two_tokenizers_in_a_folder(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 350).save_pretrained(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    lines = [" ".join(merge) for merge in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]))
    assert len(load_tokenizer(str(tmp_path))) == len(model["vocab"])
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"are two tokenizers: merge 0 is .* Remove what the model"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"] | {"<unk>": 9}))
    with pytest.raises(ValueError, match=r"are two tokenizers: '<unk>' is 3 and 9"):
        load_tokenizer(str(tmp_path))
