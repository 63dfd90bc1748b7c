"""Tokenizers that others have trained."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, RobertaTokenizer


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hugging Face hub.

    Args:
        path: Folder or hub name. RoBERTa's two original files alone, which do not say what they are, will do.

    Raises:
        ValueError: Nothing usable there.
    """
    describing = ("tokenizer.json", "tokenizer_config.json", "config.json")
    is_described = any((Path(path) / name).is_file() for name in describing)
    loader = RobertaTokenizer if (Path(path) / "merges.txt").is_file() and not is_described else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"No tokenizer in {path!r} ({reason}). Name a folder with tokenizer.json or a model of the hub, or leave "
            "tokenizer.path out: a byte-level BPE is then trained on the training texts."
        ) from error
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Raise if a text encoder was trained with another vocabulary than the tokenizer's."""
    ours = {
        "words": config.vocab_size,
        "padding": config.pad_token_id,
        "beginning": config.bos_token_id,
        "end": config.eos_token_id,
    }
    theirs = {
        "words": len(tokenizer),
        "padding": tokenizer.pad_token_id,
        "beginning": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
    }
    known = [name for name, number in ours.items() if number is not None]  # BERT's weights tell no beginning or end
    different = [f"{name} {theirs[name]}, expected {ours[name]}" for name in known if ours[name] != theirs[name]]
    if different:
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path!r} has another vocabulary than the checkpoint: "
            f"{'; '.join(different)}. Use the tokenizer that the model was trained with."
        )
