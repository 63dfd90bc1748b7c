"""The typed configuration of a run: one YAML file plus dotted overrides, checked before anything is loaded.

An unknown key, a value of the wrong type or a value out of range stops the run with one message that lists every
problem, so that a typo never trains for ten hours.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from m3ae.training.task_config import (
    STRICT,
    ClassificationConfig,
    FineTuningConfig,
    GenerationConfig,
    QuestionAnsweringConfig,
    RetrievalConfig,
)

TaskName = Literal["pretraining", "question_answering", "classification", "retrieval", "generation"]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists all its problems, one a line."""


class _Section(BaseModel):
    model_config = STRICT


class DataSetConfig(_Section):
    """One prepared set and how it is used in training.

    Attributes:
        path: Folder of prepared shards.
        prepare: Source prepared into `path` on first use, with its options: `{name: phantom, num_studies: 2000}`.
        image_columns: Columns an image is drawn from; one of those present in a sample is chosen at each visit.
        text_column: Column of the text or texts; several columns, such as `[question, answer]`, are joined by a blank;
            `null` for image-only data.
        weight: Visits of each row per epoch: 1 is every row once, 0.5 every row in every second epoch, 2 twice.
    """

    path: Path
    prepare: dict[str, Any] | None = None
    image_columns: list[str] = ["image"]
    text_column: str | list[str] | None = "text"
    weight: PositiveFloat = 1.0


class DataConfig(DataSetConfig):
    """Where the samples come from and how they are shaped; the set at `path` is also the one that is evaluated.

    Attributes:
        also: Further sets to train on.
        held_out: Further prepared folders whose validation and test images must not be trained on. The run refuses to
            start if one of them, or of these splits of the sets that are trained on, is a training image, too.
        allow_test_rows: Train on such images all the same.
        texts: Whether a visit draws `one` text of a row, or an epoch visits a row with `all` its texts in turn.
        max_text_length: Tokens a text is cut to, special tokens included.
        augmentation: What training changes about an image: `crop` only cuts out and resizes, `radiograph` also turns,
            shifts, and varies brightness, contrast and gamma a little; `affine` turns, shifts and scales, for
            handwriting and the like. Nothing is ever mirrored.
        crop_scale: Range of the area of the random resized crop in training, published as [0.9, 1]; `[1, 1]` is the
            published centre crop.
        streaming: Read the shards as a stream, without a copy in the cache, instead of by index.
        max_unreadable_shards: Shards of a stream that each loading process may leave out when they cannot be read.
        bucket_batches: Form this many batches at a time among their samples sorted by length; 0 for never.
        num_workers: Processes that load samples beside the training process.
        max_validation_samples: Validation samples used; `null` for all.
    """

    also: list[DataSetConfig] = []
    held_out: list[Path] = []
    allow_test_rows: bool = False
    texts: Literal["one", "all"] = "one"
    max_text_length: PositiveInt = 64
    augmentation: Literal["crop", "radiograph", "affine"] = "crop"
    crop_scale: tuple[float, float] = (1.0, 1.0)
    streaming: bool = False
    max_unreadable_shards: NonNegativeInt = 0
    bucket_batches: NonNegativeInt = 0
    num_workers: NonNegativeInt = 0
    max_validation_samples: PositiveInt | None = None

    @model_validator(mode="after")
    def _crop_scale_is_a_range_of_areas(self) -> "DataConfig":
        smallest, largest = self.crop_scale
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"crop_scale: got {list(self.crop_scale)}, expected 0 < smallest <= largest <= 1")
        return self


class TokenizerConfig(_Section):
    """The tokenizer: `path` (hub name or folder), or byte-level BPE of `vocab_size` trained on the training texts."""

    path: str | None = None
    vocab_size: PositiveInt = 4096


class InitConfig(_Section):
    """Published encoders that a new model starts from; `null` for weights drawn at random.

    Attributes:
        image_encoder: Name of a timm model such as `vit_base_patch16_clip_224.openai`; a folder or `.safetensors` file
            that timm has saved; a folder or hub name of a transformers CLIP or ViTMAE; a CLIP file of OpenAI.
        text_encoder: Folder or hub name of a bidirectional text encoder of transformers, such as BERT, RoBERTa or
            ModernBERT; its sizes are the model's, and its tokenizer is used if `tokenizer.path` is unset.
    """

    image_encoder: str | None = None
    text_encoder: str | None = None


class ModelConfig(_Section):
    """The model: a named `size` with nested `overrides`, or a saved model folder in `path` to continue from.

    Attributes:
        size: Named size of a new model.
        path: Hub name or folder of a saved model; on the command line, `model=PATH` sets it.
        from_scratch: Draw the weights of the saved model anew: what a pre-trained model is compared with.
        overrides: Options of `M3AEConfig` that replace those of the size or of the saved model; an `image_size` other
            than the saved one interpolates the position table.
        init: Where the encoders of a new model start from.
    """

    size: Literal["tiny", "small", "base"] = "small"
    path: str | None = None
    from_scratch: bool = False
    overrides: dict[str, Any] = {}
    init: InitConfig = InitConfig()

    @model_validator(mode="after")
    def _starts_from_one_thing(self) -> "ModelConfig":
        if self.path is not None and self.init != InitConfig():
            raise ValueError("init: got it beside model.path, expected one of them: a saved model has its encoders")
        if self.from_scratch and self.path is None:
            raise ValueError("from_scratch: got true without model.path, which names the model to draw anew")
        return self


class OptimizerConfig(_Section):
    """AdamW and its schedule.

    Attributes:
        lr: Learning rate after warm-up of parameters without a multiplier.
        betas: Decay rates of the two moments.
        eps: Term added to the denominator.
        weight_decay: Decoupled weight decay; never applied to norms, biases and single vectors.
        lr_multipliers: Factor on `lr` of the groups `encoder`, `fusion` or `heads` of a model's parameters, or of
            parts of the last: `heads.decoders.M` decodes modality M from z, `heads.decoders` are all of these.
        schedule: Course of the learning rate after warm-up.
        warmup: Steps of linear warm-up; below 1, a fraction of `training.max_steps`.
        max_grad_norm: Gradients are scaled down to this norm; `null` for never.
    """

    lr: NonNegativeFloat = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01
    lr_multipliers: dict[str, NonNegativeFloat] = {"heads": 5.0, "fusion": 5.0}
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: NonNegativeFloat = 0.1
    max_grad_norm: PositiveFloat | None = 1.0


class TrainingConfig(_Section):
    """The loop. Every count of steps is a count of optimiser steps.

    Attributes:
        max_steps: Length of the run.
        batch_size: Samples of one micro-batch of one process.
        gradient_accumulation_steps: Micro-batches of one process that make one optimiser step.
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
        compile: Whether `torch.compile` is applied to the model: minutes at the start, then, on a CPU, a tenth less
            for each step.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        tracker: Where metrics go besides `metrics.jsonl`.
        best_metric: Metric that chooses the model kept in `best/`.
        best_mode: Whether a lower (`min`) or a higher (`max`) value of it is better.
    """

    max_steps: PositiveInt
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt = 1
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    seed: NonNegativeInt = 0
    validate_every: PositiveInt | None = 500
    checkpoint_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 10
    max_skipped_steps: PositiveInt = 10
    max_hours: PositiveFloat | None = None
    max_step_minutes: PositiveFloat | None = None
    halve_on_out_of_memory: bool = False
    compile: bool = False
    gradient_checkpointing: bool = False
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    best_metric: str = Field(default="validation/loss", pattern="^validation/")
    best_mode: Literal["min", "max"] = "min"


class EvaluationConfig(_Section):
    """What is measured beside the losses.

    Attributes:
        batch_size: Samples at once in one process; `null` for `training.batch_size`.
        mask_draws: How often the final report of pre-training hides patches and words of each sample anew: a small
            difference between own and shuffled images needs many.
        retrieval_pairs: Pairs ranked against each other in the final report of pre-training; 0 for no retrieval.
        word_groups: Words whose share of correct fillings pre-training reports, by name of the group.
        controls: Whether results come with what is reached without the image, and without the model.
        resamples: Draws of the bootstrap behind the 95 % intervals of final results; 0 for none.
    """

    batch_size: PositiveInt | None = None
    mask_draws: PositiveInt = 1
    retrieval_pairs: NonNegativeInt = 100
    word_groups: dict[str, list[str]] = {}
    controls: bool = True
    resamples: NonNegativeInt = 1000


class RunConfig(_Section):
    """Everything that decides a run; written to `output_dir/config.yaml`."""

    task: TaskName
    output_dir: Path
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    finetuning: FineTuningConfig = FineTuningConfig()
    question_answering: QuestionAnsweringConfig = QuestionAnsweringConfig()
    classification: ClassificationConfig = ClassificationConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    generation: GenerationConfig = GenerationConfig()

    @model_validator(mode="after")
    def _warmup_fits_into_the_run(self) -> "RunConfig":
        if self.optimizer.warmup > self.training.max_steps:
            raise ValueError(
                f"optimizer.warmup: got {self.optimizer.warmup:g} steps, expected at most training.max_steps "
                f"({self.training.max_steps})"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply dotted overrides.

    Args:
        path: The YAML file.
        overrides: Assignments such as `training.max_steps=10`; the values are read as YAML. `model=PATH` is short for
            `model.path=PATH`.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, a key is unknown or missing, or
            a value has the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}; expected a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    values = parse_yaml(text, source=str(path))
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: got {_describe(values)}, expected a mapping with keys {list(RunConfig.model_fields)}"
        )
    for override in overrides:
        _assign(values, override)
    try:
        # As JSON a list may become a tuple and a string a path; `strict` still refuses "10" or true for a number.
        return RunConfig.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join([f"{path}:", *(f"  {problem}" for problem in problems)])) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}; an alias must not stand inside what it names") from None


def dump_config(config: RunConfig) -> str:
    """Return the configuration, defaults included, as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """The safe loader with the types of JSON and the scalars of YAML 1.2: `1e-4` is a number and `no` is a word."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
    }


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def parse_yaml(text: str, source: str) -> Any:
    """Return what YAML holds, numbers and words as in YAML 1.2; a `ConfigError` names the source."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:  # also for 5,000 digits, or `!!bool x`
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def _assign(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if key == "model" and not text.startswith("{"):
        key = "model.path"
    *sections, name = key.split(".")
    if not separator or not all([*sections, name]):
        raise ConfigError(f"override {override!r}: expected key=value with a dotted key, e.g. training.max_steps=10")
    for depth, section in enumerate(sections, start=1):
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            parent = ".".join(sections[:depth])
            raise ConfigError(f"override {override!r}: {parent} is {_describe(values)}, which has no keys of its own")
    values[name] = parse_yaml(text, source=f"override {override!r}")


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_nearest(key)}"
    if problem["type"] == "missing":
        return f"{key}: missing; expected a value"
    if problem["type"] == "json_invalid":  # all that JSON cannot hold is half a character, "\\ud800"
        return f"not valid text: {problem['ctx']['error']}"
    if problem["type"] == "value_error":
        return ".".join(filter(None, [key, str(problem["ctx"]["error"])]))  # a validator names keys of its section
    expected = problem["msg"].removeprefix("Input should be ")
    return f"{key}: got {_describe(problem['input'])}, expected {expected}"


def _nearest(key: str) -> str:
    section, _, name = re.sub(r"\.\d+\.", ".", key).rpartition(".")
    valid = [candidate.rpartition(".") for candidate in _dotted_keys(RunConfig)]
    names = {candidate[2] for candidate in valid}
    similar = [name] if name in names else difflib.get_close_matches(name, names)
    siblings = [candidate for candidate in valid if candidate[0] == section]
    # A misspelt key of this section is likelier than one of another section, which in turn beats a full list.
    for candidates in (siblings, valid):
        if nearest := ["".join(candidate) for candidate in candidates if candidate[2] in similar]:
            return f"did you mean {' or '.join(nearest)}?"
    return f"expected one of {[''.join(candidate) for candidate in siblings]}"


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in (field.annotation, *get_args(field.annotation)):  # a section, or a list of sections
            if isinstance(section, type) and issubclass(section, BaseModel):
                yield from _dotted_keys(section, f"{prefix}{name}.")


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
