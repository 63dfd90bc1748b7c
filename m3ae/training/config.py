"""The configuration of a run: one YAML file plus dotted overrides, checked before anything is loaded.

An unknown key, a value of the wrong type or a value out of range stops the run with one message that lists every
problem, so that a typo never trains for ten hours. A run's sections depend on its task.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from m3ae.options import (
    ConfigError,
    OptionsError,
    assign,
    check_options,
    describe,
    dotted_keys,
    named,
    parse_yaml,
)
from m3ae.training.finetuning_sections import (
    ClassificationConfig,
    FineTuningConfig,
    FineTuningEvaluationConfig,
    GenerateOptions,
    QuestionAnsweringConfig,
    ReportGenerationConfig,
    RetrievalConfig,
)
from m3ae.training.sections import (
    DataConfig,
    EvaluationConfig,
    MixedDataConfig,
    ModelConfig,
    OptimizerConfig,
    PairDataConfig,
    PreTrainingDataConfig,
    Section,
    TokenizerConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """All settings of a run, which are written to `output_dir/config.yaml`."""

    task: str
    output_dir: Path
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def overrides(self) -> dict[str, Any]:
        """Options of the model's configuration that the run replaces."""
        views = self.data.view_names if isinstance(self.data, PairDataConfig) else []
        return dict(self.model.overrides) | ({"views": views} if views else {})

    @model_validator(mode="after")
    def _warmup_fits_into_the_run(self) -> Self:
        if self.optimizer.warmup > self.training.max_steps:
            raise ValueError(
                f"optimizer.warmup: got {self.optimizer.warmup:g} steps, expected at most training.max_steps "
                f"({self.training.max_steps})"
            )
        return self

    @model_validator(mode="after")
    def _a_new_model_can_be_built(self) -> Self:
        if self.model.path is None and self.model.init.text_encoder is None:
            from m3ae.models.configuration import M3AEConfig

            with named("model.overrides: "):
                M3AEConfig.named(self.model.size, **self.overrides)
        return self


class ProblemsConfig(Section):
    """The problems of an image, such as findings, that linear probes of a latent model look for.

    Attributes:
        column: Column with a list of names, or one name, in each row; a null means that nothing is known.
        num_labels: Number of names that count, the most frequent of the training split, "normal" if it is one of them.
    """

    column: str = "labels"
    num_labels: PositiveInt = 11


class LatentEvaluationConfig(Section):
    """What `m3ae evaluate` measures of a latent head.

    Attributes:
        importance_samples: Numbers K of samples from which log p(x) is estimated; `[]` for no estimate.
        importance_rows: Number of rows, evenly spaced, for this estimate.
        temperature: Factor on the standard deviation of what is drawn for coherence, diversity and distances;
            likelihoods and bounds do not know it.
        text_rows: Number of complete rows, evenly spaced, for which the texts are generated from each subset that
            lacks them; 0 for none.
        text_options: Options of transformers' `generate` for an autoregressive text decoder, such as `{num_beams: 4}`.
        problems: Problems that the latents of every subset are probed for beside the model's labels, and that are
            looked for in generated texts; `null` for none.
    """

    importance_samples: list[PositiveInt] = Field(default=[1, 10, 100, 1000])
    importance_rows: PositiveInt = 100
    temperature: float = Field(default=1.0, ge=0)
    text_rows: NonNegativeInt = 100
    text_options: GenerateOptions = Field(default={})
    problems: ProblemsConfig | None = None


class PreTrainingEvaluationConfig(EvaluationConfig):
    """What pre-training measures beside the losses.

    Attributes:
        mask_draws: Number of masks of each sample in the final report. A small difference between the sample's image
            and a shuffled one needs many.
        retrieval_pairs: Pairs ranked against each other in the final report; 0 for no retrieval.
        word_groups: Words whose share of correct fillings is reported, by name of the group; case does not matter.
        latent: What `m3ae evaluate` measures of the latent head, if the model has one.
    """

    mask_draws: PositiveInt = 1
    retrieval_pairs: NonNegativeInt = 100
    word_groups: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(default={})
    latent: LatentEvaluationConfig = LatentEvaluationConfig()


class PreTrainingRun(RunConfig):
    """Pre-training."""

    task: Literal["pretraining"]
    data: PreTrainingDataConfig
    evaluation: PreTrainingEvaluationConfig = PreTrainingEvaluationConfig()


class GenerationConfig(LatentEvaluationConfig):
    """How the latent head is trained on columns of the prepared data, which `model.overrides.latent` names.

    Attributes:
        missing_rate: Share of the modalities that are hidden from training, drawn anew at every visit of a sample;
            the last one of a sample is never hidden. With the objective `cvae`, only its condition is hidden.
        prior_components: Gaussians of the prior that is fitted on the aggregated posterior at the end and kept with
            the model; 0 for none.
        prior_kind: Kind of that prior: a `mixture` of Gaussians, or a `flow` if `prior_components` is not 0.
    """

    missing_rate: float = Field(default=0.0, ge=0, le=1)
    prior_components: NonNegativeInt = 30
    prior_kind: Literal["mixture", "flow"] = "mixture"


class GenerationRun(RunConfig):
    """Training of the latent head; its modalities, in `model.overrides.latent`, are columns of the data."""

    task: Literal["generation"]
    data: MixedDataConfig
    generation: GenerationConfig = GenerationConfig()

    @model_validator(mode="after")
    def _a_new_model_has_a_latent_head(self) -> Self:
        if self.model.path is None and not self.overrides.get("latent"):
            raise ValueError("model.overrides.latent: missing; expected the options of the latent head")
        return self


class FineTuningRun(RunConfig):
    """Fine-tuning for any task."""

    data: PairDataConfig
    evaluation: FineTuningEvaluationConfig = FineTuningEvaluationConfig()
    finetuning: FineTuningConfig = FineTuningConfig()

    @property
    def overrides(self) -> dict[str, Any]:
        """Options of the model's configuration that the run replaces."""
        overrides = super().overrides
        if self.finetuning.image_size is not None:
            size = {"image_size": self.finetuning.image_size}
            overrides["image_config"] = (overrides.get("image_config") or {}) | size
        return overrides


class QuestionAnsweringRun(FineTuningRun):
    """Fine-tuning for questions about images."""

    task: Literal["question_answering"]
    question_answering: QuestionAnsweringConfig = QuestionAnsweringConfig()

    @model_validator(mode="after")
    def _questions_and_answers_are_named(self) -> Self:
        if self.data.text_column is None:
            raise ValueError("data.text_column: got null, expected the column of the questions, such as question")
        if self.question_answering.answers == "checkpoint" and self.model.path is None:
            raise ValueError("question_answering.answers: got checkpoint without model.path, the checkpoint's folder")
        return self


class ClassificationRun(FineTuningRun):
    """Fine-tuning for classes."""

    task: Literal["classification"]
    classification: ClassificationConfig = ClassificationConfig()


class RetrievalRun(FineTuningRun):
    """Fine-tuning for the retrieval of images by texts and of texts by images."""

    task: Literal["retrieval"]
    retrieval: RetrievalConfig = RetrievalConfig()

    @model_validator(mode="after")
    def _images_and_texts_are_named(self) -> Self:
        if not self.data.image_columns or self.data.text_column is None:
            raise ValueError("data: retrieval needs image_columns and a text_column, got only one of them")
        if self.training.batch_size < 2:
            raise ValueError("training.batch_size: got 1, expected at least 2: the pairs of a batch are told apart")
        return self


class ReportGenerationRun(FineTuningRun):
    """Fine-tuning for reports on images."""

    task: Literal["report_generation"]
    report_generation: ReportGenerationConfig = ReportGenerationConfig()

    @model_validator(mode="after")
    def _the_report_is_not_read(self) -> Self:
        read = self.data.text_column
        if self.report_generation.report_column in ([read] if isinstance(read, str) else read or []):
            raise ValueError(
                f"data.text_column: got {read}, the report that is to be written; expected null, or a column of "
                "further texts, such as the indication"
            )
        return self


RUNS: dict[str, type[RunConfig]] = {
    "pretraining": PreTrainingRun,
    "question_answering": QuestionAnsweringRun,
    "classification": ClassificationRun,
    "retrieval": RetrievalRun,
    "report_generation": ReportGenerationRun,
    "generation": GenerationRun,
}


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
            f"{path}: got {describe(values)}, expected a mapping with keys {list(RunConfig.model_fields)}"
        )
    for override in overrides:
        assign(values, override)
    return make_config(values, source=str(path))


def make_config(values: Mapping[str, Any], source: str = "configuration") -> RunConfig:
    """Return the configuration of the task that the values name.

    Args:
        values: Sections and options, as a YAML file has them.
        source: Names them in messages.

    Raises:
        ConfigError: A key is unknown or missing, or a value has the wrong type or range.
    """
    task = values.get("task")
    try:
        if not isinstance(task, str) or task not in RUNS:
            raise OptionsError([f"task: got {describe(task)}, expected one of {', '.join(RUNS)}"])
        return check_options(RUNS[task], values, partial(_other_tasks, task))
    except OptionsError as error:
        raise ConfigError("\n".join([f"{source}:", *(f"  {problem}" for problem in error.problems)])) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}; an alias must not stand inside what it names") from None


def dump_config(config: RunConfig) -> str:
    """Return the configuration, defaults included, as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _other_tasks(task: str, key: str) -> str:
    """Say which tasks have a key that the run's task has not."""
    others = [other for other, run in RUNS.items() if key in dotted_keys(run)]
    return f"it is an option of {', '.join(others)}, not of {task}: leave it out" if others else ""
