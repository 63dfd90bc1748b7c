"""Sections of the configuration that every task has."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from m3ae.options import STRICT, OptionsError
from m3ae.training.model_options import check_overrides

Decay = Annotated[float, Field(ge=0, lt=1)]
LEARNING_RATE_GROUP = re.compile(r"encoder(\.image|\.text)?|fusion|heads(\.decoders(\.[^.]+)?)?")


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, and values do not change."""

    model_config = STRICT


class PreparedSetConfig(Section):
    """A prepared set.

    Attributes:
        path: Folder of prepared shards.
        prepare: Source prepared into `path` on first use, with its options: `{name: phantom, num_studies: 2000}`.
    """

    path: Path
    prepare: dict[str, Any] | None = None

    @field_validator("prepare")
    @classmethod
    def _prepare_names_options_of_a_source(cls, prepare: dict[str, Any] | None) -> dict[str, Any] | None:
        from m3ae.data.prepare import check_recipe  # imports what reads and writes shards

        if prepare is not None:
            check_recipe(prepare)
        return prepare


class PairSetConfig(PreparedSetConfig):
    """A prepared set of images and texts.

    Attributes:
        image_columns: Columns an image is drawn from; one of those present in a sample is chosen at each visit.
        text_column: Column of the text or texts; several columns, such as `[question, answer]`, are joined by a blank;
            `null` for image-only data.
    """

    image_columns: list[str] = ["image"]
    text_column: str | list[str] | None = "text"

    @model_validator(mode="after")
    def _something_is_read(self) -> "PairSetConfig":
        if not (self.image_columns or self.text_column):
            raise ValueError("image_columns: got none and no text_column, expected at least one of them")
        return self


class WeightedSetConfig(PreparedSetConfig):
    """A prepared set, and how often training visits it.

    Attributes:
        weight: Visits of each row per epoch: 1 is every row once, 0.5 every row in every second epoch, 2 twice.
    """

    weight: PositiveFloat = 1.0


class WeightedPairSetConfig(PairSetConfig, WeightedSetConfig):
    """A prepared set of images and texts, and how often training visits it."""


class DataConfig(PreparedSetConfig):
    """Where the samples come from and how they are shaped; the set at `path` is also the one that is evaluated.

    Attributes:
        held_out: Further prepared folders whose validation and test images must not be trained on. The run refuses to
            start if one of them, or of these splits of the sets that are trained on, is a training image, too.
        allow_test_rows: Train on such images all the same.
        max_text_length: Tokens a text is cut to, special tokens included.
        augmentation: What training changes about an image: `crop` only cuts out and resizes, `radiograph` also turns,
            shifts, and varies brightness, contrast and gamma a little; `affine` turns, shifts and scales, for
            handwriting and the like. Nothing is ever mirrored.
        num_workers: Processes that load samples beside the training process.
        max_validation_samples: Validation samples used; `null` for all.
    """

    held_out: list[Path] = []
    allow_test_rows: bool = False
    max_text_length: PositiveInt = 64
    augmentation: Literal["crop", "radiograph", "affine"] = "crop"
    num_workers: NonNegativeInt = 0
    max_validation_samples: PositiveInt | None = None

    @property
    def sets(self) -> Sequence[PreparedSetConfig]:
        """The sets that are trained on, the main one first."""
        return [self]

    @property
    def batches_formed_together(self) -> int:
        """Number of batches that are formed of one window of samples."""
        return 1


class PairDataConfig(DataConfig, PairSetConfig):
    """Images and texts.

    Attributes:
        crop_scale: Range of the area of the random resized crop in training, published as [0.9, 1]; `[1, 1]` is the
            published centre crop.
        bucket_batches: Form this many batches at a time among their samples sorted by length; 0 for never.
        missing_rate: Share of the modalities, views and text, that are hidden from training, drawn anew at every visit
            of a sample; the last one of a sample is never hidden.
        views: Whether the model reads `one` of the image columns at a time, or `all` of them as its views; a sample
            may lack any of them.
    """

    missing_rate: float = Field(default=0.0, ge=0, le=1)
    views: Literal["one", "all"] = "one"
    crop_scale: tuple[float, float] = (1.0, 1.0)
    bucket_batches: NonNegativeInt = 0

    @model_validator(mode="after")
    def _crop_scale_is_a_range_of_areas(self) -> "PairDataConfig":
        smallest, largest = self.crop_scale
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"crop_scale: got {list(self.crop_scale)}, expected 0 < smallest <= largest <= 1")
        return self

    @property
    def view_names(self) -> list[str]:
        """Names of the model's views; none if it reads one image at a time."""
        return self.image_columns if self.views == "all" else []

    @property
    def batches_formed_together(self) -> int:
        """Number of batches that are formed of one window of samples."""
        return max(1, self.bucket_batches)


class MixedDataConfig(DataConfig, WeightedSetConfig):
    """Samples of several sets, read by index or as a stream.

    Attributes:
        also: Further sets to train on.
        leave_out_test_rows: Leave out the training rows for which the run would refuse to start, see `held_out`.
        streaming: Read the shards as a stream, without a copy in the cache, instead of by index.
        max_unreadable_shards: Shards of a stream that each loading process may leave out when they cannot be read.
    """

    also: Sequence[WeightedSetConfig] = []
    leave_out_test_rows: bool = False
    streaming: bool = False
    max_unreadable_shards: NonNegativeInt = 0

    @model_validator(mode="after")
    def _test_rows_are_left_out_or_allowed(self) -> "MixedDataConfig":
        if self.leave_out_test_rows and self.allow_test_rows:
            raise ValueError("leave_out_test_rows: got true beside allow_test_rows=true, expected one of them")
        return self

    @model_validator(mode="after")
    def _only_a_stream_leaves_shards_out(self) -> "MixedDataConfig":
        if self.max_unreadable_shards and not self.streaming:
            raise ValueError(
                f"max_unreadable_shards: got {self.max_unreadable_shards} without data.streaming, which alone leaves "
                "shards out; set data.streaming=true, or leave it out"
            )
        return self

    @property
    def sets(self) -> Sequence[WeightedSetConfig]:
        """The sets that are trained on, the main one first."""
        return [self, *self.also]


class PreTrainingDataConfig(PairDataConfig, MixedDataConfig, WeightedPairSetConfig):
    """Images and texts of several sets.

    Attributes:
        also: Further sets to train on.
        texts: Whether a visit draws `one` text of a row, or an epoch visits a row with `all` its texts in turn.
    """

    also: Sequence[WeightedPairSetConfig] = []
    texts: Literal["one", "all"] = "one"

    @property
    def sets(self) -> Sequence[WeightedPairSetConfig]:
        """The sets that are trained on, the main one first."""
        return [self, *self.also]


class TokenizerConfig(Section):
    """The tokenizer: `path` (hub name or folder), or byte-level BPE of `vocab_size` trained on the training texts."""

    path: str | None = None
    vocab_size: int = Field(default=4096, ge=261)  # 256 bytes and 5 special tokens


class InitConfig(Section):
    """Published encoders that a new model starts from; `null` for weights drawn at random.

    Attributes:
        image_encoder: Name of a timm model such as `vit_base_patch16_clip_224.openai`; a folder or `.safetensors` file
            that timm has saved; a folder or hub name of transformers (ViT, ViT-MAE, DINOv2, DINOv3, CLIP, SigLIP) or
            of open_clip; a file of OpenAI's CLIP or of MAE. Its sizes are the model's; `overrides.image_config` may
            take another image size, or fewer blocks.
        text_encoder: Folder or hub name of a bidirectional text encoder of transformers, such as BERT, RoBERTa or
            ModernBERT; its sizes are the model's, and its tokenizer is used if `tokenizer.path` is unset.
    """

    image_encoder: str | None = None
    text_encoder: str | None = None


class ModelConfig(Section):
    """The model: a named `size` with nested `overrides`, or a saved model folder in `path` to continue from.

    Attributes:
        size: Named size of a new model.
        path: Hub name or folder of a saved model; on the command line, `model=PATH` sets it.
        from_scratch: Draw the weights of the saved model anew: what a pre-trained model is compared with.
        overrides: Options of `M3AEConfig` that replace those of the size or of the saved model; an `image_size` other
            than the saved one interpolates the position table.
        init: Where the encoders of a new model start from.
    """

    size: Literal["tiny", "mini", "small", "base"] = "small"
    path: str | None = None
    from_scratch: bool = False
    overrides: dict[str, Any] = {}
    init: InitConfig = InitConfig()

    @model_validator(mode="after")
    def _starts_from_one_thing(self) -> "ModelConfig":
        if self.path is not None and self.init != InitConfig():
            raise ValueError("init: got sources beside model.path, expected one of them: a saved model has encoders")
        if self.from_scratch and self.path is None:
            raise ValueError("from_scratch: got true without model.path, which names the model to draw anew")
        text = self.overrides.get("text_config")
        text = text if isinstance(text, dict) else {}
        read = self.path is not None or self.init.text_encoder is not None
        check_overrides(self.overrides, text.get("model_type", None if read else "roberta"))
        return self


class OptimizerConfig(Section):
    """AdamW and its schedule.

    Attributes:
        lr: Learning rate after warm-up of parameters without a multiplier.
        betas: Decay rates of the two moments.
        eps: Term added to the denominator.
        weight_decay: Decoupled weight decay; never applied to norms, biases and single vectors.
        lr_multipliers: Factor on `lr` of the groups `encoder`, `fusion` or `heads` of a model's parameters, or of
            some of them: `encoder.image`, `encoder.text`, or `heads.decoders.M`, which decodes modality M from z;
            `heads.decoders` are all of these.
        layer_decay: Further factor on the learning rate, once for each layer of encoder and fusion above a parameter:
            1 in the heads, least in the embeddings (BEiT, MAE); 1 for the same rate in all layers.
        schedule: Course of the learning rate after warm-up.
        warmup: Steps of linear warm-up; below 1, a fraction of `training.max_steps`.
        max_grad_norm: Gradients are scaled down to this norm; `null` for never.
    """

    lr: NonNegativeFloat = 1e-4
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    lr_multipliers: dict[str, NonNegativeFloat] = {"heads": 5.0, "fusion": 5.0}
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: NonNegativeFloat = 0.1
    max_grad_norm: PositiveFloat | None = 1.0

    @field_validator("lr_multipliers")
    @classmethod
    def _multipliers_are_of_groups(cls, multipliers: dict[str, float]) -> dict[str, float]:
        if unknown := [name for name in multipliers if not LEARNING_RATE_GROUP.fullmatch(name)]:
            known = "encoder, encoder.image, encoder.text, fusion, heads, heads.decoders or heads.decoders.MODALITY"
            raise OptionsError([f"{name}: unknown group; expected {known}" for name in unknown])
        return multipliers


class TrainingConfig(Section):
    """The loop. Every count of steps is a count of optimiser steps.

    Attributes:
        max_steps: Length of the run.
        batch_size: Samples of one micro-batch of one process.
        gradient_accumulation_steps: Micro-batches of one process that make one optimiser step.
        contrast_over: Samples that contrast compares: those of a `micro_batch`, or all of an optimiser `step`, whose
            encoders then run twice in the memory of a micro-batch (GradCache).
        ema_decay: Decay of an average of the trained weights over the steps, such as 0.999; at step n at most
            (1 + n) / (10 + n). The average is what is validated, measured, and saved in `best/` and `model/`, while
            checkpoints hold the weights, too. `null` for none.
        mixed_precision: Autocast type; parameters stay in float32. `auto` is bf16 where the device has units for it
            that are faster than float32, else `no`; a resumed run keeps what it began with.
        seed: Decides sample order, augmentation, masking and dropout.
        validate_every: Steps between validations; one more comes at the end. `null` for none: no best model is kept,
            and fine-tuning measures the last one: for a last run on all labelled rows, with settings chosen before.
        checkpoint_every: Steps between checkpoints; one more comes at the end.
        keep_checkpoints: How many of the last checkpoints stay.
        log_every: Steps between lines of `metrics.jsonl`.
        max_skipped_steps: Non-finite steps in a row that stop the run.
        max_hours: Hours after which training stops with a checkpoint and the exit status 75, to be resumed; `null` for
            no limit.
        max_step_minutes: Minutes after which a step has hung: the run ends and names the process that the others wait
            for; `null` for the limit of the communication library, which names none.
        halve_on_out_of_memory: Go on with half the micro-batch and twice the accumulation when one does not fit, in a
            run of one process; losses over the pairs of a micro-batch then have fewer of them.
        expected_step_seconds: What a step takes on the hardware that the config's header names; a run whose steps take
            far longer says so.
        compile: Whether `torch.compile` is applied to the model: minutes at the start, then, on a CPU, a tenth less
            for each step.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        tracker: Where metrics go besides `metrics.jsonl`; `mlflow` is the server or folder of `MLFLOW_TRACKING_URI`.
        best_metric: Metric that chooses the model kept in `best/`.
        best_mode: Whether a lower (`min`) or a higher (`max`) value of it is better.
    """

    max_steps: PositiveInt
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt = 1
    contrast_over: Literal["micro_batch", "step"] = "micro_batch"
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    validate_every: PositiveInt | None = 500
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    max_skipped_steps: PositiveInt = 10
    max_hours: PositiveFloat | None = None
    max_step_minutes: PositiveFloat | None = None
    halve_on_out_of_memory: bool = False
    expected_step_seconds: PositiveFloat | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    tracker: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    best_metric: str = Field(default="validation/loss", pattern="^validation/")
    best_mode: Literal["min", "max"] = "min"

    @model_validator(mode="after")
    def _a_step_has_several_micro_batches(self) -> "TrainingConfig":
        if self.contrast_over == "step" and self.gradient_accumulation_steps == 1:
            raise ValueError("contrast_over: got step with gradient_accumulation_steps=1, expected more micro-batches")
        return self


class EvaluationConfig(Section):
    """What is measured beside the losses.

    Attributes:
        batch_size: Samples at once in one process; `null` for `training.batch_size`.
    """

    batch_size: PositiveInt | None = None
