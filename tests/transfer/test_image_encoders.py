"""Starting from published image encoders: reports, what does not fit, OpenAI's files; and another image size."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import RmsNorm
from timm.models import VisionTransformer
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from m3ae import M3AEForPreTraining
from m3ae.models.encoders import resample_positions
from m3ae.models.heads import sincos_positions
from m3ae.models.processing import M3AEImageProcessor
from m3ae.transfer.image_encoders import init_image_encoder, resize_images
from m3ae.transfer.text_encoders import init_text_encoder
from m3ae.transfer.vision_sources import read_vit
from tests.models.published import (
    VIT,
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


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[VisionTransformer, str]:
    """A CLIP of timm, and its folder."""
    vit = timm_clip()
    return vit, save_timm(vit, tmp_path_factory.mktemp("clip"))


class TestTimm:
    def test_features_are_equal(self, clip) -> None:
        vit, folder = clip
        model = model_for()
        report = init_image_encoder(model, folder)
        assert_close(encode(model), vit.forward_features(images()))
        assert not report.missing and report.unexpected == ["head.weight", "head.bias"]
        assert len(report.copied) == len(model.m3ae.image_encoder.vit.state_dict())
        assert str(report).startswith(f"image encoder: 43 parameters copied from {folder} (timm's VisionTransformer)")
        assert "left out: head (2)" in str(report)

    def test_fewer_blocks_of_ours_take_the_first(self, clip) -> None:
        vit, folder = clip
        model = model_for(num_hidden_layers=2)
        report = init_image_encoder(model, folder)
        (after_two,) = vit.get_intermediate_layers(images(), n=[1], return_prefix_tokens=True, norm=True)
        assert_close(encode(model), torch.cat(after_two[::-1], dim=1))
        assert "the first 2 of its 3 blocks" in report.remarks
        assert sum(name.startswith("blocks.2.") for name in report.unexpected) == 12

    @pytest.mark.parametrize("size", [24, 48])
    def test_another_size_interpolates_as_timm_does(self, clip, size: int) -> None:
        vit, folder = clip
        model = model_for(image_size=size)
        report = init_image_encoder(model, folder)
        theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
        ours = model.m3ae.image_encoder.vit.pos_embed
        assert torch.equal(ours, theirs.pos_embed)
        assert torch.equal(ours[:, 0], vit.pos_embed[:, 0])
        assert_close(encode(model, images(size)), theirs.forward_features(images(size)))
        assert f"position table interpolated from 4×4 to {size // 8}×{size // 8} patches" in report.remarks

    def test_a_file_of_parameters_does_not_say_everything(self, clip) -> None:
        vit, folder = clip
        model = model_for()
        report = init_image_encoder(model, f"{folder}/model.safetensors")
        assert_close(encode(model), vit.forward_features(images()))
        assert report.normalization is None
        assert "num_attention_heads 2, hidden_act quick_gelu, layer_norm_eps 1e-05" in str(report)
        assert "how images are normalised" in str(report)

    @pytest.mark.parametrize("variant", ["", "quickgelu_"])
    def test_openais_weights_are_quick_gelu_by_either_name(
        self, monkeypatch: pytest.MonkeyPatch, variant: str
    ) -> None:
        create = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, depth=1))
        published = read_vit(f"vit_base_patch16_clip_{variant}224.openai")
        assert any("timm computes gelu under this name" in remark for remark in published.remarks) is not bool(variant)
        expected = {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "pre_norm": True}
        assert published.options | expected == published.options
        assert published.normalization == ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])

    def test_without_a_last_normalisation_ours_stays(self, tmp_path: Path) -> None:
        folder = save_timm(timm_clip(global_pool="avg"), tmp_path, global_pool="avg")
        report = init_image_encoder(model_for(), folder)
        assert report.missing == ["norm.weight", "norm.bias"]
        assert "not there, left as initialised: norm.weight, norm.bias" in str(report)

    def test_another_epsilon_is_remarked_on(self, clip) -> None:
        assert "layer_norm_eps is 1e-05 there and 1e-06 here" in str(
            init_image_encoder(model_for(layer_norm_eps=1e-6), clip[1])
        )


class TestTransformers:
    def test_clip_model(self, tmp_path: Path) -> None:
        text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        options = CLIPConfig(text_config=text | {"vocab_size": 50}, vision_config=clip_vision().to_dict())
        source = shake(CLIPModel(options))
        source.save_pretrained(tmp_path)
        model = model_for()
        report = init_image_encoder(model, str(tmp_path))
        vision = source.vision_model
        assert_close(encode(model), vision.post_layernorm(vision(images()).last_hidden_state))
        assert {name.partition(".")[0] for name in report.unexpected} == {
            "logit_scale",
            "text_model",
            "text_projection",
            "visual_projection",
        }

    @pytest.mark.parametrize("model_class", [ViTMAEModel, ViTMAEForPreTraining])
    def test_vit_mae(self, tmp_path: Path, model_class: Any) -> None:
        decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        source = shake(model_class(ViTMAEConfig(**VIT, intermediate_size=512, **decoder)))
        source.save_pretrained(tmp_path)
        model = model_for(pre_norm=False, hidden_act="gelu", layer_norm_eps=1e-12)
        report = init_image_encoder(model, str(tmp_path))
        encoder = source.vit if model_class is ViTMAEForPreTraining else source
        encoder.config.mask_ratio = 0.0
        in_order = torch.arange(16.0).repeat(2, 1)
        assert_close(encode(model), encoder(images(), noise=in_order).last_hidden_state)
        assert {name.partition(".")[0] for name in report.unexpected} <= {"decoder"}

    def test_an_incomplete_folder_is_explained(self, tmp_path: Path) -> None:
        CLIPVisionModel(clip_vision()).save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        state.pop("vision_model.post_layernorm.bias", state.pop("post_layernorm.bias", None))
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"is incomplete: it lacks 1 parameters of a CLIPVisionModel \(post_lay"):
            init_image_encoder(model_for(), str(tmp_path))


class OpenAIBlock(nn.Module):
    """OpenAI's block, as in its `clip/model.py`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        hidden = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class OpenAIViT(nn.Module):
    """OpenAI's vision transformer, up to and including the last normalisation of all tokens."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(*(OpenAIBlock(width) for _ in range(3)))
        self.proj = nn.Parameter(torch.zeros(width, 16))

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer.resblocks(self.ln_pre(x).transpose(0, 1)).transpose(0, 1))


class OpenAIClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual = OpenAIViT()
        self.token_embedding = nn.Embedding(10, 16)
        self.logit_scale = nn.Parameter(torch.zeros([]))

    def forward(self, image: Tensor) -> Tensor:
        return self.visual(image) * (self.logit_scale + self.token_embedding.weight.sum())


class TestOpenAI:
    @pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
    @pytest.mark.parametrize("scripted", [True, False])
    def test_features_are_equal(self, tmp_path: Path, scripted: bool) -> None:
        source = shake(OpenAIClip())
        if scripted:  # as released
            torch.jit.trace(source, images(), check_trace=False).save(tmp_path / "clip.pt")
        else:
            torch.save(source.state_dict(), tmp_path / "clip.pt")
        model = model_for()
        report = init_image_encoder(model, str(tmp_path / "clip.pt"))
        assert_close(encode(model), source.visual(images()))
        assert sorted(report.unexpected) == ["logit_scale", "token_embedding.weight", "visual.proj"]
        assert ("open_clip" in str(report)) is not scripted
        assert report.normalization is not None and report.normalization[0][0] == 0.48145466

    def test_half_precision_is_widened(self, tmp_path: Path) -> None:
        source = shake(OpenAIClip()).half()
        torch.save(source.state_dict(), tmp_path / "clip.pt")
        model = model_for(image_size=48)
        init_image_encoder(model, str(tmp_path / "clip.pt"))
        expected = resample_positions(source.visual.positional_embedding[None], 6)
        assert model.m3ae.image_encoder.vit.pos_embed.dtype == torch.float32
        assert torch.equal(model.m3ae.image_encoder.vit.pos_embed, expected)


TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 0}


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
            init_image_encoder(model, clip[1])
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
            ({"init_values": 0.1}, "layer_scale is 1e-05 there and None here"),
            ({"qkv_bias": False}, "qkv_bias is none there and all here"),
            ({"class_token": False, "global_pool": "avg"}, "class_token is False there and True here"),
            ({"reg_tokens": 3}, "num_registers is 3 there and 0 here"),
        ],
    )
    def test_other_vision_transformers_than_ours(self, tmp_path: Path, options: dict, message: str) -> None:
        folder = save_timm(timm_clip(**options), tmp_path, **options)
        with pytest.raises(ValueError, match=message):
            init_image_encoder(model_for(), folder)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"block_fn": ParallelThingsBlock}, r"with blocks of another kind \(ParallelThingsBlock and NoneType\)"),
            ({"scale_attn_norm": True}, r"parameters that ours lacks \(blocks.0.attn.norm.weight"),
            ({"norm_layer": RmsNorm}, "normalises by RmsNorm, which ours does not"),
            ({"pos_embed": "none"}, "neither a table of positions nor DINOv3's rotary ones"),
            ({"act_layer": nn.Hardswish}, "has the activation Hardswish, which is not known here"),
            ({"img_size": (16, 64)}, "has images of 16×64, and ours are square"),
            ({"patch_size": (8, 4)}, "has patches of 8×4, and ours are square"),
        ],
    )
    def test_what_cannot_be_expressed(self, monkeypatch: pytest.MonkeyPatch, options: dict, message: str) -> None:
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", **TIMM | options)
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained: vit)
        with pytest.raises(ValueError, match=rf"{message}.*the name of a timm model \(VisionTransformer or Eva\)"):
            init_image_encoder(model_for(), "vit_tiny_patch16_224")

    def test_other_rotary_positions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        eva = timm.create_model("eva02_tiny_patch14_224", **TIMM)
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained: eva)
        with pytest.raises(ValueError, match="other positions"):
            init_image_encoder(model_for(), "eva02_tiny_patch14_224")

    def test_a_swin_transformer(self, tmp_path: Path) -> None:
        sizes = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}
        swin = timm.create_model("swin_tiny_patch4_window7_224", **sizes)
        save_for_hf(swin, tmp_path, model_args=sizes, safe_serialization=True)
        with pytest.raises(ValueError, match="holds timm's SwinTransformer; expected the name of a timm model"):
            init_image_encoder(model_for(), str(tmp_path))
        with pytest.raises(ValueError, match="holds a Swin transformer; expected the name of a timm"):
            init_image_encoder(model_for(), f"{tmp_path}/model.safetensors")

    def test_a_resnet_and_a_text_model(self, tmp_path: Path) -> None:
        torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "pmc_clip.pt")
        with pytest.raises(ValueError, match="holds a ResNet; expected"):
            init_image_encoder(model_for(), str(tmp_path / "pmc_clip.pt"))
        for kind in ("t5", "gpt2", "resnet", "swin"):
            (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
            with pytest.raises(ValueError, match=f"holds a {kind}; expected .*dinov3_vit"):
                init_image_encoder(model_for(), str(tmp_path))
            if kind in ("t5", "gpt2"):
                with pytest.raises(ValueError, match=f"holds a {kind}; expected .* bidirectional text encoder"):
                    init_text_encoder(tiny_model(), str(tmp_path))

    def test_a_rectangle_of_a_square_number_of_patches(self, tmp_path: Path) -> None:
        options = {"img_size": (64, 144)}  # 8 × 18 patches, which are not 12 × 12
        vit = timm.create_model("vit_base_patch16_clip_quickgelu_224", **TIMM | options)
        folder = save_timm(vit, tmp_path / "timm", **options)
        for source in (folder, f"{folder}/model.safetensors"):
            with pytest.raises(ValueError, match="has images of 64×144, and ours are square"):
                init_image_encoder(model_for(image_size=96), source)
        ViTModel(ViTConfig(**VIT | {"image_size": [64, 144]})).save_pretrained(tmp_path / "vit")
        with pytest.raises(ValueError, match="has images of 64×144, and ours are square"):
            init_image_encoder(model_for(image_size=96), str(tmp_path / "vit"))

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"No config.json in"):
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

    @pytest.mark.parametrize("library", ["timm", "transformers", "open_clip"])
    def test_a_folder_whose_weights_are_cut_short(self, tmp_path: Path, library: str) -> None:
        if library == "timm":
            save_timm(timm_clip(), tmp_path)
        else:
            CLIPVisionModel(clip_vision()).save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:9_000])
        if library == "open_clip":
            weights.rename(tmp_path / "open_clip_model.safetensors")
            (tmp_path / "open_clip_config.json").write_text("{}")
        with pytest.raises(ValueError, match=rf"{library} cannot load|cut short"):
            init_image_encoder(model_for(), str(tmp_path))

    def test_files_that_are_damaged_or_would_run_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "cut.safetensors").write_bytes(b"\x08")
        with pytest.raises(ValueError, match="not a safetensors file, or is cut short"):
            init_image_encoder(model_for(), "cut.safetensors")
        torch.save({"visual.class_embedding": Malicious()}, "bad.pt")
        with pytest.raises(ValueError, match="Nothing of it was run"):
            init_image_encoder(model_for(), "bad.pt")
        assert not Path("ran").exists()


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
