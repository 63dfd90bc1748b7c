"""Every shipped config parses, builds, and says what it needs."""

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest
import torch

from m3ae import (
    M3AEConfig,
    M3AEForClassification,
    M3AEForGeneration,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForReportGeneration,
)
from m3ae.options import dotted_keys
from m3ae.tasks import PRETRAINING_TASKS, TASKS, task_class
from m3ae.tasks.models import check_text_length
from m3ae.training.config import RUNS, load_config

from .test_structure import PACKAGE, TREES, imports

ROOT = Path(__file__).parents[1]
FOLDERS = ("pretrain", "finetune")
CONFIGS = sorted(path for folder in FOLDERS for path in (ROOT / "configs" / folder).glob("*.yaml"))
MODELS = {
    "pretraining": M3AEForPreTraining,
    "question_answering": M3AEForQuestionAnswering,
    "classification": M3AEForClassification,
    "retrieval": M3AEForImageTextRetrieval,
    "report_generation": M3AEForReportGeneration,
    "generation": M3AEForGeneration,
}
# Epochs and batch of the published recipe, the multiplier of its head, and its number of training samples.
PUBLISHED = {
    "vqa_rad": (50, 64, 50, 2755),  # 3,064 without the validation that we carve out
    "slake": (15, 32, 50, 4919),
    "vqa_med_2019": (10, 32, 50, 9600),
    "melinda": (20, 16, 10, 4320),
    "roco_retrieval": (10, 256, 5, 65420),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path) -> None:
    config = load_config(path)
    overrides = config.overrides
    overrides["text_config"] = {"vocab_size": config.tokenizer.vocab_size} | overrides.get("text_config", {})
    model_config = M3AEConfig.named(config.model.size, **overrides)
    check_text_length(model_config, config.data.max_text_length)
    with torch.device("meta"):
        model = MODELS[config.task](model_config)
    groups = {model.parameter_group(name) for name, _ in model.named_parameters()}
    whole = {group.partition(".")[0] for group in groups}  # an encoder is a group within the encoders
    assert set(config.optimizer.lr_multipliers) <= groups | whole
    assert whole == {"encoder", "fusion", "heads"} or config.task == "generation"  # which builds what it uses


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_opens_with_command_hardware_time_and_expectation(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    folder = path.parent.name
    is_unique = [other.stem for other in CONFIGS].count(path.stem) == 1
    name = path.stem if is_unique else f"{folder}/{path.stem}"
    assert f" m3ae train {name}\n" in text or f" m3ae train {name} model=" in text
    assert (load_config(path).task in PRETRAINING_TASKS) == (folder == "pretrain")
    for word in ("hardware", "time", "expect"):
        assert f"# {word} " in text


@cache
def modules() -> dict[str, tuple[set[str], set[str]]]:
    """Return, by file of the package, the modules that it imports and the attributes that it reads."""
    return {
        file: (set(imports(tree)), {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)})
        for file, tree in TREES.items()
    }


@pytest.mark.parametrize("task", TASKS)
def test_a_config_has_no_key_that_its_task_ignores(task: str) -> None:
    """Every key that `--print-config` shows is read by the task, by the loop or by a module that they use."""
    task_file = Path(inspect.getfile(task_class(task))).relative_to(PACKAGE).as_posix()
    waiting, reached = [task_file, "training/loop.py"], set()
    while waiting:
        file = waiting.pop()
        if file not in reached and file in modules():
            reached.add(file)
            waiting += [module.removeprefix("m3ae.").replace(".", "/") + ".py" for module in modules()[file][0]]
    read = set().union(*(modules()[file][1] for file in reached - {"training/config.py"}))
    assert {key for key in dotted_keys(RUNS[task]) if key.rpartition(".")[2] not in read} == set()


def test_there_is_a_config_for_every_task() -> None:
    assert {load_config(path).task for path in CONFIGS} == MODELS.keys() == TASKS.keys()


def test_base_is_the_published_recipe() -> None:
    config = load_config(ROOT / "configs" / "pretrain" / "base.yaml")
    optimizer, training = config.optimizer, config.training
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.warmup) == (1e-5, (0.9, 0.98), 0.01, 0.1)
    assert optimizer.lr_multipliers == {"heads": 5, "fusion": 5} and training.max_steps == 100_000
    assert 8 * training.batch_size * training.gradient_accumulation_steps == 256


@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_tuning_follows_the_published_recipes(name: str) -> None:
    config = load_config(ROOT / "configs" / "finetune" / f"{name}.yaml")
    optimizer, training = config.optimizer, config.training
    epochs, batch, head, samples = PUBLISHED[name]
    assert (optimizer.lr, optimizer.weight_decay, optimizer.warmup, optimizer.schedule) == (5e-6, 0.01, 0.1, "linear")
    assert optimizer.lr_multipliers == {"heads": head, "fusion": 5} and config.finetuning.image_size == 384
    processes = 8 if name == "roco_retrieval" else 1
    assert processes * training.batch_size * training.gradient_accumulation_steps == batch
    assert training.max_steps == pytest.approx(epochs * samples / batch, abs=1)
