"""What `model.overrides` may hold: options of the model's configuration, by name and type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, create_model

from m3ae.options import OptionsError, check_options, class_options


def check_overrides(overrides: Mapping[str, Any], text_encoder: str | None) -> None:
    """Check the names and types of options of `M3AEConfig` and of the configurations in it.

    Args:
        overrides: Some of the options.
        text_encoder: The `model_type` of the text encoder; None where it is not known yet.

    Raises:
        OptionsError: A key is no option, or a value has another type.
    """
    with named("overrides."):
        from m3ae.models.modalities import KINDS

        check_options(_overrides_model(tuple(KINDS)), overrides)
    if text_encoder is not None and overrides.get("text_config"):
        from m3ae.models.text_encoder import check_text_encoder, check_text_options

        with named("overrides: "):
            check_text_encoder(text_encoder, overrides["text_config"])
            check_text_options(text_encoder, overrides["text_config"])


def check_new_model(size: str, overrides: Mapping[str, Any]) -> None:
    """Raise OptionsError if there is no model of a named size with some options replaced."""
    from m3ae.models.configuration import M3AEConfig

    with named("model.overrides: "):
        M3AEConfig.named(size, **overrides)


@contextmanager
def named(prefix: str) -> Iterator[None]:
    """Begin what is wrong with options of a configuration by what they are called.

    Raises:
        OptionsError: The block has refused options.
    """
    try:
        yield
    except (StrictDataclassError, ValueError) as error:
        problems = error.problems if isinstance(error, OptionsError) else [" ".join(str(error).split())]
        raise OptionsError([f"{prefix}{problem}" for problem in problems]) from error


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
