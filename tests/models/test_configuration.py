import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from m3ae import M3AEConfig, M3AEForClassification, M3AEImageConfig, M3AEImageProcessor
from m3ae.models.configuration import SIZES
from m3ae.tasks.models import merged_config


def test_defaults_are_the_published_model() -> None:
    config = M3AEConfig()
    assert isinstance(config.image_config, M3AEImageConfig)
    assert (config.image_config.image_size, config.image_config.num_hidden_layers) == (288, 11)
    assert (config.text_config.vocab_size, config.text_config.num_hidden_layers) == (50265, 12)
    assert (config.num_hidden_layers, config.mim_layer, config.layer_norm_eps) == (6, 3, 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_configs_survive_saving(size: str, tmp_path) -> None:
    config = M3AEConfig.named(size, schedule="joint", image_config={"image_size": 64}, text_config={"vocab_size": 300})
    config.save_pretrained(tmp_path)
    loaded = M3AEConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.image_config.image_size == 64 and loaded.text_config.vocab_size == 300
    assert loaded.image_config.hidden_size == M3AEConfig.named(size).image_config.hidden_size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_config": {"image_size": 100}},
            r"image_size must be a multiple of patch_size \(16\), got 100: choose 96 or 112",
        ),
        ({"mask_ration": 0.5}, "no option 'mask_ration'. Did you mean mask_ratio"),
        ({"image_config": {"patchsize": 8}}, "no option 'patchsize'. Did you mean patch_size"),
        ({"mask_ratio": 1.5}, "mask_ratio must lie between 0 and 0.99, got 1.5"),
        ({"mim_layer": 9}, r"mim_layer must lie between -1 and num_hidden_layers \(6\), got 9"),
        ({"decoder_hidden_size": 90}, "decoder_hidden_size must be a multiple of 4 .*, got 90"),
        (
            {"image_config": {"image_mean": [0.5, 0.5]}},
            r"image_config.image_mean must have one value for each of the 3 channels, got \[0.5, 0.5\]",
        ),
        ({"schedule": "both"}, "schedule must be 'separate' or 'joint', got 'both'"),
        ({"num_attention_heads": 7}, "the width 768 must be a multiple of the number of attention heads, got 7"),
    ],
)
def test_bad_options_are_explained(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M3AEConfig(**options)


def test_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(ValueError, match="'large'; the sizes are tiny, mini, small, base"):
        M3AEConfig.named("large")


HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
MODALITY = {"mean": HALF["image_mean"], "std": HALF["image_std"]}


def saved_before_images_were_described(folder: Path, modality: dict[str, Any]) -> M3AEConfig:
    """Save a configuration as earlier versions did, and load it."""
    M3AEConfig.named("tiny", latent={"size": 3}).save_pretrained(folder)
    options = json.loads((folder / "config.json").read_text())
    for name in HALF:
        del options["image_config"][name]
    options["latent"]["modalities"]["image"] |= modality
    (folder / "config.json").write_text(json.dumps(options))
    return M3AEConfig.from_pretrained(folder)


def test_how_images_are_normalised_is_in_the_file(tmp_path: Path) -> None:
    M3AEConfig(image_config=HALF).save_pretrained(tmp_path)
    image = M3AEConfig.from_pretrained(tmp_path).image_config
    assert {name: getattr(image, name) for name in HALF} == HALF
    assert M3AEImageConfig().image_mean == list(M3AEImageProcessor().image_mean) == [0.48145466, 0.4578275, 0.40821073]
    assert M3AEImageConfig().image_std == list(M3AEImageProcessor().image_std)
    assert M3AEImageConfig(num_channels=2, image_mean=[0.5]).image_mean == [0.5, 0.5]
    assert M3AEImageConfig(num_channels=1).image_mean == pytest.approx([0.4491642], abs=1e-6)


def test_an_earlier_model_is_normalised_as_its_processor_or_its_latent_head_says(tmp_path: Path) -> None:
    image = saved_before_images_were_described(tmp_path, {}).image_config
    assert image.image_mean == list(M3AEImageProcessor().image_mean)
    config = saved_before_images_were_described(tmp_path, MODALITY)
    assert {name: getattr(config.image_config, name) for name in HALF} == HALF
    assert config.latent.typed_modalities["image"].mean is None  # the numbers are in one place
    M3AEImageProcessor.for_size(32, image_mean=[0.1] * 3, image_std=[0.2] * 3).save_pretrained(tmp_path)
    image = saved_before_images_were_described(tmp_path, MODALITY).image_config
    assert (image.image_mean, image.image_std) == ([0.1] * 3, [0.2] * 3)


def test_two_normalisations_of_one_encoder_are_refused() -> None:
    latent = {"modalities": {name: {"kind": "image", **MODALITY} for name in ("frontal", "lateral")}}
    assert M3AEConfig.named("tiny", latent=latent, image_config=HALF).image_config.image_mean == [0.5] * 3
    latent["modalities"]["lateral"] = {"kind": "image", "mean": [0.1] * 3, "std": [0.1] * 3}
    with pytest.raises(ValueError, match=r"by image_config, whose mean is \[0.5, 0.5, 0.5\].*got .*\[0.1, 0.1, 0.1\]"):
        M3AEConfig.named("tiny", latent=latent)


def test_the_mask_token_is_in_the_configuration(tmp_path: Path) -> None:
    config = M3AEConfig.named("tiny")
    assert config.mask_token_id == 127
    config.text_config.vocab_size = 140
    config.save_pretrained(tmp_path)
    assert M3AEConfig.from_pretrained(tmp_path).mask_token_id == 127
    assert M3AEConfig.named("tiny", mask_token_id=4).mask_token_id == 4


def test_a_file_keeps_what_other_programs_have_written_and_a_person_is_corrected(tmp_path: Path) -> None:
    config = M3AEConfig.named("tiny", latent={"size": 3})
    for part in (config, config.image_config, config.text_config, config.latent):
        part.use_cache, part.written_by_another_program = False, {"some": "value"}
    M3AEForClassification(config).save_pretrained(tmp_path)
    loaded = M3AEForClassification.from_pretrained(tmp_path).config
    merged, _ = merged_config(loaded, {"mask_ratio": 0.5, "image_config": {"dropout": 0.1}})
    assert (merged.mask_ratio, merged.image_config.dropout) == (0.5, 0.1)
    for whole in (loaded, merged, AutoConfig.from_pretrained(tmp_path)):
        for part in (whole, whole.image_config, whole.text_config, whole.latent):
            assert part.written_by_another_program == {"some": "value"}
    for typed in ({"mask_ration": 0.5}, {"image_config": {"mask_ration": 0.5}}, {"latent": {"mask_ration": 0.5}}):
        for build in (lambda typed: M3AEConfig(**typed), lambda typed: merged_config(loaded, typed)):
            with pytest.raises(ValueError, match=r"Config has no option 'mask_ration'"):
                build(typed)
    with pytest.raises(ValueError, match=r"M3AEImageConfig has no option 'patchsize'. Did you mean patch_size"):
        M3AEForClassification.from_pretrained(tmp_path, image_config={"patchsize": 8})
