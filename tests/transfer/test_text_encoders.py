"""Starting from a published RoBERTa; other architectures are in tests/models/test_text_encoder.py."""

import pytest
from transformers import RobertaConfig, RobertaForMaskedLM

from m3ae.transfer.text_encoders import init_text_encoder
from tests.models.published import assert_close, shake
from tests.models.tiny import tiny_batch, tiny_model

ROBERTA = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> tuple[RobertaForMaskedLM, str]:
    """A RoBERTa with its masked-language head, and its folder."""
    folder = tmp_path_factory.mktemp("roberta")
    source = shake(RobertaForMaskedLM(RobertaConfig(**ROBERTA)))
    source.save_pretrained(folder)
    return source, str(folder)


class TestRoberta:
    @pytest.mark.parametrize("positions", [66, 34])
    def test_features_are_equal(self, roberta, positions: int) -> None:
        source, folder = roberta
        model = tiny_model(text_config=ROBERTA | {"max_position_embeddings": positions})
        report = init_text_encoder(model, folder)
        batch = tiny_batch()
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        assert_close(model.m3ae.text_encoder(**text)[0], source.roberta(**text)[0])
        assert not report.missing and all(name.startswith("lm_head.") for name in report.unexpected)
        assert ("the first 34 of its 66 positions" in str(report)) is (positions == 34)

    @pytest.mark.parametrize(
        ("ours", "message"),
        [
            ({"vocab_size": 121}, "vocab_size is 120 there and 121 here"),
            ({"pad_token_id": 3}, "pad_token_id is 1 there and 3 here"),
            ({"hidden_size": 64}, "hidden_size is 32 there and 64 here"),
            ({"num_hidden_layers": 1}, "num_hidden_layers is 2 there and 1 here"),
            ({"num_attention_heads": 4}, "num_attention_heads is 2 there and 4 here"),
            ({"intermediate_size": 32}, "intermediate_size is 64 there and 32 here"),
            ({"type_vocab_size": 2}, "type_vocab_size is 1 there and 2 here"),
            ({"hidden_act": "relu"}, "hidden_act is gelu there and relu here"),
            ({"max_position_embeddings": 80}, "max_position_embeddings is 66 there and 80 here"),
        ],
    )
    def test_a_difference_is_named(self, roberta, ours: dict, message: str) -> None:
        with pytest.raises(
            ValueError, match=f"text encoder in .* is not the one that text_config describes: {message}"
        ):
            init_text_encoder(tiny_model(text_config=ROBERTA | ours), roberta[1])

    def test_another_epsilon_is_remarked_on(self, roberta) -> None:
        report = init_text_encoder(tiny_model(text_config=ROBERTA | {"layer_norm_eps": 1e-12}), roberta[1])
        assert report.remarks == ["layer_norm_eps is 1e-05 there and 1e-12 here"]
