"""Conversion of the published M3AE checkpoints (Chen et al. 2022) into models and hub-format folders, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from m3ae.files import load_json, load_json_object, new_folder, replacing
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.finetuned import M3AEForClassification, M3AEForQuestionAnswering
from m3ae.models.hub import model_card
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.models.retrieval import M3AEForImageTextRetrieval
from m3ae.transfer.checkpoints import CheckpointError, some
from m3ae.transfer.names import convert_name, release_name, why_unused
from m3ae.transfer.released import Released, departures, infer_config, published_settings, read_released
from m3ae.transfer.text_encoders import check_tokenizer, load_tokenizer

TASKS: dict[str, type[M3AEPreTrainedModel]] = {
    "pretraining": M3AEForPreTraining,
    "question_answering": M3AEForQuestionAnswering,
    "classification": M3AEForClassification,
    "retrieval": M3AEForImageTextRetrieval,
}
# The published name of each objective; the head that it trains is called <name>_head.
_PRETRAINING = ("mlm", "mim", "itm")
_TUNED = {"question_answering": "vqa", "classification": "cls", "retrieval": "irtr"}
# Options of an image encoder for which the released format has no parameters.
_VARIANTS = ("class_token", "num_registers", "layer_scale", "gated_mlp", "qk_norm", "qkv_bias", "rope_theta", "resize")
_DATA_SETS = {"vqa_vqa_rad": "vqa_rad", "vqa_slack": "slake", "vqa_medvqa_2019": "vqa_med_2019"}  # published: ours


@dataclass
class Report:
    """The outcome of a conversion, parameter by parameter.

    Attributes:
        model: Name of the class.
        mapped: Names of the parameters taken over, as they are called in the source.
        left_out: Reason → names of the parameters left out on purpose.
        remarks: Remarks for the user.
    """

    model: str
    mapped: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.mapped)} parameters mapped, none unmapped"]
        lines += [f"left out: {len(names)} of {reason} ({some(names)})" for reason, names in self.left_out.items()]
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def convert(
    checkpoint: str | Path,
    output: str | Path,
    task: str | None = None,
    tokenizer: str | None = None,
    answers: str | Path | None = None,
) -> Report:
    """Convert a released checkpoint into a folder with model, processor and model card.

    Args:
        checkpoint: The released file.
        output: A new or an empty folder.
        task: One of `TASKS`; the one that the file was trained for if None.
        tokenizer: Folder or hub name of the tokenizer; without it only the image processor is written.
        answers: File of the answer or class names, see `read_answers`; without it they are LABEL_0, LABEL_1, …. An
            `answers.json` of a prepared folder has to be the published list of the checkpoint's data set.

    Raises:
        CheckpointError: The file cannot be read, has parameters that are not known, lacks some, or lacks that task.
        FileExistsError: The folder holds something already.
        ValueError: Tokenizer or answers do not fit the checkpoint.
    """
    released = read_released(checkpoint)
    model, report = build(released, task, None if answers is None else read_answers(answers))
    if answers is not None and "m3ae" not in released.settings:
        _check_order(Path(answers), released)
    image, text = model.config.image_config, model.config.text_config
    assert isinstance(image, M3AEImageConfig) and isinstance(text, PreTrainedConfig)
    image_processor = M3AEImageProcessor.for_size(image.image_size)
    processor: M3AEImageProcessor | M3AEProcessor = image_processor
    if tokenizer is None:
        advice = "give --tokenizer the folder of the tokenizer that the model was trained with, as a rule"
        if text.model_type == "bert":
            raise ValueError(
                f"{checkpoint} has a BERT, whose special tokens no weight shows: {advice} bert-base-uncased."
            )
        report.remarks.append(
            f"released files hold no tokenizer: only the image processor is written; {advice} roberta-base"
        )
    else:
        loaded = load_tokenizer(tokenizer)
        check_tokenizer(loaded, text)
        loaded.model_max_length = released.settings["config"].get("max_text_len", loaded.model_max_length)
        model.config.mask_token_id = loaded.mask_token_id
        if text.model_type == "bert":
            text.bos_token_id, text.eos_token_id = loaded.cls_token_id, loaded.sep_token_id
        processor = M3AEProcessor(image_processor, loaded)
    origin = f"Converted from `{Path(checkpoint).name}`, a checkpoint in the format of Chen et al. (2022)."
    with new_folder(Path(output)) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        card = model_card(model, Path(output).name, training=origin)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def release(folder: str | Path, output: str | Path) -> Report:
    """Write a saved model in the released format, our configuration beside the published settings.

    Args:
        folder: Folder of one of the classes in `TASKS`.
        output: A new file.

    Raises:
        FileExistsError: There is such a file already.
        ValueError: The folder holds no such model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"No saved M3AE model in {str(folder)!r}: there is no config.json.")
    config = M3AEConfig.from_pretrained(folder)
    classes = {model_class.__name__: model_class for model_class in TASKS.values()}
    architecture = (config.architectures or ["model without a class"])[0]
    if architecture not in classes:
        raise ValueError(f"{folder} holds a {architecture}; the released format has only {', '.join(classes)}.")
    image, text = config.image_config, config.text_config
    assert isinstance(image, M3AEImageConfig) and isinstance(text, PreTrainedConfig)
    if text.model_type not in ("bert", "roberta") or config.num_views > 1:
        raise ValueError(
            f"{folder} has a text encoder of the type {text.model_type} and {config.num_views} views; the released "
            "format has one image and a bert or roberta."
        )
    names, plain = _VARIANTS, M3AEImageConfig()
    if variants := [
        f"{name} {getattr(image, name)}" for name in names if getattr(image, name) != getattr(plain, name)
    ]:
        raise ValueError(f"{folder} has an image encoder with {', '.join(variants)}; the released format has CLIP's.")
    model = classes[architecture].from_pretrained(folder)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        raise FileExistsError(f"{output} exists already: choose another name, or remove it")
    with replacing(output) as temporary:
        torch.save(released_content(model), temporary)
    report = Report(architecture, list(model.state_dict()))
    report.remarks += [f"the published code would compute other numbers: {reason}" for reason in departures(config)]
    if config.itc_weight:
        report.remarks.append("the contrastive head keeps its own names, as the published code has none")
    return report


def read_answers(path: str | Path) -> list[str]:
    """Read the names of answers or classes, in the order of the head's outputs.

    Args:
        path: A text file with one name a line, or JSON: a list, the published `{name: index}`, `{index: name}`, or
            any of these under the key `answers`. An empty line is an empty name.

    Raises:
        ValueError: Something else, or a name that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The answer list {path} is missing.")
    is_json = path.suffix == ".json"
    names = _listed(load_json(path)) if is_json else path.read_text(encoding="utf-8-sig").splitlines()
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"{path} lists {len(names)} names, {len(set(names))} of them different; expected each once, one a line "
            'in a text file, or as JSON: ["yes", "no"] or {"yes": 0, "no": 1}.'
        )
    return names


def build(
    released: Released, task: str | None = None, answers: Sequence[str] | None = None
) -> tuple[M3AEPreTrainedModel, Report]:
    """Build the model that a released checkpoint holds.

    Args:
        released: The checkpoint.
        task: One of `TASKS`; the one that `choose_task` finds if None.
        answers: Names of the answers or classes, in the order of the head's outputs.
    """
    task = choose_task(released, task)
    report = Report(TASKS[task].__name__)
    if others := [name for name in _offered(released) if name != task]:
        report.remarks.append(f"the file can also be converted for {', '.join(others)}")
    state, config = _convert_state(released.state, task, report), infer_config(released)
    _name_labels(config, state, task, answers, report)
    if task == "pretraining" and "m3ae" not in released.settings:
        for loss, weight in released.settings["config"].get("loss_names", {}).items():
            if loss in _PRETRAINING:
                setattr(config, f"{loss}_weight", float(weight))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TASKS[task](config).eval()
    _check_positions(model, state.pop("mim_head.positions", None))
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    model.to(types.pop() if len(types) == 1 else torch.float32)
    _load(model, state, report)
    return model, report


def choose_task(released: Released, wanted: str | None = None) -> str:
    """Return the task that a checkpoint was trained for, going by its heads and by `loss_names` in its settings.

    A file with several fine-tuned heads was pre-trained if it has the heads of pre-training.
    """
    offered = _offered(released)
    if wanted is not None:
        if wanted in offered:
            return wanted
        raise CheckpointError(
            f"The checkpoint has no head for {wanted!r}; it has those for {', '.join(offered) or 'none'}."
        )
    weights = released.settings["config"].get("loss_names", {})
    trained = [task for task, loss in _TUNED.items() if f"{loss}_head" in _heads(released) and weights.get(loss, 1)]
    if len(trained) == 1:
        return trained[0]
    if "pretraining" in offered:
        return "pretraining"
    if not trained:
        raise CheckpointError(f"The checkpoint has no head that loss_names {dict(weights)} trained; choose a task.")
    raise CheckpointError(f"The checkpoint has several fine-tuned heads; choose a task: {', '.join(trained)}.")


def _heads(released: Released) -> set[str]:
    return {head for name in released.state if (head := name.split(".")[0]).endswith("_head")}


def _offered(released: Released) -> list[str]:
    heads = _heads(released)
    offered = ["pretraining"] if heads & {f"{loss}_head" for loss in _PRETRAINING} else []
    offered += [task for task, loss in _TUNED.items() if f"{loss}_head" in heads]
    if "itm_head" in heads and "retrieval" not in offered:
        offered.append("retrieval")  # from row 1 of the matching head, as the published code starts it
    return offered


def released_content(model: M3AEPreTrainedModel) -> dict[str, Any]:
    """Return what the released file of a model holds: weights, published settings, and our configuration."""
    state = {}
    for name, value in model.state_dict().items():
        released = release_name(name)
        assert released is not None, name
        state[released] = value[0, 0] if name.endswith("vit.cls_token") else value
        if name.endswith("vit.pos_embed"):
            state[released] = value[0]
    if isinstance(model, M3AEForPreTraining):
        state["mim_head.decoder_pos_embed"] = model.mim_head.positions
    if isinstance(model, M3AEForImageTextRetrieval):
        state["irtr_head.weight"], state["irtr_head.bias"] = model.itm_head.weight[1:], model.itm_head.bias[1:]
    config = model.config
    if isinstance(model, M3AEForPreTraining):
        losses = {loss: getattr(config, f"{loss}_weight") for loss in _PRETRAINING}
    else:
        losses = {loss: float(TASKS[task] is type(model)) for task, loss in _TUNED.items()}
    every = dict.fromkeys((*_PRETRAINING, *_TUNED.values()), 0.0)
    return {
        "state_dict": {name: value.detach().clone() for name, value in state.items()},
        "hyper_parameters": {"config": published_settings(config, every | losses), "m3ae": config.to_dict()},
        "epoch": 0,
        "global_step": 0,
    }


def _convert_state(released: Mapping[str, Tensor], task: str, report: Report) -> dict[str, Tensor]:
    """Translate names and shapes, leaving out what nobody reads and other tasks' heads."""
    state, unknown = dict[str, Tensor](), []
    losses = {"pretraining": (*_PRETRAINING, "itc"), "retrieval": ("itm", "irtr", "itc")}.get(task) or (_TUNED[task],)
    for key, value in released.items():
        head, name = key.split(".")[0], convert_name(key)
        reason = why_unused(key)
        if reason is None and (name is not None or head == "irtr_head") and head.endswith("_head"):
            reason = None if head.removesuffix("_head") in losses else f"another task's {head}"
        if reason is not None:
            report.left_out.setdefault(reason, []).append(key)
            continue
        report.mapped.append(key)
        if name is not None:
            shape = {"cls_token": (1, 1, -1), "pos_embed": (1, *value.shape)}.get(name.rsplit("vit.")[-1], value.shape)
            state[name] = value.reshape(shape)
        elif head != "irtr_head":
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"The checkpoint has {len(unknown)} parameters of no known M3AE: {', '.join(unknown)}.")
    for kind in ("weight", "bias"):
        score = released.get(f"irtr_head.{kind}")
        if task != "retrieval" or score is None:
            continue
        matching = state.get(f"itm_head.{kind}")
        rows = torch.cat([torch.zeros_like(score) if matching is None else matching[:1], score])
        if matching is None or not torch.equal(rows, matching):
            report.remarks.append(f"row 1 of itm_head.{kind} is the fine-tuned irtr_head.{kind}")
        state[f"itm_head.{kind}"] = rows
    return state


def _name_labels(
    config: M3AEConfig, state: Mapping[str, Tensor], task: str, answers: Sequence[str] | None, report: Report
) -> None:
    outputs = state.get(f"{_TUNED.get(task)}_head.output.bias")
    if outputs is None:
        if answers is not None:
            raise ValueError(f"A model for {task} has no answers or classes to name; leave the list out.")
        return
    if answers is not None and len(answers) != len(outputs):
        raise ValueError(
            f"The list names {len(answers)} answers and the checkpoint's head has {len(outputs)}: it is the list of "
            "another model."
        )
    known = list((config.id2label or {}).values())
    are_named = len(known) == len(outputs) and "LABEL_0" not in known
    if answers is not None and are_named and known != list(answers):
        column = next(n for n, pair in enumerate(zip(known, answers, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"The checkpoint calls output {column} {known[column]!r} and the list {answers[column]!r}: leave the list "
            "out, or give the list that the model was trained with."
        )
    if answers is not None:
        config.id2label = dict(enumerate(answers))
        config.label2id = {answer: index for index, answer in enumerate(answers)}
    elif not are_named:
        config.num_labels = len(outputs)
        report.remarks.append(
            f"released files do not hold the {len(outputs)} names of answers or classes, which are called LABEL_0, "
            "LABEL_1, …: give --answers a file that lists them"
        )


def _check_positions(model: M3AEPreTrainedModel, stored: Tensor | None) -> None:
    """Raise if the positions of the pixel decoder, which ours computes, are not what the file holds."""
    if stored is None or not isinstance(model, M3AEForPreTraining):
        return
    computed = model.mim_head.positions.to(stored.dtype)
    if stored.shape != computed.shape or not torch.allclose(stored, computed, atol=1e-6):
        raise CheckpointError("mim_head.decoder_pos_embed is not the sine-cosine table of the published code.")


def _load(model: M3AEPreTrainedModel, state: dict[str, Tensor], report: Report) -> None:
    """Load the weights; each must be present with the right shape."""
    expected = model.state_dict()
    for loss in _PRETRAINING:
        fresh = {name: value for name, value in expected.items() if name.startswith(f"{loss}_head.")}
        if not getattr(model.config, f"{loss}_weight") and fresh and not fresh.keys() & state.keys():
            state.update(fresh)
            report.remarks.append(f"{loss}_head is not in the file and has weight 0 in loss_names: it is drawn anew")
    problems = [f"{release_name(name)} is missing" for name in expected if name not in state]
    problems += [f"{release_name(name)} is unknown" for name in state if name not in expected]
    problems += [
        f"{release_name(name)} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise CheckpointError(f"The checkpoint does not make a {type(model).__name__}: {'; '.join(problems)}.")
    model.load_state_dict(state)


def _check_order(path: Path, released: Released) -> None:
    """Raise if `m3ae prepare` has written the list, and the list is not that of the checkpoint's data set."""
    content = load_json(path) if path.suffix == ".json" else None
    if not isinstance(content, dict) or "answers_from" not in content:
        return
    if content.get("order") != "published":
        raise ValueError(
            f"{path} lists the answers of a prepared folder, the most frequent first. The head of a published "
            "checkpoint has those of all splits in the order of the published files: prepare the folder again with "
            "--answers-from all --overwrite."
        )
    manifest = path.with_name("manifest.json")
    source = load_json_object(manifest).get("source") if manifest.is_file() else None
    trained = {_DATA_SETS.get(name) for name in released.settings["config"].get("datasets") or ()} - {None}
    if source and trained and source not in trained:
        raise ValueError(f"{path} lists the answers of {source}; the checkpoint was trained on {trained.pop()}.")


def _listed(content: Any) -> list[str]:
    if isinstance(content, dict) and "answers" in content and not isinstance(content["answers"], int):
        return _listed(content["answers"])
    if isinstance(content, list):
        return [str(name) for name in content]
    if not isinstance(content, dict):
        return []
    by_index = content if all(key.isdigit() for key in content) else {str(i): name for name, i in content.items()}
    order = [str(i) for i in range(len(content))]
    return [str(by_index[i]) for i in order] if set(order) == by_index.keys() else []
