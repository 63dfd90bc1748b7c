"""The check of the options of a model that a run replaces."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, create_model

from m3ae.options import check_options, class_options, named


def check_overrides(overrides: Mapping[str, Any], text_encoder: str | None) -> None:
    """Raise OptionsError for a key that is no option of `M3AEConfig` and its sections, or a value of another type.

    The options of a text encoder depend on its `model_type`; without one they are not checked.
    """
    with named("overrides."):
        from m3ae.models.modalities import KINDS

        check_options(_overrides_model(tuple(KINDS)), overrides)
    if text_encoder is not None and overrides.get("text_config"):
        from m3ae.models.text_encoder import check_text_encoder, check_text_options

        with named("overrides: "):
            check_text_encoder(text_encoder, overrides["text_config"])
            check_text_options(text_encoder, overrides["text_config"])


@cache
def _overrides_model(kinds: tuple[str, ...]) -> type[BaseModel]:
    import torch

    from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
    from m3ae.models.latent_configuration import LatentConfig
    from m3ae.models.modalities import KINDS
    from m3ae.models.option_checks import TRANSFORMERS_KEYS

    def options(config: type[Any], **nested: Any) -> Any:
        return class_options(config, nested, TRANSFORMERS_KEYS - {"model_type"}, {"torch": torch})

    of_kinds = [class_options(kind.config_class, {}) for kind in map(KINDS.__getitem__, kinds)]
    known = {name: (field.annotation, None) for kind in of_kinds for name, field in kind.model_fields.items()}
    modality: Any = create_model("ModalityConfig", __config__=of_kinds[0].model_config, **known)  # type: ignore[call-overload]
    model: type[BaseModel] = options(
        M3AEConfig,
        image_config=options(M3AEImageConfig) | None,
        text_config=dict | None,
        latent=options(LatentConfig, modalities=dict[str, modality] | None) | None,
    )
    return model
