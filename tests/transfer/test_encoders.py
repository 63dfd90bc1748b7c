"""Encoders that other libraries have saved compute here what they compute there."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

from m3ae.models.encoders import resample_positions
from m3ae.transfer.image_encoders import init_image_encoder, read_vit
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
        assert published.stated == {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
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
    def test_clip_vision_model(self, tmp_path: Path) -> None:
        source = shake(CLIPVisionModel(clip_vision()))
        source.save_pretrained(tmp_path)
        CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
        model = model_for()
        report = init_image_encoder(model, str(tmp_path))
        # transformers applies CLIP's last normalisation to the class token only.
        assert_close(encode(model), source.post_layernorm(source(images()).last_hidden_state))
        assert not report.missing and not report.unexpected
        assert report.normalization == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])

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
