"""Text encoders: any bidirectional encoder that transformers' `AutoModel` builds.

This file alone knows how the architectures of the library differ: their special tokens, their longest text, and what
their constructors take.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING

from m3ae.models.option_checks import check_keys, reads_file

# Vocabulary, special tokens and position table of the published RoBERTa-base.
ROBERTA_BASE: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

# The first token of a text stands in row `pad_token_id + 1` of the position table of these, as in RoBERTa's.
_SHIFTED_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


def text_config_of(options: Mapping[str, Any]) -> PreTrainedConfig:
    """Build the configuration of a text encoder.

    Args:
        options: Options of the architecture that `model_type` names; RoBERTa if it names none.

    Raises:
        ValueError: transformers has no bidirectional encoder of this type, or the type has no such option.
    """
    model_type = options.get("model_type", "roberta")
    check_text_encoder(model_type, options)
    if not reads_file():
        check_text_options(model_type, options)
    config: PreTrainedConfig = AutoConfig.for_model(
        **({**ROBERTA_BASE, **options} if model_type == "roberta" else options)
    )
    return config


def check_text_options(model_type: str, options: Iterable[str]) -> None:
    """Raise ValueError if a text encoder of a type has no such options: neither declares them nor reads them."""
    kind = CONFIG_MAPPING[model_type]
    source = inspect.getsource(sys.modules[MODEL_MAPPING[kind].__module__])  # DeBERTa reads more than it declares
    read = re.findall(r'\bconfig(?:\.|, ")(\w+)', source)
    check_keys("text_config", {*inspect.signature(kind).parameters, *kind.attribute_map, *read}, options)


def check_text_encoder(model_type: str | None, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless transformers builds a bidirectional text encoder of this type.

    Args:
        model_type: The `model_type` of a configuration.
        options: The configuration's other options.
    """
    known = model_type in CONFIG_MAPPING and model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decodes = options.get("is_decoder") or (known and AutoConfig.for_model(str(model_type)).is_encoder_decoder)
    if not known or decodes:
        raise ValueError(
            f"text_config.model_type is {model_type!r}; expected a bidirectional text encoder of transformers: "
            "bert, roberta, xlm-roberta, camembert, distilbert, electra, modernbert, deberta-v2, …"
        )


def build_text_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the encoder of a configuration with random weights, without a pooler."""
    encoder: PreTrainedModel = AutoModel.from_config(config, **encoder_options(config))
    return encoder


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of transformers that a configuration describes."""
    model_class: type[PreTrainedModel] = MODEL_MAPPING[type(config)]  # type: ignore[assignment]
    return model_class


def encoder_options(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the keywords that the encoder's constructor takes beside the configuration."""
    has_pooler = "add_pooling_layer" in inspect.signature(encoder_class(config).__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}


def longest_text(config: PreTrainedConfig) -> int:
    """Return the number of tokens, special ones included, that the position table holds."""
    rows = int(config.max_position_embeddings)
    return rows - (config.pad_token_id or 0) - 1 if config.model_type in _SHIFTED_POSITIONS else rows


def special_ids(config: PreTrainedConfig) -> list[int]:
    """Return the ids of the tokens that no text is made of: padding, beginning, end, class and separator."""
    names = ("pad", "bos", "eos", "cls", "sep")
    ids = {getattr(config, f"{name}_token_id", None) for name in names}
    return sorted(number for number in ids if isinstance(number, int))
