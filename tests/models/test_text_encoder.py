"""Text encoders of any architecture: what they compute is what transformers computes with the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.transfer.text_encoders import init_text_encoder
from tests.models.published import assert_close, shake
from tests.models.tiny import tiny_batch, tiny_model

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "camembert": SIZES,
    "deberta": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8},
    "distilbert": {"vocab_size": 120, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    | {"max_position_embeddings": 66},
    "electra": SIZES | {"embedding_size": 16},
    "modernbert": SIZES | SPECIAL,
    "mpnet": SIZES,
    "roberta": SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": SIZES,
}
SHIFTED = {"camembert", "mpnet", "roberta", "xlm-roberta"}  # positions begin after the padding token's index


def saved(model_type: str, folder: Path) -> Any:
    """Save a masked-language model of an architecture, and return its encoder."""
    source = shake(AutoModelForMaskedLM.from_config(AutoConfig.for_model(model_type, **ARCHITECTURES[model_type])))
    source.save_pretrained(folder)
    return AutoModel.from_pretrained(folder).eval()


def pretraining_model(model_type: str) -> M3AEForPreTraining:
    options = ARCHITECTURES[model_type] | {"model_type": model_type}
    return tiny_model(text_config=options, mask_token_id=119)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
class TestArchitectures:
    def test_it_computes_what_the_source_does(self, model_type: str, tmp_path: Path) -> None:
        source = saved(model_type, tmp_path / "source")
        model = pretraining_model(model_type)
        report = init_text_encoder(model, str(tmp_path / "source"))
        batch = tiny_batch()
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        expected = source(**text).last_hidden_state
        real = text["attention_mask"].bool()  # what stands at padding differs between implementations of attention
        assert_close(model.m3ae.text_encoder(**text).last_hidden_state[real], expected[real])
        assert not report.missing and not report.remarks
        model.save_pretrained(tmp_path / "model")
        loaded = M3AEForPreTraining.from_pretrained(tmp_path / "model").eval()
        assert torch.equal(loaded(**batch).loss, model(**batch).loss)

    def test_the_masked_passes_train_it(self, model_type: str) -> None:
        model, batch = pretraining_model(model_type).train(), tiny_batch()
        model(**batch, text_present=torch.tensor([True, False, True, True])).loss.backward()
        words = model.get_input_embeddings().weight.grad
        assert words is not None and words.isfinite().all() and words.abs().sum() > 0

    def test_the_longest_text(self, model_type: str) -> None:
        model = pretraining_model(model_type)
        assert model.config.longest_text == (64 if model_type in SHIFTED else 66)
        ids = torch.full((1, model.config.longest_text), 7)
        assert model.m3ae(input_ids=ids).text_hidden_state.shape == (1, model.config.longest_text, 32)

    def test_padding_changes_nothing(self, model_type: str) -> None:
        model = pretraining_model(model_type)
        ids, padded = torch.full((1, 5), 7), torch.full((1, 9), 7)
        padded[:, 5:] = model.config.text_config.pad_token_id
        mask = torch.zeros(1, 9, dtype=torch.long)
        mask[:, :5] = 1
        expected = model.m3ae(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        assert_close(model.m3ae(input_ids=padded, attention_mask=mask).pooler_output, expected)


@pytest.mark.parametrize("model_type", ["bart", "gpt2", "swin", "t5", "nonsense"])
def test_what_is_no_bidirectional_text_encoder_is_refused(model_type: str) -> None:
    with pytest.raises(ValueError, match=f"text_config.model_type is '{model_type}'; expected a bidirectional text"):
        M3AEConfig.named("tiny", text_config={"model_type": model_type})


def test_a_decoder_of_an_encoder_s_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a bidirectional text"):
        M3AEConfig(text_config={"model_type": "bert", "is_decoder": True})


def test_another_architecture_replaces_the_sizes_of_roberta() -> None:
    text = M3AEConfig.named("tiny", text_config={"model_type": "electra", "hidden_size": 64}).text_config
    assert (text.model_type, text.hidden_size, text.vocab_size) == ("electra", 64, 30522)


def test_the_source_s_architecture_is_named(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    with pytest.raises(ValueError, match="model_type is bert there and roberta here"):
        init_text_encoder(tiny_model(), str(tmp_path))


def test_a_table_of_distances_is_not_cut(tmp_path: Path) -> None:
    saved("deberta", tmp_path)
    options = ARCHITECTURES["deberta"] | {"model_type": "deberta", "max_position_embeddings": 34}
    with pytest.raises(ValueError, match="max_position_embeddings is 66 there and 34 here"):
        init_text_encoder(tiny_model(text_config=options), str(tmp_path))
