"""The typed configuration of a run: one YAML file plus dotted overrides, checked before anything is loaded.

An unknown key, a value of the wrong type or a value out of range stops the run with one message that lists every
problem, so that a typo never trains for ten hours.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import model_validator

from m3ae.options import OptionsError, check_options, describe, dotted_keys
from m3ae.training.model_options import check_new_model
from m3ae.training.sections import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PairDataConfig,
    PreTrainingDataConfig,
    Section,
    TokenizerConfig,
    TrainingConfig,
)
from m3ae.training.task_config import (
    ClassificationConfig,
    FineTuningConfig,
    FineTuningEvaluationConfig,
    GenerationConfig,
    PreTrainingEvaluationConfig,
    QuestionAnsweringConfig,
    RetrievalConfig,
)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists all its problems, one a line."""


class RunConfig(Section):
    """What decides a run of any task; written to `output_dir/config.yaml`."""

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
            check_new_model(self.model.size, self.overrides)
        return self


class PreTrainingRun(RunConfig):
    """Pre-training."""

    task: Literal["pretraining"]
    data: PreTrainingDataConfig
    evaluation: PreTrainingEvaluationConfig = PreTrainingEvaluationConfig()


class GenerationRun(RunConfig):
    """Training of the latent head; its modalities, in `model.overrides.latent`, are columns of the data."""

    task: Literal["generation"]
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
            raise ValueError("question_answering.answers: got checkpoint without model.path, which names it")
        return self


class ClassificationRun(FineTuningRun):
    """Fine-tuning for classes."""

    task: Literal["classification"]
    classification: ClassificationConfig = ClassificationConfig()


class RetrievalRun(FineTuningRun):
    """Fine-tuning for images and texts that find each other."""

    task: Literal["retrieval"]
    retrieval: RetrievalConfig = RetrievalConfig()

    @model_validator(mode="after")
    def _images_and_texts_are_named(self) -> Self:
        if not self.data.image_columns or self.data.text_column is None:
            raise ValueError("data: retrieval needs image_columns and a text_column, got none of one of them")
        if self.training.batch_size < 2:
            raise ValueError("training.batch_size: got 1, expected at least 2: the pairs of a batch are told apart")
        return self


RUNS: dict[str, type[RunConfig]] = {
    "pretraining": PreTrainingRun,
    "question_answering": QuestionAnsweringRun,
    "classification": ClassificationRun,
    "retrieval": RetrievalRun,
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
        _assign(values, override)
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
            raise ConfigError(f"override {override!r}: {parent} is {describe(values)}, which has no keys of its own")
    values[name] = parse_yaml(text, source=f"override {override!r}")
