import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from m3ae import (
    M3AEForClassification,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEImageProcessor,
    M3AEProcessor,
)
from m3ae.data.tokenizer import train_tokenizer
from m3ae.figures import save_figure
from m3ae.inference.attention import POOLED, word_attention
from m3ae.inference.drawing import draw_word_attention
from tests.models.tiny import tiny_of

TEXT = "Is there, a pneumothorax on the left?"
WORDS = [POOLED, "Is", "there", "a", "pneumothorax", "on", "the", "left"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Is there a mass on the left?"] * 3, 300)


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerBase) -> M3AEProcessor:
    return M3AEProcessor(M3AEImageProcessor.for_size(32), tokenizer)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerBase) -> M3AEForQuestionAnswering:
    return tiny_of(M3AEForQuestionAnswering, text_config={"vocab_size": len(tokenizer)}, id2label={0: "yes", 1: "no"})


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))


def test_words_have_the_mean_over_heads_and_tokens(model, processor, image):
    words, maps = word_attention(model, processor, image, TEXT)
    assert words == WORDS
    assert maps.shape == (len(WORDS), 4, 4)
    encoded = processor(images=image, text=TEXT, return_tensors="pt")
    streams = model.m3ae.encode(encoded["pixel_values"], encoded["input_ids"])
    rows = model.m3ae.fusion.cross_attention(streams, "text")[0].mean(0)[:, 1:] * 17
    starts = processor.tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]
    unseen = [token for token, (start, _) in enumerate(starts) if 12 <= start < 24]
    assert len(unseen) > 1 and TEXT[12:24] == "pneumothorax"
    torch.testing.assert_close(maps[0].flatten(), rows[0])
    torch.testing.assert_close(maps[WORDS.index("pneumothorax")].flatten(), rows[unseen].mean(0))


@pytest.mark.parametrize("text", [TEXT, None])
def test_padding_gets_no_attention(model, tokenizer, image, text):
    processor = M3AEProcessor(M3AEImageProcessor.for_size(32, "pad"), tokenizer)
    maps = word_attention(model, processor, image.resize((16, 32)), text).maps
    assert not maps[..., [0, 3]].any() and (maps[..., 1:3] > 0).all()
    assert (maps.sum((1, 2)) < 1 + 8).all() and (maps.sum((1, 2)) > 6).all(), "multiples of a ninth"


def test_words_that_are_cut_off_have_no_map(model, processor, image, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "model_max_length", 5)
    assert word_attention(model, processor, image, TEXT).words == WORDS[:3]


def test_the_picture(model, processor, image, tmp_path):
    path = tmp_path / "attention.png"
    save_figure(draw_word_attention(model, processor, image, TEXT, note="costs $1 or $2"), path)
    with Image.open(path) as picture:
        assert picture.width > picture.height > 300


@pytest.mark.parametrize("kind", [M3AEForClassification, M3AEForImageTextRetrieval, M3AEForPreTraining])
def test_every_head_has_a_map(tokenizer, processor, image, kind):
    other = tiny_of(kind, text_config={"vocab_size": len(tokenizer)})
    assert word_attention(other, processor, image, TEXT).words == WORDS
    words, maps = word_attention(other, processor, image, None)
    assert words == [POOLED] and maps.shape == (1, 4, 4)
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        weights = other.m3ae(pixel_values=pixels, output_attentions=True).attentions[-1][0].mean(0)[0]
    assert weights.sum() == pytest.approx(1)
    torch.testing.assert_close(maps[0].flatten(), weights[1:] * 17)


def test_a_head_that_reads_images_alone_has_no_map_of_words(model, processor, image):
    model.config.input_streams = ["image"]
    assert word_attention(model, processor, image, TEXT).words == [POOLED]
    with pytest.raises(TypeError, match=r"text: got \[\], expected one text, or None"):
        word_attention(model, processor, image, [])
    with pytest.raises(TypeError, match="got an image of type list, expected a picture, an array, a tensor or"):
        word_attention(model, processor, [], TEXT)


@torch.no_grad()
@pytest.mark.parametrize("text", [TEXT, None])
def test_each_view_of_a_study_has_its_map(tokenizer, processor, image, text):
    views = ["frontal", "lateral"]
    other = tiny_of(M3AEForClassification, text_config={"vocab_size": len(tokenizer)}, views=views)
    study = {"frontal": image, "lateral": image.rotate(90)}
    words, maps = word_attention(other, processor, study, text)
    assert words == ([POOLED] if text is None else WORDS) and maps.shape == (len(words), 2, 4, 4)
    pixels = processor(images=[*study.values()], return_tensors="pt")["pixel_values"][None]
    streams = {"image": other.m3ae.encode_image(pixels, present=torch.ones(1, 2, dtype=torch.bool))}
    if text is None:
        rows = [weights[0].mean(0)[0] for weights in other.m3ae.fusion.self_attention(streams, "image")]
        assert [float(row.sum()) for row in rows] == pytest.approx([1, 1])
        expected = torch.stack(rows)[:, 1:] * 17
    else:
        streams = {"text": other.m3ae.encode_text(tokenizer(text, return_tensors="pt")["input_ids"])} | streams
        expected = other.m3ae.fusion.cross_attention(streams, "text")[0].mean(0)[0].view(2, 17)[:, 1:] * 34
    torch.testing.assert_close(maps[0].flatten(1), expected)
    alone = word_attention(other, processor, {"lateral": study["lateral"]}, text)
    first = word_attention(other, processor, study["lateral"], text)
    assert alone.maps.shape[1] == 1 and not torch.equal(alone.maps[:, 0], first.maps), "a view has its own type"
    figure = draw_word_attention(other, processor, study, text)
    assert figure.axes[0].get_title() == "frontal, lateral"
