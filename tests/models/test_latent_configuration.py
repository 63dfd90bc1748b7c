from typing import Any

import pytest
import torch

from m3ae import LatentConfig, M3AEConfig, M3AEForPreTraining
from tests.models.tiny import tiny_config
from tests.models.tiny_latent import DIGITS, STUDY, latent_config


@pytest.mark.parametrize("modalities", [DIGITS, STUDY])
def test_survives_saving(modalities: dict, tmp_path) -> None:
    config = latent_config(modalities, kind="moe", objective="dreg", num_samples=3, beta_warmup=0.5)
    config.save_pretrained(tmp_path)
    loaded = M3AEConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and isinstance(loaded.latent, LatentConfig)
    assert loaded.latent.typed_modalities == config.latent.typed_modalities
    assert list(loaded.latent.typed_modalities) == list(config.latent.typed_modalities) == sorted(modalities)


def test_defaults_are_image_and_text_of_the_trunk() -> None:
    modalities = LatentConfig().typed_modalities
    found = {name: (m.encoder, m.decoder, m.likelihood) for name, m in modalities.items()}
    assert found == {
        "image": ("vit", "transformer", "normal"),
        "text": ("roberta", "transformer", "categorical"),
    }


def test_without_latent_head_the_model_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = M3AEForPreTraining(tiny_config(latent=None))
    assert tiny_config().latent is None and not any("latent" in name for name in model.state_dict())


def label(**options: Any) -> dict[str, Any]:
    return {"kind": "label", "labels": ["a", "b"], **options}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "poe"}, "LatentConfig has no option 'kinds'. Did you mean kind"),
        ({"kind": "mope"}, "latent.kind is 'mope'; expected one of 'poe', 'moe', 'mopoe'"),
        ({"objective": "iwae"}, "latent.num_samples of the objective iwae must be an integer of at least 1, got None"),
        (
            {"objective": "mvtcae", "num_samples": 2},
            "latent.num_samples: got 2 for the objective mvtcae, which decodes",
        ),
        ({"objective": "jmvae"}, "latent.objective jmvae: got the kind mopoe; expected joint"),
        ({"objective": "mvtcae", "kind": "joint"}, "expected another kind, since this objective has no joint expert"),
        ({"objective": "cvae", "kind": "joint"}, "got None; expected some, not all, of image, text"),
        ({"condition": ["text"]}, r"latent.condition of the objective elbo: got \['text'\]; expected None"),
        ({"objective": "cvae", "kind": "joint", "condition": ["x"]}, r"got \['x'\]; expected some, not all, of image"),
        ({"size": 2.5}, "latent.size must be an integer of at least 1, got 2.5"),
        ({"beta_warmup": 2}, "latent.beta_warmup must lie between 0 and 1, got 2"),
        ({"modalities": {}}, "latent.modalities is empty"),
        ({"modalities": {"x": {}}}, "latent.modalities.x.kind is None; expected one of 'image', 'text'"),
        ({"modalities": {"x": label(num_labels=2)}}, "latent.modalities.x has no option 'num_labels'"),
        (
            {"modalities": {"x": label(encoder="vit")}},
            "latent.modalities.x.encoder is 'vit'; expected one of 'mlp', 'no",
        ),
        ({"modalities": {"x": label(likelihood="normal")}}, "likelihood is 'normal'; expected one of 'categorical'"),
        (
            {"modalities": {"x": {"kind": "label"}}},
            "x.labels: the kind label needs the names of its classes, got None",
        ),
        ({"modalities": {"x": {"kind": "labels", "labels": []}}}, r"the kind labels needs the names .* got \[\]"),
        (
            {"modalities": {"x": {"kind": "image", "shape": [1, 6, 6]}}},
            r"expected none, or \[1\] for grayscale images",
        ),
        ({"modalities": {"x": {"kind": "vector"}}}, r"x.shape is None; expected \[F\] for a modality of kind vector"),
        ({"modalities": {"x": label(encoder="none", private_size=2)}}, "x.private_size: a modality without encoder"),
        ({"modalities": {"x": label(encoder="none")}}, "all have the encoder 'none'"),
        (
            {"modalities": {"x": label(encoder="none"), "y": label()}, "objective": "subset_elbos"},
            "each subset explains itself, so every modality needs an encoder; x has none",
        ),
        ({"modalities": {"x": label(mean=[0.5])}}, "latent.modalities.x has no option 'mean'"),
        ({"modalities": {"x": label(weight=0)}}, "x.weight must be a positive number, got 0"),
    ],
)
def test_bad_options_are_explained(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M3AEConfig(latent=options)


def test_pre_training_has_the_modalities_of_the_trunk() -> None:
    with pytest.raises(ValueError, match="M3AEForGeneration trains any modalities"):
        M3AEForPreTraining(latent_config(DIGITS))
