"""Starting from published encoders: what does not fit is refused; and taking a model to another image size."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import ParallelThingsBlock
from transformers import CLIPVisionModel, RobertaConfig, RobertaForMaskedLM

from m3ae import M3AEForPreTraining
from m3ae.models.encoders import resample_positions
from m3ae.models.heads import sincos_positions
from m3ae.models.processing import M3AEImageProcessor
from m3ae.transfer.image_encoders import init_image_encoder, resize_images
from m3ae.transfer.text_encoders import init_text_encoder
from tests.models.published import (
    assert_close,
    clip_vision,
    encode,
    images,
    model_for,
    save_timm,
    shake,
    timm_clip,
)
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
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a CLIP that timm has saved."""
    return save_timm(timm_clip(), tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> tuple[RobertaForMaskedLM, str]:
    """A RoBERTa with its masked-language head, and its folder."""
    folder = tmp_path_factory.mktemp("roberta")
    source = shake(RobertaForMaskedLM(RobertaConfig(**ROBERTA)))
    source.save_pretrained(folder)
    return source, str(folder)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


class TestWrongImageEncoders:
    @pytest.mark.parametrize(
        ("ours", "message"),
        [
            ({"hidden_size": 64}, "hidden_size is 128 there and 64 here"),
            ({"patch_size": 4}, "patch_size is 8 there and 4 here"),
            ({"num_channels": 1}, "num_channels is 3 there and 1 here"),
            ({"num_hidden_layers": 4}, "num_hidden_layers is 3 there and 4 here"),
            ({"num_attention_heads": 4}, "num_attention_heads is 2 there and 4 here"),
            ({"mlp_ratio": 2.0}, "mlp_ratio is 4.0 there and 2.0 here"),
            ({"hidden_act": "gelu"}, "hidden_act is quick_gelu there and gelu here"),
            ({"pre_norm": False}, "pre_norm is True there and False here"),
        ],
    )
    def test_a_difference_is_named_and_nothing_is_copied(self, clip, ours: dict, message: str) -> None:
        model = model_for(**ours)
        before = encode(model) if "num_channels" not in ours else None
        with pytest.raises(ValueError, match=message) as raised:
            init_image_encoder(model, clip)
        name = next(iter(ours))
        assert f"build the model with image_config: {{{name}: {message.split()[2]}}}" in str(raised.value)
        assert before is None or torch.equal(before, encode(model))

    @pytest.mark.parametrize("act", ["gelu", "gelu_tanh"])
    def test_activations_are_told_apart_by_what_they_compute(self, tmp_path: Path, act: str) -> None:
        CLIPVisionModel(clip_vision(hidden_act="gelu_pytorch_tanh")).save_pretrained(tmp_path)
        if act == "gelu_tanh":
            assert init_image_encoder(model_for(hidden_act=act), str(tmp_path)).copied
            return
        with pytest.raises(ValueError, match="hidden_act is gelu_tanh there and gelu here"):
            init_image_encoder(model_for(hidden_act=act), str(tmp_path))

    def test_openais_weights_as_timm_saves_them_with_gelu(self, tmp_path: Path) -> None:
        folder = save_timm(timm_clip(act_layer="gelu"), tmp_path, act_layer="gelu")
        with pytest.raises(ValueError, match=r"hidden_act is gelu there.*name the \.safetensors file"):
            init_image_encoder(model_for(), folder)
        assert init_image_encoder(model_for(), f"{folder}/model.safetensors").copied

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"init_values": 0.1}, r"no place for \(blocks.0.ls1.gamma"),
            ({"qkv_bias": False}, r"lacks some of ours \(blocks.0.attn.qkv.bias"),
            ({"no_embed_class": True}, "position table has 16 rows"),
            ({"class_token": False, "global_pool": "avg"}, "lacks cls_token"),
            ({"reg_tokens": 3}, r"no place for \(reg_token\)"),
        ],
    )
    def test_other_kinds_of_vision_transformers(self, tmp_path: Path, options: dict, message: str) -> None:
        folder = save_timm(timm_clip(**options), tmp_path, **options)
        with pytest.raises(ValueError, match=message):
            init_image_encoder(model_for(), folder)

    def test_other_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        vit = timm_clip(block_fn=ParallelThingsBlock)
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained: vit)
        with pytest.raises(ValueError, match="timm's VisionTransformer; expected its VisionTransformer with plain"):
            init_image_encoder(model_for(), "vit_tiny_patch16_224")

    def test_a_swin_transformer(self, tmp_path: Path) -> None:
        sizes = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}
        swin = timm.create_model("swin_tiny_patch4_window7_224", **sizes)
        save_for_hf(swin, tmp_path, model_args=sizes, safe_serialization=True)
        with pytest.raises(ValueError, match="timm's SwinTransformer; expected its VisionTransformer"):
            init_image_encoder(model_for(), str(tmp_path))
        with pytest.raises(ValueError, match=r"no vision transformer .* names like .*; expected the name of a timm"):
            init_image_encoder(model_for(), f"{tmp_path}/model.safetensors")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"No config.json in"):
            init_image_encoder(model_for(), str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
        with pytest.raises(ValueError, match="holds a swin; expected the name of a timm model"):
            init_image_encoder(model_for(), str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
        with pytest.raises(ValueError, match="timm cannot load"):
            init_image_encoder(model_for(), str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
        with pytest.raises(ValueError, match="transformers cannot load"):
            init_image_encoder(model_for(), str(tmp_path))

    def test_names_that_nobody_knows(self) -> None:
        with pytest.raises(ValueError, match="no file, folder or timm model called 'vit_bse'"):
            init_image_encoder(model_for(), "vit_bse")
        with pytest.raises(ValueError, match=r"No config.json in 'nowhere/at/all'"):
            init_image_encoder(model_for(), "nowhere/at/all")

    def test_files_that_are_damaged_or_would_run_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "cut.safetensors").write_bytes(b"\x08")
        with pytest.raises(ValueError, match="not a safetensors file, or is cut short"):
            init_image_encoder(model_for(), "cut.safetensors")
        torch.save({"visual.class_embedding": Malicious()}, "bad.pt")
        with pytest.raises(ValueError, match="Nothing of it was run"):
            init_image_encoder(model_for(), "bad.pt")
        assert not Path("ran").exists()


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


class TestResizing:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_tables_follow_the_image_size(self, tmp_path: Path, dtype: torch.dtype) -> None:
        tiny_model().save_pretrained(tmp_path)
        model = M3AEForPreTraining.from_pretrained(tmp_path, dtype=dtype)
        before = model.m3ae.image_encoder.vit.pos_embed.clone()
        resize_images(model, 48)
        table = model.m3ae.image_encoder.vit.pos_embed
        assert table.dtype == dtype and table.requires_grad
        assert torch.equal(table, resample_positions(before, 6).to(dtype))
        assert torch.equal(table[:, 0], before[:, 0])
        assert torch.equal(model.mim_head.positions, sincos_positions(6, 24))
        assert model.config.image_config.image_size == model.m3ae.config.image_config.image_size == 48

    def test_a_resized_model_runs_and_survives_saving(self, tmp_path: Path) -> None:
        model = tiny_model()
        resize_images(model, 48)
        batch = tiny_batch() | {"pixel_values": images(48).repeat(2, 1, 1, 1), "image_noise": torch.rand(4, 36)}
        expected = model(**batch)
        assert expected.mim_logits.shape == (4, 36, 192) and expected.loss.isfinite()
        model.save_pretrained(tmp_path)
        assert torch.equal(M3AEForPreTraining.from_pretrained(tmp_path).eval()(**batch).loss, expected.loss)

    def test_the_trunk_alone_and_a_size_that_does_not_fit(self) -> None:
        trunk = tiny_model().m3ae
        resize_images(trunk, 64)
        assert trunk(images(64)).image_hidden_state.shape == (2, 65, 32)
        with pytest.raises(ValueError, match=r"multiple of patch_size \(8\), got 50: choose 48 or 56"):
            resize_images(trunk, 50)
        assert trunk.config.image_config.image_size == 64


def test_the_encoders_of_another_m3ae(tmp_path: Path) -> None:
    source, model, batch = shake(tiny_model()), tiny_model(num_hidden_layers=1), tiny_batch()
    source.save_pretrained(tmp_path)
    M3AEImageProcessor.for_size(32).save_pretrained(tmp_path)
    image, text = init_image_encoder(model, str(tmp_path)), init_text_encoder(model, str(tmp_path))
    assert not image.missing and image.normalization == (M3AEImageProcessor.image_mean, M3AEImageProcessor.image_std)
    assert {name.split(".")[0] for name in image.unexpected} >= {"text_encoder", "fusion"}
    assert "another M3AE" in str(image) and not text.missing
    ours, theirs = model.m3ae, source.m3ae
    torch.testing.assert_close(ours.image_encoder(batch["pixel_values"]), theirs.image_encoder(batch["pixel_values"]))
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = theirs.text_encoder(**words).last_hidden_state
    torch.testing.assert_close(ours.text_encoder(**words).last_hidden_state, expected)
