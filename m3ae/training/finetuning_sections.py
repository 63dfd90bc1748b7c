"""Sections of the configuration that fine-tuning tasks have."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from m3ae.options import OptionsError, unknown_keys
from m3ae.training.sections import EvaluationConfig, Section


def _exist(options: dict[str, Any]) -> dict[str, Any]:
    from transformers import GenerationConfig

    if problems := unknown_keys(options, GenerationConfig().to_dict()):
        raise OptionsError(problems)
    return options


GenerateOptions = Annotated[dict[str, Any], AfterValidator(_exist)]  # options of transformers' `generate`


class FineTuningEvaluationConfig(EvaluationConfig):
    """What fine-tuning measures beside the losses.

    Attributes:
        controls: Whether controls without the image, and without the model, stand beside the results.
        resamples: Draws of the bootstrap behind the 95 % intervals of final results; 0 for none.
    """

    controls: bool = True
    resamples: NonNegativeInt = 1000


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2022), which learn in place of the linear layers of encoders and fusion.

    Attributes:
        rank: Rank of a layer's update, whose two factors have `rank` weights for each input and output of the layer.
        alpha: The update is scaled by alpha / rank.
        dropout: Dropout of what enters an adapter.
    """

    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    dropout: float = Field(default=0.0, ge=0, lt=1)


class FineTuningConfig(Section):
    """What all fine-tuning tasks have in common.

    Attributes:
        image_size: Side of the images in pixels; where it is not the model's, the position table is interpolated.
        frozen: Which weights stay as they are: `trunk` leaves only the head to learn (probing).
        lora: Learn the head, and low-rank updates of the rest: `{rank: 8}`; needs peft. `null` to learn all weights.
        token_dropout: Mean share of a text's tokens that are masked in training, against overfitting where texts are
            few. Each visit draws a share between 0 and twice this one, so that the image alone is read, too.
    """

    image_size: PositiveInt | None = None
    frozen: Literal["nothing", "encoders", "trunk"] = "nothing"
    lora: LoraConfig | None = None
    token_dropout: float = Field(default=0.0, ge=0, le=0.5)

    @model_validator(mode="after")
    def _adapters_freeze_the_trunk_themselves(self) -> "FineTuningConfig":
        if self.lora is not None and self.frozen != "nothing":
            raise ValueError(
                f"frozen: got {self.frozen} beside finetuning.lora, which freezes all but head and adapters; "
                "set one of them"
            )
        return self


class QuestionAnsweringConfig(Section):
    """The answers that can be given.

    Attributes:
        answers: The answers come from `answers.json` of the prepared `folder`, or without that file from its training
            split; or from the `checkpoint`, whose head is then kept.
    """

    answers: Literal["folder", "checkpoint"] = "folder"


class ClassificationConfig(Section):
    """The classes, and how rows name them.

    Attributes:
        label_column: Column of the label or the list of labels.
        multi_label: Whether a sample may have any number of labels; otherwise it has one.
        labels: The classes, in this order; `null` for those of the training split, the most frequent first.
        num_labels: Keep only this many of the most frequent ones.
        uncertain: How the labels of the column `labels_uncertain` count, in training and in evaluation.
        class_weights: Weight of each class in the loss: `balanced`, inversely proportional to its frequency; a list;
            or `null` for none. With several labels, the weight is that of a label's positives.
        thresholds: What the threshold of each of several labels makes largest on validation: `f1`, or `youden`, the
            true minus the false positive rate; `null` for a threshold of 0.5.
        calibrate: Whether the logits are divided by a number that is fitted on validation, so that probabilities are
            frequencies.
    """

    label_column: str = "labels"
    multi_label: bool = False
    labels: list[str] | None = None
    num_labels: PositiveInt | None = None
    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    thresholds: Literal["f1", "youden"] | None = "f1"
    calibrate: bool = False

    @model_validator(mode="after")
    def _labels_are_named_or_counted(self) -> "ClassificationConfig":
        if self.labels is not None and self.num_labels is not None:
            raise ValueError("num_labels: got a number beside classification.labels, expected one of the two")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: got {self.labels}, expected each name once")
        return self


class RetrievalConfig(Section):
    """How images and texts are ranked and judged.

    Attributes:
        relevance: Which image is right: one that stands with an equal text in any row (`every`), or only the image of
            the text's row (`published`).
        rerank: Number of nearest candidates by the contrastive head that the matching head ranks; all others count as
            missed. 0 ranks everything by the contrastive head alone. `null` scores every pair by the matching head, as
            published, which needs a matrix of all texts and images.
        max_rows: Rows of a split that are ranked, evenly spaced; `null` for all.
    """

    relevance: Literal["every", "published"] = "every"
    rerank: NonNegativeInt | None = None
    max_rows: PositiveInt | None = None


class ReportGenerationConfig(Section):
    """Which reports are learnt, how they are written, and how they are judged.

    Attributes:
        report_column: Column of the report or reports; `data.text_column` names further texts that are read, if any.
        options: Options of transformers' `generate`, such as `{num_beams: 4}`; saved with the model.
        label_column: Column of the names of what a report states, for the F1 of a bag-of-words classifier of reports;
            `null` for none. Reports on phantoms are read by their grammar.
        num_labels: Number of names that count, the most frequent of the training split.
    """

    report_column: str = "text"
    options: GenerateOptions = Field(default={})
    label_column: str | None = None
    num_labels: PositiveInt = 11
