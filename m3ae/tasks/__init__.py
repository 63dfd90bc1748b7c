"""Tasks of the training loop: each is a model with its samples, its metrics and the files that it writes."""

from importlib import import_module
from typing import Any

TASKS = {
    "pretraining": "m3ae.tasks.pretraining:PreTraining",
    "question_answering": "m3ae.tasks.question_answering:QuestionAnswering",
    "classification": "m3ae.tasks.classification:Classification",
    "retrieval": "m3ae.tasks.retrieval:Retrieval",
    "report_generation": "m3ae.tasks.report_generation:ReportGeneration",
    "generation": "m3ae.tasks.generation:Generation",
}

PRETRAINING_TASKS = ("pretraining", "generation")  # those of `m3ae pretrain`; the others fine-tune


def task_class(name: str) -> Any:
    """Import the class of a task; `task_class(name).from_config(config)` builds it.

    Raises:
        ValueError: There is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
