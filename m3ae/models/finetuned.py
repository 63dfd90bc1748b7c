"""Fine-tuned models of image-text pairs, whose pooled features one head maps to answers or classes.

Shapes: B batch, C channels, H×W pixels, L text tokens, A answers or classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from m3ae.models.configuration import M3AEConfig
from m3ae.models.fusion import Stream
from m3ae.models.heads import PooledHead
from m3ae.models.modeling import OTHER_HEADS, M3AEModel, M3AEPreTrainedModel
from m3ae.models.option_checks import checked_arguments


@dataclass
class M3AEForClassificationOutput(ModelOutput):
    """Class scores.

    Attributes:
        loss: () if the call has labels.
        losses: {"cls": loss}.
        logits: (B, A); `config.id2label[a]` is the class, or the answer, that column a stands for.
        hidden_states: With `output_hidden_states`, what `m3ae.models.attention.recording` records.
        attentions: With `output_attentions`, what it records.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class M3AEForQuestionAnsweringOutput(M3AEForClassificationOutput):
    """Answer scores: the attributes are those of `M3AEForClassificationOutput`, with `losses` of {"vqa": loss}."""


class _PooledModel(M3AEPreTrainedModel):
    """The trunk and a `PooledHead` with the name `<task>_head`."""

    _keys_to_ignore_on_load_unexpected = OTHER_HEADS
    task: ClassVar[str]
    output_class: ClassVar[type[M3AEForClassificationOutput]] = M3AEForClassificationOutput

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__(config)
        self.m3ae = M3AEModel(config)
        self.add_module(f"{self.task}_head", PooledHead(config))
        self.post_init()

    @checked_arguments
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> M3AEForClassificationOutput:
        """Score the answers or classes of image-text pairs, either side of them missing.

        Args:
            pixel_values: (B, C, H, W), or (B, V, C, H, W) of a model of several views; None without images.
            input_ids: (B, L), or None without text.
            attention_mask: (B, L), 0 = padding.
            image_present: (B,) bool, False where a sample has no image; (B, V) of several views.
            text_present: (B,) bool, False where a sample has no text.
            pixel_mask: (B, H, W) or (B, V, H, W), 0 = padding.
            labels: What `loss` takes.

        Raises:
            ValueError: Images and texts are both left out.
        """
        streams = self.m3ae.encode(pixel_values, input_ids, attention_mask, image_present, text_present, pixel_mask)
        logits = self.score(streams)
        if labels is None:
            return self.output_class(logits=logits)
        loss = self.loss(logits, labels)
        return self.output_class(loss, {self.task: loss}, logits)

    def score(self, streams: Mapping[str, Stream]) -> Tensor:
        """Return the logits (B, A) of encoded images and texts."""
        logits: Tensor = self.get_submodule(f"{self.task}_head")(self.m3ae.fuse_and_pool(streams))
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (B, A) into probabilities; they sum to 1 where the answers or classes exclude each other."""
        logits = logits / self.config.calibration_temperature
        return logits.softmax(-1) if self._exclusive else logits.sigmoid()

    @property
    @abstractmethod
    def _exclusive(self) -> bool: ...

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (B, A) against labels."""


class M3AEForQuestionAnswering(_PooledModel):
    """The trunk with the published question-answering head (Chen et al. 2022).

    The answer list is `config.id2label`: `from_pretrained(folder, id2label=dict(enumerate(answers)))` on a pre-trained
    model starts a new head of that size. The published loss judges each answer by itself; with `config.problem_type =
    "single_label_classification"` the answers exclude each other, which takes far fewer questions to learn.
    """

    vqa_head: PooledHead
    task = "vqa"
    output_class = M3AEForQuestionAnsweringOutput

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (B, A).

        Args:
            logits: (B, A).
            labels: (B,) the answer's index, −100 if the answer is not in the list; or (B, A) how right each answer is.
        """
        return answer_loss(logits, labels, exclusive=self._exclusive)

    @property
    def _exclusive(self) -> bool:
        return bool(self.config.problem_type == "single_label_classification")


class M3AEForClassification(_PooledModel):
    """The trunk with the published classification head (Chen et al. 2022).

    `config.id2label` names the classes, `config.class_weights` weighs them in the loss, and
    `config.problem_type = "multi_label_classification"` lets a sample have any number of them.

    Raises:
        ValueError: `class_weights` or `decision_thresholds` has not a number for each of `id2label`, or the problem
            type is regression.
    """

    cls_head: PooledHead
    task = "cls"

    def __init__(self, config: M3AEConfig) -> None:
        if config.problem_type == "regression":
            raise ValueError(
                "M3AEForClassification has no regression; set problem_type to 'single_label_classification' or "
                "'multi_label_classification'."
            )
        for name in ("class_weights", "decision_thresholds"):
            values = getattr(config, name)
            if values is not None and len(values) != config.num_labels:
                raise ValueError(
                    f"{name} needs one number for each of the {config.num_labels} classes of id2label, "
                    f"got {len(values)}."
                )
        super().__init__(config)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (B, A).

        Args:
            logits: (B, A).
            labels: (B,) the class, or (B, A) 0 or 1 for multi-label problems; −100 = unknown.
        """
        weights = self.config.class_weights
        weight = None if weights is None else logits.new_tensor(weights).float()
        return (class_loss if self._exclusive else multi_label_loss)(logits, labels, weight)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Return the labels (B, A) of samples: the likeliest one, or all whose probability reaches their threshold."""
        if self._exclusive:
            return F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).bool()
        thresholds = self.config.decision_thresholds
        return probabilities >= (0.5 if thresholds is None else probabilities.new_tensor(thresholds))

    @property
    def _exclusive(self) -> bool:
        return bool(self.config.problem_type != "multi_label_classification")


def answer_loss(logits: Tensor, labels: Tensor, *, exclusive: bool = False) -> Tensor:
    """Cross-entropy of the answers, averaged over the questions.

    Args:
        logits: (B, A).
        labels: (B,) the answer's index, −100 for a question without one in the list, which is left out; or (B, A) how
            right each answer is, from 0 to 1.
        exclusive: Whether one answer out of all is right (softmax; what is right is divided by its sum), rather than
            each of them by itself (binary cross-entropy summed over the answers; Chen et al. 2022).
    """
    if labels.dim() == 1:
        known = labels != -100
        targets = F.one_hot(labels.clamp(min=0), logits.shape[-1]).float()
    else:
        known = torch.ones_like(labels[:, 0], dtype=torch.bool)
        targets = labels.float()
    if exclusive:
        shares = targets / targets.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        loss = F.cross_entropy(logits.float(), shares, reduction="none")
    else:
        loss = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(-1)
    return (loss * known).sum() / known.sum().clamp(min=1)


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over the labelled samples, averaged with the weight of each one's class.

    Args:
        logits: (B, A).
        labels: (B,) −100 = unknown.
        weights: (A,) one for each class; 1 if None.
    """
    loss = F.cross_entropy(logits.float(), labels, weights, ignore_index=-100, reduction="none")
    known = labels != -100
    weight = known.float() if weights is None else weights[labels.clamp(min=0)] * known
    return loss.sum() / torch.where(known.any(), weight.sum(), 1)


def multi_label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy over the known entries; 0 if none is known.

    Args:
        logits: (B, A).
        labels: (B, A) 0 or 1, −100 = unknown.
        weights: (A,) of the positives of each label; 1 if None.
    """
    known = labels != -100
    targets = labels.float().masked_fill(~known, 0)
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets, pos_weight=weights, reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)
