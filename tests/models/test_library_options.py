"""What transformers lets one change about a model: attention, vocabulary, tied weights, the Auto classes."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from m3ae import M3AEForGeneration, M3AEForPreTraining
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.test_other_programs import GENERATORS, build, every_class, same
from tests.models.tiny import tiny_batch, tiny_config, tiny_model
from tests.models.tiny_latent import latent_model


@every_class
def test_the_implementation_of_attention_reaches_every_part(
    model_class: type[M3AEPreTrainedModel], options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = build(model_class, **options)
    other, _ = build(model_class, **options)
    with caplog.at_level(logging.WARNING):
        other.set_attn_implementation("eager")
    assert not caplog.records
    attention = other.base_model.image_encoder.vit.blocks[0].attn
    tokens = torch.zeros(1, 3, 32)
    assert attention(tokens)[1].shape == (1, 2, 3, 3)
    parts = (other.config.image_config, other.config.text_config, other.config)
    assert {part._attn_implementation for part in parts} == {"eager"}
    same(model, other, inputs, tolerance=1e-4)
    other.set_attn_implementation({"image_config": "sdpa"})
    assert attention(tokens)[1] is None and other.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="flex"):
        other.set_attn_implementation("flex_attention")
    assert other.config.image_config._attn_implementation == "sdpa"


def test_a_model_without_a_text_encoder_says_nothing_of_its_attention(caplog: pytest.LogCaptureFixture) -> None:
    model = latent_model()
    with caplog.at_level(logging.WARNING):
        model.set_attn_implementation("sdpa")
    assert not caplog.records and model.config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("options", GENERATORS.values(), ids=GENERATORS)
def test_a_generator_takes_and_writes_further_words(options: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = build(M3AEForGeneration, **options)
    with torch.no_grad():
        before = model(**inputs).losses["nll_text"]
    assert model.get_input_embeddings().num_embeddings == 128
    model.resize_token_embeddings(140)
    assert model.config.text_config.vocab_size == 140 == model.latent_head.decoders["text"].vocab_size
    with torch.no_grad():
        assert model(**inputs).losses["nll_text"] > before - 1e-3  # there are more words to choose from
    inputs["modalities"]["text"]["input_ids"][:, 1] = 139
    model.save_pretrained(tmp_path)
    same(model, M3AEForGeneration.from_pretrained(tmp_path).eval(), inputs)


def test_word_embeddings_may_be_tied(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert model.mlm_head.decoder.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = M3AEForPreTraining.from_pretrained(tmp_path).eval()
    assert loaded.mlm_head.decoder.weight is loaded.get_input_embeddings().weight
    torch.testing.assert_close(loaded(**tiny_batch()).loss, model(**tiny_batch()).loss)
    plain = tiny_model()
    assert plain.mlm_head.decoder.weight is not plain.get_input_embeddings().weight
    with pytest.raises(ValueError, match="word embeddings of width 32 cannot be the weights of a head that reads tok"):
        M3AEForPreTraining(tiny_config(tie_word_embeddings=True, hidden_size=64))


def test_a_generator_is_not_loaded_with_a_random_fusion(tmp_path: Path) -> None:
    build(M3AEForGeneration, **next(iter(GENERATORS.values())))[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The saved model is M3AEForGeneration, which has no fusion"):
        AutoModel.from_pretrained(tmp_path)
