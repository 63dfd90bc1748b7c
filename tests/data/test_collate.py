from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import RobertaTokenizer

from m3ae.data.collate import TrunkCollator
from m3ae.data.samples import Sample
from m3ae.data.tokenizer import train_tokenizer
from m3ae.images.files import StoredImage
from m3ae.models.modalities import BatchOptions, trunk_modalities
from m3ae.models.modalities.text import spell_words, word_ids
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.transfer.text_encoders import load_tokenizer
from tests.data.small_folder import stored
from tests.models.tiny import tiny_config

TEXT = "Left-sided effusion, 3.5 cm; the patient's lung is clear..."
WORDS = ["Left", "-", "sided", "effusion", ",", "3", ".", "5", "cm", ";"]
WORDS += ["the", "patient's", "lung", "is", "clear", "..."]


def image(value: int, size: tuple[int, int] = (40, 32), mode: str = "L") -> Image.Image:
    noise = np.random.default_rng(value).integers(0, 256, size=(size[1], size[0]), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def sample(number: int, text: str | None = "some text", picture: bool = True, seed: int = 5) -> Sample:
    return Sample(f"{number}", {"image": cell(image(number)) if picture else None, "text": text}, seed)


def cell(image: Image.Image) -> StoredImage:
    return StoredImage(stored(image), "row")


def collator_of(processor: M3AEProcessor, **options) -> TrunkCollator:
    return TrunkCollator(trunk_modalities(tiny_config()), BatchOptions(processor.tokenizer, 24, **options))


@pytest.fixture(scope="module")
def processor() -> M3AEProcessor:
    return M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer([f"some text {TEXT}"] * 2, 290))


@pytest.fixture(scope="module")
def collator(processor) -> TrunkCollator:
    return collator_of(processor, crop_scale=(0.5, 1.0))


def test_batch(collator) -> None:
    batch = collator([sample(0), sample(1, text=None), sample(2), sample(3, picture=False)])
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and (batch["pixel_values"][3] == 0).all()
    assert batch["image_present"].tolist() == [True, True, True, False]
    assert batch["text_present"].tolist() == [True, False, True, True]
    assert batch["input_ids"].shape[1] % 8 == 0
    assert batch["attention_mask"].sum(1)[1] == 2  # <s></s>
    assert len(set(batch["image_ids"].tolist())) == 4 and batch["image_ids"][3] == 0 == batch["text_ids"][1]
    assert batch["text_ids"][0] == batch["text_ids"][2] != 0
    assert batch["image_noise"].shape == (4, 16) and batch["match_noise"].shape == (4, 2)
    assert batch["text_noise"].shape == (*batch["input_ids"].shape, 2)
    complete = collator([sample(0), sample(2)])
    assert complete["image_present"].all() and complete["text_present"].all() and "word_ids" not in complete
    assert complete.keys() == batch.keys(), "one program, whatever is missing"


def test_a_sample_does_not_depend_on_its_batch(collator) -> None:
    alone, together = collator([sample(0)]), collator([sample(2, text=TEXT, seed=7), sample(0)])
    assert torch.equal(alone["pixel_values"][0], together["pixel_values"][1])
    for name in ("image_noise", "match_noise", "text_noise"):
        length = alone[name].shape[1]
        assert torch.equal(alone[name][0], together[name][1, :length])


def test_texts_are_padded_to_the_longest_and_cut_at_the_maximum(collator) -> None:
    assert collator([sample(0, text="some")])["input_ids"].shape[1] == 8
    assert collator([sample(0, text="some"), sample(1, text=TEXT * 3)])["input_ids"].shape[1] == 24


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize("size", [(40, 32), (32, 77), (20, 25)])
def test_evaluation_has_the_pixels_of_the_processor(processor, size, mode) -> None:
    picture = image(1, size, mode)
    found = collator_of(processor).inputs([Sample("a", {"image": cell(picture), "text": None}, 5)])["pixel_values"]
    expected = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def found_words(text: str, tokenizer) -> list[str]:
    """Put the tokens of each word together again."""
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    offsets = np.array(encoded["offset_mapping"])
    ids = word_ids(text, offsets[:, 0]).tolist()
    assert ids == sorted(ids)
    return [
        text[
            min(o[0] for o, i in zip(offsets, ids, strict=True) if i == word) : max(
                o[1] for o, i in zip(offsets, ids, strict=True) if i == word
            )
        ].strip()
        for word in dict.fromkeys(ids)
    ]


def test_words_are_found_by_the_place_of_their_tokens(processor) -> None:
    assert found_words(TEXT, processor.tokenizer) == WORDS
    assert found_words("Ödem — 5 µm", processor.tokenizer) == ["Ödem", "—", "5", "µm"]
    assert found_words("CT示左肺，हृदय सामान्य", processor.tokenizer) == ["CT", "示", "左", "肺", "，", "हृदय", "सामान्य"]


def test_a_word_is_spelt_as_far_as_its_tokens_reach() -> None:
    text, ends = "左肺 结节 seen", torch.tensor([0, 2, 4, 5, 7, 10])  # <s>, 左肺, 结, 节, " se", and "en" is cut off
    ids = word_ids(text, np.array([0, 0, 2, 4, 5, 8]))
    assert ids.tolist() == [0, 0, 2, 3, 4, 4]
    ids[0] = -1
    assert spell_words(text, ids, ends) == ["左肺", "肺", "结", "节", "seen"], "no token starts with 肺"


@pytest.mark.real_data
def test_words_of_the_published_vocabulary(shared: Path) -> None:
    tokenizer = RobertaTokenizer(vocab=str(shared / "vocab/vocab.json"), merges=str(shared / "vocab/merges.txt"))
    assert len(tokenizer) == 50265 and tokenizer.mask_token_id == 50264
    assert found_words(TEXT, tokenizer) == WORDS
    assert found_words("pneumoperitoneum,cholecystolithiasis", tokenizer) == [
        "pneumoperitoneum",
        ",",
        "cholecystolithiasis",
    ]


@pytest.mark.real_data
def test_a_saved_published_tokenizer_is_loaded_and_collates(shared: Path, tmp_path: Path) -> None:
    RobertaTokenizer(vocab=str(shared / "vocab/vocab.json"), merges=str(shared / "vocab/merges.txt")).save_pretrained(
        tmp_path
    )
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32), load_tokenizer(str(tmp_path)))
    batch = collator_of(processor, word_ids=True)([sample(0, text="Cardiomegaly, mild.")])
    ids, words = batch["input_ids"][0], batch["word_ids"][0]
    assert processor.tokenizer.decode(ids[:1]) == "<s>" and (batch["special_tokens_mask"][0, 0] == 1).all()
    real = batch["special_tokens_mask"][0] == 0
    assert processor.tokenizer.decode(ids[real]) == "Cardiomegaly, mild."
    assert words[real].unique().tolist() == [0, 1, 2, 3]


def test_whole_words_need_the_place_of_tokens(processor) -> None:
    class SlowTokenizer:
        is_fast = False

    slow = M3AEProcessor(processor.image_processor, processor.tokenizer)
    slow.tokenizer = SlowTokenizer()
    with pytest.raises(ValueError, match=r"needs a fast tokenizer.*got SlowTokenizer"):
        collator_of(slow, word_ids=True)


def test_tokenizer_without_mask_token_is_refused() -> None:
    tokenizer = train_tokenizer(["some text"], 300)
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="needs a tokenizer with a mask_token"):
        M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer)
