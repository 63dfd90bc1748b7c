"""Published text encoders and their tokenizers: reading them, and starting a model from one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, RobertaTokenizer

from m3ae.files import load_json_object
from m3ae.models.configuration import M3AEConfig
from m3ae.models.modeling import M3AEModel, M3AEPreTrainedModel
from m3ae.models.text_encoder import check_text_encoder, encoder_class, encoder_options
from m3ae.transfer.checkpoints import first_line
from m3ae.transfer.sources import InitReport, load_published, read_config, require_encoder, require_none

SOURCES = (
    "a folder or hub name of a bidirectional text encoder of transformers (bert, roberta, xlm-roberta, camembert, "
    "distilbert, electra, modernbert, deberta-v2, …) or of another M3AE"
)
# Options that may differ between a source and a model: they change no parameter, or only how a model learns.
_FREE = re.compile(r"drop|initializer|_eps$|use_cache|_token_id$|^position_embedding_type$|^summary_|^classifier_")


def init_text_encoder(model: M3AEPreTrainedModel, source: str) -> InitReport:
    """Copy a published text encoder into the model's, which has to be of the same architecture and size.

    Its position table may be longer than ours, which then takes the first rows. Pooler and heads are left out.

    Args:
        model: Any M3AE.
        source: Folder or hub name of a bidirectional encoder of transformers, with any head, or of another M3AE.

    Raises:
        ValueError: The source cannot be read, is something else, or has another architecture, vocabulary, width …
            than `config.text_config`; or the model has no text encoder, as one for generation may.
    """
    encoder: Any = require_encoder(model, "text_encoder", "roberta")
    config = model.config.text_config
    assert isinstance(config, PreTrainedConfig)
    theirs = read_text_config(source)
    if read_config(source, SOURCES)["model_type"] == M3AEConfig.model_type:
        whole, left_out = load_published(source, M3AEModel)
        published = whole.text_encoder
        left_out += [name for name in whole.state_dict() if not name.startswith("text_encoder.")]
    else:
        published, left_out = load_published(source, encoder_class(theirs), **encoder_options(theirs))
    theirs, remarks = published.config, []
    require_none("text encoder", source, config, contradictions(theirs, config.to_dict()), "text_config")
    state, expected = published.state_dict(), encoder.state_dict()
    for name in (name for name in state if state[name].shape != expected[name].shape):
        remarks.append(f"the first {len(expected[name])} of its {len(state[name])} positions")
        state[name] = state[name][: len(expected[name])]
    for name in (name for name in theirs.to_dict() if name.endswith("_eps")):
        if getattr(theirs, name) != getattr(config, name):
            remarks.append(f"{name} is {getattr(theirs, name):g} there and {getattr(config, name):g} here")
    encoder.load_state_dict(state)
    kind = f"transformers' {type(published).__name__}"
    return InitReport("text encoder", f"{source} ({kind})", list(state), [], left_out, remarks)


def read_text_config(source: str) -> PreTrainedConfig:
    """Read the configuration of a text encoder without its weights.

    Raises:
        ValueError: There is nothing at the source, or it holds something else.
    """
    options = read_config(source, SOURCES)
    if options.get("model_type") == M3AEConfig.model_type:
        options = options["text_config"]
    kind = options.get("model_type")
    try:
        check_text_encoder(kind, options)
    except ValueError as error:
        raise ValueError(f"{source!r} holds a {kind or 'model of no stated type'}; expected {SOURCES}.") from error
    config: PreTrainedConfig = type(AutoConfig.for_model(str(kind))).from_dict(options)
    return config


def contradictions(source: PreTrainedConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a text encoder under which its weights would compute something else.

    Args:
        source: The configuration that the weights were trained with.
        options: Options of the same or another configuration. Dropout and the like may differ, and so may
            `layer_norm_eps`; the position table may be shorter, unless distances are counted with it.

    Returns:
        Name → the source's value, for each option that contradicts it.
    """
    if options.get("model_type", source.model_type) != source.model_type:
        return {"model_type": source.model_type}
    declared = {field.name for field in fields(source)}
    computed = declared - {field.name for field in fields(PreTrainedConfig)} | declared & {"pad_token_id"}
    different = {}
    for name, value in options.items():
        name = source.attribute_map.get(name, name)
        theirs = getattr(source, name, None)
        if name not in computed or (_FREE.search(name) and name != "pad_token_id") or value == theirs:
            continue
        relative = getattr(source, "relative_attention", False)
        if name == "max_position_embeddings" and not relative and theirs is not None and value <= theirs:
            continue
        different[name] = theirs
    return different


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hugging Face hub.

    Args:
        path: Folder or hub name. RoBERTa's two original files alone, which do not say what they are, will do.

    Raises:
        ValueError: The folder has no usable tokenizer, or two that disagree.
    """
    describing = ("tokenizer.json", "tokenizer_config.json", "config.json")
    is_described = any((Path(path) / name).is_file() for name in describing)
    loader = RobertaTokenizer if (Path(path) / "merges.txt").is_file() and not is_described else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No tokenizer in {path!r} ({first_line(error)}). Name a folder with tokenizer.json or a model of the "
            "hub, or leave tokenizer.path out: a byte-level BPE is then trained on the training texts."
        ) from error
    _check_files_agree(Path(path), tokenizer)
    return tokenizer


def _check_files_agree(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if a folder has RoBERTa's original files beside tokenizer.json, and they are of another tokenizer."""
    whole, words, pairs = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not (whole.is_file() and words.is_file() and pairs.is_file()):
        return
    vocabulary, numbers = tokenizer.get_vocab(), load_json_object(words)
    merges = load_json_object(whole)["model"].get("merges", [])
    ours = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    lines = [line for line in pairs.read_text(encoding="utf-8").split("\n") if line and line[:8] != "#version"]
    entries: list[tuple[str, Any, Any]] = [
        (repr(word), vocabulary.get(word), number) for word, number in numbers.items()
    ]
    entries += [(f"merge {n}", *both) for n, both in enumerate(zip_longest(ours, lines))]
    different = [f"{entry} is {one!r} and {other!r}" for entry, one, other in entries if one != other]
    if different:
        raise ValueError(
            f"tokenizer.json and vocab.json with merges.txt in {str(folder)!r} are two tokenizers: {different[0]}. "
            "Remove what the model was not trained with."
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise if a text encoder was trained with another vocabulary than the tokenizer's."""
    numbers = {
        "words": (len(tokenizer), config.vocab_size),
        "padding": (tokenizer.pad_token_id, config.pad_token_id),
        "beginning": (tokenizer.bos_token_id, config.bos_token_id),  # None in the configuration: no weight shows it
        "end": (tokenizer.eos_token_id, config.eos_token_id),
    }
    different = [
        f"{name} {theirs}, expected {ours}"
        for name, (theirs, ours) in numbers.items()
        if ours is not None and ours != theirs
    ]
    if different:
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path!r} has another vocabulary than the checkpoint: "
            f"{'; '.join(different)}. Use the tokenizer that the model was trained with."
        )
