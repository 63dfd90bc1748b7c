import pytest

from m3ae import M3AEConfig, M3AEImageConfig
from m3ae.models.configuration import SIZES


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
        ({"schedule": "both"}, "schedule must be 'separate' or 'joint', got 'both'"),
        ({"num_attention_heads": 7}, "the width 768 must be a multiple of the number of attention heads, got 7"),
    ],
)
def test_bad_options_are_explained(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M3AEConfig(**options)


def test_unknown_size_lists_the_sizes() -> None:
    with pytest.raises(ValueError, match="'large'; the sizes are tiny, small, base"):
        M3AEConfig.named("large")
