import numpy as np
import pytest
import torch
from PIL import Image

from m3ae import M3AEForPreTraining, M3AEImageProcessor, M3AEProcessor
from m3ae.data.tokenizer import train_tokenizer
from m3ae.inference import MaskedWord, reconstruct
from m3ae.inference.drawing import mark_words
from m3ae.inference.reconstruction import predicted_patches
from m3ae.models.masking import patchify
from tests.models.tiny import tiny_of

TEXTS = ["A large nodule on the left.", "Small effusion, right lower zone; no pneumothorax."]


@pytest.fixture(scope="module")
def processor() -> M3AEProcessor:
    return M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer(TEXTS, 300))


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in TEXTS]


def build(processor: M3AEProcessor, **options) -> M3AEForPreTraining:
    return tiny_of(M3AEForPreTraining, text_config={"vocab_size": len(processor.tokenizer)}, **options)


@pytest.mark.parametrize("schedule", ["separate", "joint"])
def test_it_is_the_masked_pass_of_training(processor, images, schedule):
    model = build(processor, schedule=schedule, mask_ratio=0.5)
    (sample,) = reconstruct(model, processor, images[:1], TEXTS[:1], word_ratio=0.3, seed=3)
    inputs = processor(images=images[0], text=TEXTS[0], return_tensors="pt", return_offsets_mapping=True)
    ids, masked = inputs["input_ids"], inputs["input_ids"].clone()
    assert len(sample.words) == 2, "of six words"
    labels = torch.full_like(ids, -100)
    for word in sample.words:
        start = TEXTS[0].index(word.word)
        inside = (inputs["offset_mapping"][..., 0] >= start) & (
            inputs["offset_mapping"][..., 1] <= start + len(word.word)
        )
        inside &= inputs["offset_mapping"][..., 1] > 0
        labels[inside] = ids[inside]
        masked[inside] = processor.tokenizer.mask_token_id
    noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(3))
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        output = model(pixels, ids, mlm_input_ids=masked, mlm_labels=labels, image_noise=noise)
    predicted = output.mlm_logits[0].softmax(-1).max(-1)
    masked_tokens = output.mlm_labels[0] != -100
    torch.testing.assert_close(
        torch.tensor([word.score for word in sample.words]).prod(),
        predicted.values[masked_tokens].prod(),
        rtol=1e-4,
        atol=1e-8,
    )
    patches = predicted_patches(model, pixels, output.mim_logits)[0]  # (N, P·P·C)
    std, mean = (
        torch.tensor(value) for value in (processor.image_processor.image_std, processor.image_processor.image_mean)
    )
    hidden = output.mim_mask[0].view(4, 4)
    made = patchify(torch.from_numpy(sample.filled).permute(2, 0, 1)[None], 8)[0].view(4, 4, 64, 3)
    expected = (patches.view(4, 4, 64, 3) * std + mean).clamp(0, 1)
    torch.testing.assert_close(made[hidden], expected[hidden], rtol=1e-4, atol=1e-4)
    assert np.array_equal(~np.isnan(sample.errors), hidden.numpy())
    original = patchify(torch.from_numpy(sample.original).permute(2, 0, 1)[None], 8)[0].view(4, 4, 64, 3)
    errors = (expected - original).abs().mean((2, 3))
    torch.testing.assert_close(torch.from_numpy(sample.errors)[hidden], errors[hidden], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample.mean_error, float(errors[hidden].mean()), rtol=1e-4, atol=1e-4)


def test_samples_do_not_depend_on_each_other_and_may_lack_either_side(processor, images):
    model = build(processor)
    both, no_text, no_image = reconstruct(model, processor, [*images, None], [TEXTS[0], None, TEXTS[1]])
    (alone,) = reconstruct(model, processor, images[:1], TEXTS[:1])
    np.testing.assert_allclose(both.filled, alone.filled, atol=1e-5)
    assert [word.word for word in both.words] == [word.word for word in alone.words]
    assert no_text.words is None and no_text.filled is not None
    assert no_image.filled is None and no_image.mean_error is None and no_image.words
    (text_only,) = reconstruct(model, processor, [None], TEXTS[:1])
    assert text_only.original is None and len(text_only.words) == 1
    (image_only,) = reconstruct(model, processor, images[:1], [None])
    assert not np.allclose(image_only.filled, alone.filled, atol=1e-4), "the text helps"


def test_nothing_and_everything_hidden(processor, images):
    model = build(processor)
    (sample,) = reconstruct(model, processor, images[:1], [TEXTS[1]], mask_ratio=0.0, word_ratio=1.0)
    assert np.isnan(sample.errors).all() and sample.mean_error is None
    assert np.array_equal(sample.original, sample.filled)
    assert [word.word for word in sample.words] == [
        "Small",
        "effusion",
        "right",
        "lower",
        "zone",
        "no",
        "pneumothorax",
    ]
    (sample,) = reconstruct(model, processor, images[:1], [""], mask_ratio=1.0)
    assert np.isnan(sample.errors).sum() == 1, "one patch always stays"
    assert sample.words == []
    with pytest.raises(ValueError, match="mask_ratio is the share that is hidden, 0 to 1, got 3"):
        reconstruct(model, processor, images[:1], [None], mask_ratio=3)


def test_hidden_words_are_marked_in_the_text():
    words = [MaskedWord("nodule", 2, "mass", 0.6), MaskedWord("left", 5, "left", 0.9)]
    assert mark_words(TEXTS[0], words) == "A large [nodule → mass] on the [left]."
    assert mark_words(TEXTS[0], None) == TEXTS[0]
    assert mark_words("右肺结节。", [MaskedWord("肺结", 1, "上", 0.5)]) == "右[肺结 → 上]节。", (
        "one token of two characters"
    )


def test_words_without_blanks_are_hidden_as_far_as_their_tokens_reach(processor):
    text = "右肺下叶见斑片状密度增高影。"
    chinese = M3AEProcessor(processor.image_processor, train_tokenizer([text] * 3, 400))
    (sample,) = reconstruct(build(chinese), chinese, [None], [text], word_ratio=1.0)
    assert len(sample.words) > 3 and max(len(word.word) for word in sample.words) > 1
    assert all(word.word == text[word.position : word.position + len(word.word)] for word in sample.words)
    assert sample.words[-1].position + len(sample.words[-1].word) == len(text) - 1, "all but the full stop"


def test_the_latent_head_is_not_asked(processor, images):
    """A text may be longer than the latent head's decoder takes."""
    latent = {"size": 2, "modalities": {"image": {"kind": "image"}, "text": {"kind": "text", "max_length": 4}}}
    model = build(processor, latent=latent)
    (with_head,) = reconstruct(model, processor, images[:1], TEXTS[:1])
    model.latent_head = None
    (without,) = reconstruct(model, processor, images[:1], TEXTS[:1])
    assert with_head.words == without.words and np.array_equal(with_head.filled, without.filled)


def test_padding_is_neither_hidden_nor_filled(processor, images):
    padding = M3AEProcessor(M3AEImageProcessor.for_size(32, "pad"), processor.tokenizer)
    model = build(padding, image_config={"resize": "pad"}, mask_ratio=0.5)
    long, square = reconstruct(model, padding, [images[0].resize((16, 32)), images[1]], TEXTS)
    assert np.isnan(long.errors[:, [0, 3]]).all() and (~np.isnan(long.errors[:, 1:3])).sum() == 4
    assert not long.masked[:, :8].any() and not long.filled[:, 24:].any(), "black"
    assert (~np.isnan(square.errors)).sum() == 8
