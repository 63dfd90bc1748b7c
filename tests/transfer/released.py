"""Files in the released format, generated."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.transfer.convert import released_content

# What released files hold beside the model: CLIP's text tower, RoBERTa's pooler, metric states.
UNREAD = {
    "vision_encoder.positional_embedding": torch.zeros(7, 4),
    "vision_encoder.token_embedding.weight": torch.zeros(9, 4),
    "vision_encoder.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(12, 4),
    "vision_encoder.ln_final.bias": torch.zeros(4),
    "vision_encoder.text_projection": torch.zeros(4, 4),
    "vision_encoder.logit_scale": torch.zeros(()),
    "vision_encoder.visual.proj": torch.zeros(4, 4),
    "language_encoder.pooler.dense.bias": torch.zeros(4),
    "language_encoder.embeddings.position_ids": torch.zeros(1, 4),
    "train_vqa_score.total": torch.zeros(()),
    "val_irtr_loss.scalar": torch.zeros(()),
}


def released_by_others(model: M3AEPreTrainedModel) -> dict[str, Any]:
    """What the published code would have written: our configuration is not in it, and more parameters are."""
    content = released_content(model)
    del content["hyper_parameters"]["m3ae"]
    content["state_dict"] |= UNREAD
    return content


def save(folder: Path, content: dict[str, Any]) -> Path:
    torch.save(content, folder / "m3ae.ckpt")
    return folder / "m3ae.ckpt"


def word_tokenizer(folder: Path, size: int, **special: str) -> str:
    """Save a tokenizer of `size` words with RoBERTa's special tokens, or others, and return its folder."""
    tokens = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    names = ["<s>", "<pad>", "</s>", "<unk>", "is", "there", "an", "effusion"]
    vocabulary = [*names, *(f"word{i}" for i in range(size - len(names) - 1)), "<mask>"]
    model = models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary.index("<s>")), ("</s>", vocabulary.index("</s>"))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **tokens)
    wrapped.save_pretrained(folder)
    return str(folder)
