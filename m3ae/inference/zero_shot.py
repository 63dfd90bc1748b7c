"""Zero-shot classification: an image is compared with the prompts of every class.

The contrastive head compares the image with the mean of the prompts of a class (Radford et al. 2021, CLIP). A label of
which an image may have any number is scored by positive minus negative prompts (Tiu et al. 2022, CheXzero). The
matching head, which fuses the image with each prompt, can order the best classes anew.

Shapes: B images, C classes, G groups of prompts, P prompts, E contrastive space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from m3ae.inference.inputs import BATCH_SIZE, encode_pixels
from m3ae.inference.search import Searching, check_can_compare, has_matching_head, token_ids
from m3ae.models.processing import M3AEProcessor
from m3ae.models.retrieval import EncodedImages, embed, encode_texts, score_pairs

TEMPLATES = ("{}",)
NEGATIVE_TEMPLATES = ("no {}",)


class ZeroShotClassifier:
    """A pre-trained model, and the encoded prompts of some classes.

    Args:
        model: A model that `load_model` has loaded, of one of the classes in `m3ae.inference.search.SEARCHING`.
        processor: The model's processor.
        classes: The names of the classes; or name → texts. Each text takes the place of {} in every template. A text
            that ends in a full stop is a prompt as it is.
        templates: Texts with {}, such as "There is a {}."
        negative_templates: Texts for an image without the label, such as "no {}", where an image may have any number
            of the classes. Without them classes exclude each other.
        rerank: The number of best classes of each image that the matching head scores anew; the scores of the others
            are −∞. 0 leaves the scores of the contrastive head. A model without that head matches all classes.

    Attributes:
        names: The names of the classes.
        prompts: Name → the positive and the negative prompts.
        multi_label: Whether an image may have any number of the classes.

    Raises:
        ValueError: A class has no prompts, or those of another class; there is nothing to choose among; or the model
            cannot compare images and texts as `rerank` asks.
    """

    def __init__(
        self,
        model: Searching,
        processor: M3AEProcessor,
        classes: Mapping[str, Sequence[str]] | Sequence[str],
        templates: Sequence[str] = TEMPLATES,
        negative_templates: Sequence[str] = (),
        rerank: int = 0,
    ) -> None:
        self.model, self.processor, self.rerank = model, processor, rerank
        self.names, self.multi_label = [*classes], bool(negative_templates)
        texts = classes if isinstance(classes, Mapping) else {name: [name] for name in classes}
        self.prompts = {name: _prompts(name, texts[name], templates, negative_templates) for name in self.names}
        self._check()
        positive, negative = zip(*self.prompts.values(), strict=True)
        groups = [*positive, *negative] if self.multi_label else positive
        column = {text: number for number, text in enumerate(dict.fromkeys(chain(*groups)))}
        self._mean = torch.zeros(len(groups), len(column))  # (G, P) averages over the prompts of each group
        for row, group in zip(self._mean, groups, strict=True):
            row[[column[text] for text in group]] = 1 / len(group)
        self._texts = encode_texts(model.m3ae, token_ids(model, processor, [*column]), BATCH_SIZE)
        if model.itc_head is not None:
            self._vectors = F.normalize(self._mean @ embed(model.itc_head, "text", self._texts), dim=-1)  # (G, E)

    @torch.inference_mode()
    def scores(self, images: Sequence[Any]) -> Tensor:
        """Return the scores (B, C) of a batch of images, the logits of the probabilities, in float32 on the CPU.

        Args:
            images: Pictures of Pillow, arrays, tensors, or names of files, such as of DICOM.
        """
        encoded = EncodedImages(self.model.m3ae.encode_image(**encode_pixels(self.model, self.processor, images)))
        chosen = torch.ones(len(images), len(self.names), dtype=torch.bool)
        if (head := self.model.itc_head) is not None:
            scale = head.log_scale.float().clamp(max=math.log(100)).exp().cpu()
            scores = self._of_classes(scale * embed(head, "image", encoded) @ self._vectors.T)
            if not self.rerank:
                return scores
            best = scores.topk(min(self.rerank, len(self.names)), dim=1).indices
            chosen = torch.zeros_like(chosen).scatter_(1, best, True)
        needed = chosen.float().repeat(1, 1 + self.multi_label) @ self._mean > 0  # (B, P)
        matched = torch.zeros(needed.shape)
        pairs = needed.nonzero().flip(1)  # text, image
        matched[needed] = score_pairs(self.model.score, self._texts, encoded, pairs, batch_size=BATCH_SIZE)
        return self._of_classes(matched @ self._mean.T).masked_fill(~chosen, -torch.inf)

    def probabilities(self, scores: Tensor) -> list[dict[str, float]]:
        """Return the probability of each class from scores (B, C): their sum is 1 where classes exclude each other."""
        rows = scores.sigmoid() if self.multi_label else scores.softmax(dim=-1)
        return [dict(zip(self.names, row, strict=True)) for row in rows.tolist()]

    def classify(self, images: Sequence[Any]) -> list[dict[str, float]]:
        """Return the probability of each class for each of any number of images; see `scores`."""
        starts = range(0, len(images), BATCH_SIZE)
        batches = (self.probabilities(self.scores(images[start : start + BATCH_SIZE])) for start in starts)
        return [*chain(*batches)]

    def _of_classes(self, scores: Tensor) -> Tensor:
        """Return the scores (B, C) of classes from the scores (B, G) of groups."""
        if not self.multi_label:
            return scores
        positive, negative = scores.chunk(2, dim=1)
        return positive - negative

    def _check(self) -> None:
        count, least = len(self.names), 1 if self.multi_label else 2
        if count < least:
            raise ValueError(f"got {count} classes, expected at least {least}, or negative prompts for a single label")
        prompts = [frozenset(positive) for positive, _ in self.prompts.values()]
        if len(set(prompts)) < count:
            raise ValueError(f"classes {', '.join(self.names)}: expected another name and other prompts for each")
        check_can_compare(self.model)
        if self.multi_label and 0 < self.rerank < count:
            raise ValueError(
                f"rerank: got {self.rerank}, expected 0 or all {count}: every image needs every label's score"
            )
        if self.rerank < 0 or (self.rerank and not has_matching_head(self.model)):
            raise ValueError(f"rerank: got {self.rerank}, expected at least 0, and 0 without a trained matching head")


def _prompts(
    name: str, texts: Sequence[str], templates: Sequence[str], negative_templates: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the positive and the negative prompts of a class, each once."""
    if any(isinstance(given, str) for given in (texts, templates, negative_templates)):
        raise ValueError(f"class {name!r}: got one text for its prompts or the templates, expected a list of texts")
    if not texts or not all(map(str.strip, texts)):
        raise ValueError(f"class {name!r} has no prompt, or an empty one")
    if without := [template for template in templates if "{}" not in template]:
        raise ValueError(f"template {without[0]!r} has no {{}} for the class")
    words = [text for text in texts if not text.endswith(".")]
    positive = [text for text in texts if text.endswith(".")]
    positive += [template.replace("{}", word) for word in words for template in templates]
    negative = [template.replace("{}", word) for word in words or [name] for template in negative_templates]
    return [*dict.fromkeys(positive)], [*dict.fromkeys(negative)]
