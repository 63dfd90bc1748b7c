"""Sections of the configuration that belong to one task each, or to all that fine-tune."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from m3ae.options import OptionsError, unknown_keys
from m3ae.training.sections import EvaluationConfig, Section


class PreTrainingEvaluationConfig(EvaluationConfig):
    """What pre-training measures beside the losses.

    Attributes:
        mask_draws: How often the final report hides patches and words of each sample anew: a small difference between
            own and shuffled images needs many.
        retrieval_pairs: Pairs ranked against each other in the final report; 0 for no retrieval.
        word_groups: Words whose share of correct fillings is reported, by name of the group; case does not matter.
    """

    mask_draws: PositiveInt = 1
    retrieval_pairs: NonNegativeInt = 100
    word_groups: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default={})


class FineTuningEvaluationConfig(EvaluationConfig):
    """What fine-tuning measures beside the losses.

    Attributes:
        controls: Whether results come with what is reached without the image, and without the model.
        resamples: Draws of the bootstrap behind the 95 % intervals of final results; 0 for none.
    """

    controls: bool = True
    resamples: NonNegativeInt = 1000


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2022), which learn in place of the linear layers of encoders and fusion.

    Attributes:
        rank: Of a layer's update; its two factors have `rank` times as many weights as the layer has inputs, outputs.
        alpha: The update is scaled by alpha / rank.
        dropout: Of what enters an adapter.
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
            few. At each visit the share is drawn between 0 and twice this: what the image alone says is learnt, too.
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
        answers: From `answers.json` of the prepared `folder`, where there is none from its training split; or those of
            the `checkpoint`, whose head is then kept.
    """

    answers: Literal["folder", "checkpoint"] = "folder"


class ClassificationConfig(Section):
    """The classes, and how rows name them.

    Attributes:
        label_column: Column of the label or the list of labels.
        multi_label: Whether a sample may have any number of labels; otherwise it has one.
        labels: The classes, in this order; `null` for those of the training split, the most frequent first.
        num_labels: Keep only this many of the most frequent ones.
        uncertain: What the labels of the column `labels_uncertain` count as, in training and in evaluation.
        class_weights: Weight of each class in the loss: `balanced`, inversely proportional to its frequency; a list;
            or `null` for none. With several labels, the weight is that of a label's positives.
    """

    label_column: str = "labels"
    multi_label: bool = False
    labels: list[str] | None = None
    num_labels: PositiveInt | None = None
    uncertain: Literal["ignore", "zero", "one"] = "ignore"
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None

    @model_validator(mode="after")
    def _labels_are_named_or_counted(self) -> "ClassificationConfig":
        if self.labels is not None and self.num_labels is not None:
            raise ValueError("num_labels: got it beside classification.labels, expected one of them")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels: got {self.labels}, expected each name once")
        return self


class RetrievalConfig(Section):
    """How images and texts are ranked and judged.

    Attributes:
        relevance: What is right: an image that stands with an equal text in any row (`every`), or only that of the
            text's own row (`published`).
        rerank: Find so many of the nearest by the contrastive head and rank them by the matching head, what is not
            among them counting as not found. 0 ranks everything by the contrastive head alone. `null`
            scores every pair by the matching head, as published. That one needs a matrix of all texts and images.
        max_rows: Rows of a split that are ranked, evenly spaced; `null` for all.
    """

    relevance: Literal["every", "published"] = "every"
    rerank: NonNegativeInt | None = None
    max_rows: PositiveInt | None = None


class ProblemsConfig(Section):
    """The problems of an image, such as findings, that linear probes of a latent model look for.

    Attributes:
        column: Column with a list of names, or one name, in each row; of a null nothing is known.
        num_labels: So many of the most frequent names in the training split, "normal" among them if it is one.
    """

    column: str = "labels"
    num_labels: PositiveInt = 11


class GenerationConfig(Section):
    """How the latent head is trained on columns of the prepared data, which `model.overrides.latent` names.

    Attributes:
        missing_rate: Share of the modalities that training is not shown, drawn anew at every visit of a sample; never
            a sample's last one.
        prior_components: Gaussians of the prior that is fitted on the aggregated posterior at the end and kept with
            the model; 0 for none.
        importance_samples: Numbers K of samples of which `m3ae evaluate` estimates log p(x); `[]` for no estimate.
        importance_rows: Rows of which it does, evenly spaced.
        temperature: Factor on the standard deviation of what `m3ae evaluate` draws for coherence, diversity and
            distances; likelihoods and bounds do not know it.
        text_rows: Rows for which `m3ae evaluate` generates the texts given each subset that lacks them, evenly spaced
            among those that have every modality; 0 for none.
        text_options: How an autoregressive text decoder writes them: options of transformers' `generate`, such as
            `{num_beams: 4}`.
        problems: What `m3ae evaluate` probes the latents of every subset for beside the model's labels, and looks
            for in generated texts; `null` for nothing.
    """

    missing_rate: float = Field(default=0.0, ge=0, le=1)
    prior_components: NonNegativeInt = 30
    importance_samples: list[PositiveInt] = Field(default=[1, 10, 100, 1000])
    importance_rows: PositiveInt = 100
    temperature: float = Field(default=1.0, ge=0)
    text_rows: NonNegativeInt = 100
    text_options: dict[str, Any] = Field(default={})
    problems: ProblemsConfig | None = None

    @field_validator("text_options")
    @classmethod
    def _options_of_generate_exist(cls, options: dict[str, Any]) -> dict[str, Any]:
        from transformers import GenerationConfig

        if problems := unknown_keys(options, GenerationConfig().to_dict()):
            raise OptionsError(problems)
        return options
