"""Each family of vision transformers, tiny and random, computes here what it computes in the library that saved it."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.mlp import SwiGLUPacked
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from m3ae import M3AEForPreTraining
from m3ae.transfer.exported import export_encoder
from m3ae.transfer.image_encoders import image_options, init_image_encoder
from m3ae.transfer.names import OPENAI, renamed
from m3ae.transfer.vision_sources import read_vit
from tests.models.published import assert_close, encode, images, shake
from tests.models.tiny import tiny_batch, tiny_model

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TIMM = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}
MLP = {"intermediate_size": 96}
DINO3 = SIZES | MLP | {"num_register_tokens": 3}


OF_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "timm vit": ("vit_base_patch16_224", {}),
    "timm avg-pooled": ("vit_base_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "timm no_embed_class": ("vit_base_patch16_224", {"no_embed_class": True, "act_layer": "gelu_tanh"}),
    "timm registers": ("vit_base_patch14_reg4_dinov2", {}),
    "timm embedded registers": ("vit_base_patch16_224", {"reg_tokens": 4, "init_values": 0.1}),
    "timm swiglu": ("vit_giant_patch14_dinov2", {"mlp_ratio": 2}),
    "timm qk_norm": ("vit_base_patch16_224", {"qk_norm": True, "qkv_bias": False}),
    "timm siglip": ("vit_base_patch16_siglip_224", {}),
    "timm clip": ("vit_base_patch16_clip_quickgelu_224", {}),
    "timm dinov3": ("vit_small_patch16_dinov3", {}),
    "timm dinov3 with biases": ("vit_small_patch16_dinov3_qkvb", {}),
    "timm dinov3 swiglu": ("vit_small_plus_patch16_dinov3", {"mlp_ratio": 1.5}),
    "timm eva": ("eva_giant_patch14_224", {"mlp_ratio": 2, "global_pool": "token"}),
}
SIGLIP2 = {name: value for name, value in SIZES.items() if name != "image_size"} | MLP | {"num_patches": 16}
OF_TRANSFORMERS: dict[str, tuple[Any, Any]] = {
    "vit": (ViTModel, ViTConfig(**SIZES, **MLP)),
    "vit classifier": (ViTForImageClassification, ViTConfig(**SIZES, **MLP, qkv_bias=False)),
    "dinov2": (Dinov2Model, Dinov2Config(**SIZES, mlp_ratio=2)),
    "dinov2 swiglu": (Dinov2Model, Dinov2Config(**SIZES, mlp_ratio=2, use_swiglu_ffn=True)),
    "dinov2 registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2)),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig(**DINO3)),
    "dinov3 swiglu": (DINOv3ViTModel, DINOv3ViTConfig(**DINO3, use_gated_mlp=True, hidden_act="silu", key_bias=True)),
    "siglip": (SiglipVisionModel, SiglipVisionConfig(**SIZES, **MLP)),
    "siglip2": (Siglip2VisionModel, Siglip2VisionConfig(**SIGLIP2)),
    "clip": (CLIPVisionModel, CLIPVisionConfig(**SIZES, **MLP)),
}
FAMILIES = [*OF_TIMM, *OF_TRANSFORMERS]


def saved(name: str, folder: Path) -> tuple[Any, str]:
    """A model of a family, and the folder that its library has saved it in."""
    if name in OF_TIMM:
        architecture, options = OF_TIMM[name]
        source = shake(timm.create_model(architecture, **TIMM, **options))
        save_for_hf(source, folder, model_args=TIMM | options, safe_serialization=True)
    else:
        model_class, config = OF_TRANSFORMERS[name]
        source = shake(model_class(config))
        source.save_pretrained(folder)
    return source, str(folder)


@torch.no_grad()
def features(model: Any, pixels: Tensor) -> Tensor:
    """The source's tokens after its last normalisation: class token, or the mean of the patches, and the patches."""
    if hasattr(model, "forward_features"):
        tokens, prefix = model.forward_features(pixels), model.num_prefix_tokens
        has_class = model.cls_token is not None
    elif isinstance(model, Siglip2VisionModel):
        side = pixels.shape[-1] // 8
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        shapes = torch.tensor([[side, side]] * len(pixels))
        tokens = model(patches, torch.ones(patches.shape[:2], dtype=torch.long), shapes).last_hidden_state
        prefix, has_class = 0, False
    else:
        model = getattr(model, "vit", model)
        rotary = isinstance(model, DINOv3ViTModel) or "dinov2" in model.config.model_type
        keywords = {} if rotary else {"interpolate_pos_encoding": True}
        tokens = model(pixels, **keywords).last_hidden_state
        if isinstance(model, CLIPVisionModel):
            tokens = model.post_layernorm(tokens)
        has_class = not isinstance(model, SiglipVisionModel)
        prefix = has_class + getattr(model.config, "num_register_tokens", 0)
    patches = tokens[:, prefix:]
    return torch.cat([tokens[:, :1] if has_class else patches.mean(1, keepdim=True), patches], dim=1)


def model_of(source: str, **overrides: Any) -> M3AEForPreTraining:
    return tiny_model(image_config=image_options(read_vit(source)) | overrides)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, tmp_path: Path) -> None:
    source, folder = saved(name, tmp_path / "source")
    model = model_of(folder)
    report = init_image_encoder(model, folder)
    assert not report.missing
    expected = features(source, images())
    assert_close(encode(model), expected)

    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(encode(M3AEForPreTraining.from_pretrained(tmp_path / "saved").eval()), encode(model))

    keep = torch.arange(16).repeat(2, 1).flip(1)  # all patches in another order: what each computes stays
    reordered = model.m3ae.image_encoder(images(), keep)
    assert_close(reordered[:, 1:].flip(1), expected[:, 1:])
    assert_close(reordered[:, 0], expected[:, 0])

    export_encoder(model, "image", tmp_path / "exported")
    if (tmp_path / "exported" / "preprocessor_config.json").is_file():
        theirs = AutoModel.from_pretrained(tmp_path / "exported").eval()
    else:
        theirs = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    assert_close(features(theirs, images()), expected)
    again = model_of(str(tmp_path / "exported"))
    init_image_encoder(again, str(tmp_path / "exported"))
    assert_close(encode(again), expected)

    larger = model_of(folder, image_size=48)
    init_image_encoder(larger, folder)
    if hasattr(source, "forward_features"):
        source = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=48).eval()
    assert_close(encode(larger, images(48)), features(source, images(48)))


@pytest.mark.parametrize("name", ["timm avg-pooled", "dinov2 registers", "dinov3", "siglip", "timm qk_norm"])
def test_a_training_step_hides_patches(name: str, tmp_path: Path) -> None:
    _, folder = saved(name, tmp_path)
    model = model_of(folder)
    init_image_encoder(model, folder)
    vit, pixels = model.m3ae.image_encoder.vit, images()
    hidden = pixels.clone()
    hidden[..., :8, :8] = 7.0  # the first patch is not among those that are kept
    keep = torch.tensor([[5, 2, 9], [1, 15, 3]])
    assert torch.equal(vit(pixels, keep), vit(hidden, keep))
    assert vit(pixels, keep).shape == (2, 4, 64)
    model.train()
    model(**tiny_batch()).loss.backward()
    untrained = [
        name for name, parameter in vit.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert untrained == []


def plain(**options: Any) -> Any:
    """A vision transformer with timm's names, and its features."""
    return shake(timm.create_model("vit_base_patch16_224", **{**TIMM, "num_heads": 1, "num_classes": 0, **options}))


def test_a_pre_training_file_of_mae(tmp_path: Path) -> None:
    source = plain()
    decoder = {"decoder_embed.weight": torch.zeros(8, 64), "decoder_blocks.0.norm1.bias": torch.zeros(8)}
    state = source.state_dict() | decoder | {"mask_token": torch.zeros(1, 1, 8)}
    for legacy in (False, True):
        content = {"model": state, "args": argparse.Namespace(batch_size=64, lr=None), "epoch": 3}
        torch.save(content, tmp_path / "mae.pth", _use_new_zipfile_serialization=not legacy)
        model = model_of(str(tmp_path / "mae.pth"))
        report = init_image_encoder(model, str(tmp_path / "mae.pth"))
        assert_close(encode(model), source.forward_features(images()))
        assert {name.partition("_")[0] for name in report.unexpected} == {"decoder", "mask"} and not report.missing
        assert "num_attention_heads 1, hidden_act gelu, layer_norm_eps 1e-06" in str(report)


@pytest.mark.parametrize("gated", [False, True])
def test_a_file_of_dinov2_as_meta_names_its_parameters(tmp_path: Path, gated: bool) -> None:
    mlp = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if gated else {}
    source = plain(reg_tokens=4, init_values=0.1, no_embed_class=True, **mlp)
    names = {"reg_token": "register_tokens"} | ({"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"} if gated else {})
    state = source.state_dict()
    for old, new in names.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    # Meta's class token has a row of positions, which timm adds to the token.
    state["pos_embed"] = torch.cat([torch.full((1, 1, 64), 0.5), state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - 0.5
    torch.save(state | {"mask_token": torch.zeros(1, 64)}, tmp_path / "dinov2.pth")
    model = model_of(str(tmp_path / "dinov2.pth"))
    init_image_encoder(model, str(tmp_path / "dinov2.pth"))
    tokens = source.forward_features(images())
    assert_close(encode(model), torch.cat([tokens[:, :1], tokens[:, 5:]], dim=1))


def test_the_image_tower_of_biomedclip(tmp_path: Path) -> None:
    """A vision transformer of timm behind `visual.trunk.`, in a folder of open_clip."""
    source = shake(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0))
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "image_size": 32}
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    config = {"model_cfg": {"vision_cfg": vision, "text_cfg": {}}, "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has open_clip_config.json but none of open_clip_model.safetensors"):
        read_vit(str(tmp_path))
    state = {f"visual.trunk.{name}": value for name, value in source.state_dict().items()}
    state |= {"visual.head.proj.weight": torch.zeros(4, 192), "text.transformer.x": torch.zeros(1)}
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    model = model_of(str(tmp_path))
    report = init_image_encoder(model, str(tmp_path))
    assert_close(encode(model), source.forward_features(images()))
    assert report.unexpected == ["visual.head.proj.weight", "text.transformer.x"]
    assert report.normalization == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"vision_cfg": {"timm_model_name": "resnet18"}}))
    with pytest.raises(ValueError, match="holds timm's ResNet; expected"):
        read_vit(str(tmp_path))


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_clip_of_open_clip(tmp_path: Path, act: str) -> None:
    source = shake(timm.create_model("vit_base_patch16_clip_quickgelu_224", **TIMM, act_layer=act))
    theirs = {ours: name for name, ours in OPENAI.items()}
    state = {f"visual.{renamed(name, theirs) or name}": value for name, value in source.state_dict().items()}
    state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    state = {name: value.contiguous() for name, value in state.items() if "head" not in name}
    save_file(state | {"visual.proj": torch.zeros(64, 8)}, tmp_path / "open_clip_model.safetensors")
    model_cfg = {"vision_cfg": {"image_size": 32, "head_width": 32}, "quick_gelu": act == "quick_gelu"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    model = model_of(str(tmp_path))
    report = init_image_encoder(model, str(tmp_path))
    assert_close(encode(model), source.forward_features(images()))
    assert report.unexpected == ["visual.proj"] and model.config.image_config.hidden_act == act


def test_a_whole_siglip(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = shake(SiglipModel(SiglipConfig(text_config=text | {"vocab_size": 50}, vision_config=SIZES | MLP)))
    source.save_pretrained(tmp_path)
    CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    model = model_of(str(tmp_path))
    report = init_image_encoder(model, str(tmp_path))
    assert_close(encode(model), features(source.vision_model, images()))
    assert model.config.image_config.image_mean == [0.5] * 3 and "logit_scale" in report.unexpected


def test_an_override_that_contradicts_the_source(tmp_path: Path) -> None:
    _, folder = saved("dinov3", tmp_path)
    with pytest.raises(ValueError, match="hidden_act is gelu there and quick_gelu here"):
        init_image_encoder(model_of(folder, hidden_act="quick_gelu"), folder)
    fewer = model_of(folder, num_hidden_layers=1)
    assert "the first 1 of its 2 blocks" in init_image_encoder(fewer, folder).remarks


@pytest.mark.parametrize("architecture", ["eva02_tiny_patch14_224", "vit_base_patch16_rope_ape_224"])
def test_a_file_that_does_not_say_that_its_positions_are_rotary(tmp_path: Path, architecture: str) -> None:
    source = shake(timm.create_model(architecture, **TIMM))
    save_for_hf(source, tmp_path, model_args=TIMM, safe_serialization=True)
    for read in (str(tmp_path), str(tmp_path / "model.safetensors")):
        with pytest.raises(ValueError, match=r"has other positions|holds timm's Eva|is a file of timm's|has timm's"):
            read_vit(read)
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ValueError, match="has names of timm's Eva, which has rotary positions or none: name the folder"
    ):
        read_vit(str(tmp_path / "model.safetensors"))
