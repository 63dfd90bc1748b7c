"""Tokenizers trained on the texts at hand: byte-level BPE."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from m3ae.words import count_words

LONGEST_TOKEN = 13  # bytes: a blank and four characters of Chinese, Japanese or Thai, as long as words are there
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with RoBERTa's special tokens and template `<s> text </s>`.

    Blanks end tokens. In texts that are mostly of scripts without blanks, `LONGEST_TOKEN` does: otherwise clauses that
    recur would become tokens.

    Args:
        texts: The training texts.
        vocab_size: Upper limit of the vocabulary, the 5 special tokens and 256 bytes included.

    Raises:
        ValueError: There is no text, or the vocabulary cannot hold the bytes.
    """
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(
            "A tokenizer needs at least one non-empty training text; got none. Set tokenizer.path instead."
        )
    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size < smallest:
        raise ValueError(f"tokenizer.vocab_size must be at least {smallest} (all bytes), got {vocab_size}.")
    has_blanks = sum(map(count_words, texts)) < 2 * sum(len(text.split()) for text in texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=None if has_blanks else LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=512,
    )
