"""Models from the weights of the published M3AE checkpoints (Chen et al. 2022), and such weights from models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from m3ae.models.base import M3AEPreTrainedModel
from m3ae.models.configuration import M3AEConfig
from m3ae.models.finetuned import M3AEForClassification, M3AEForQuestionAnswering
from m3ae.models.pretraining import M3AEForPreTraining
from m3ae.models.retrieval import M3AEForImageTextRetrieval
from m3ae.transfer.names import convert_name, release_name, why_unused
from m3ae.transfer.reading import CheckpointError, Released, some
from m3ae.transfer.settings import infer_config, published_settings

TASKS: dict[str, type[M3AEPreTrainedModel]] = {
    "pretraining": M3AEForPreTraining,
    "question_answering": M3AEForQuestionAnswering,
    "classification": M3AEForClassification,
    "retrieval": M3AEForImageTextRetrieval,
}
# The published name of each objective; the head that it trains is called <name>_head.
_PRETRAINING = ("mlm", "mim", "itm")
_TUNED = {"question_answering": "vqa", "classification": "cls", "retrieval": "irtr"}


@dataclass
class Report:
    """What a conversion did with the parameters.

    Attributes:
        model: Name of the class.
        mapped: Names of the parameters taken over, as they are called in the source.
        left_out: Reason → names of the parameters left out on purpose.
        remarks: What a user should know.
    """

    model: str
    mapped: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.mapped)} parameters mapped, none unmapped"]
        lines += [f"left out: {len(names)} of {reason} ({some(names)})" for reason, names in self.left_out.items()]
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])


def build(
    released: Released, task: str | None = None, answers: Sequence[str] | None = None
) -> tuple[M3AEPreTrainedModel, Report]:
    """Build the model that a released checkpoint holds.

    Args:
        released: The checkpoint.
        task: One of `TASKS`; the one that `choose_task` finds if None.
        answers: Names of the answers or classes, in the order of the head's outputs.

    Raises:
        CheckpointError: Parameters that are not known or that are missing, or no head for the task.
        ValueError: The number of answers is not that of the head's outputs.
    """
    task = choose_task(released, task)
    report = Report(TASKS[task].__name__)
    if others := [name for name in _offered(released) if name != task]:
        report.remarks.append(f"the file can also be converted for {_join(others)}")
    state = _convert_state(released.state, task, report)
    config = infer_config(released)
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

    With several fine-tuned heads that is pre-training if its heads are there too.

    Raises:
        CheckpointError: There is no such head, or several ones and no way to choose.
    """
    offered = _offered(released)
    if wanted is not None:
        if wanted in offered:
            return wanted
        raise CheckpointError(f"The checkpoint has no head for {wanted!r}; it has those for {_join(offered)}.")
    weights = released.settings["config"].get("loss_names", {})
    trained = [task for task, loss in _TUNED.items() if f"{loss}_head" in _heads(released) and weights.get(loss, 1)]
    if len(trained) == 1:
        return trained[0]
    if "pretraining" in offered:
        return "pretraining"
    if not trained:
        raise CheckpointError(f"The checkpoint has no head that loss_names {dict(weights)} trained; choose a task.")
    raise CheckpointError(f"The checkpoint has several fine-tuned heads; choose a task: {_join(trained)}.")


def _heads(released: Released) -> set[str]:
    return {part for name in released.state if (part := name.split(".")[0]).endswith("_head")}


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
    state: dict[str, Tensor] = {}
    unknown = []
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
    if task == "retrieval":
        _put_score_into_matching_head(released, state, report)
    return state


def _put_score_into_matching_head(released: Mapping[str, Tensor], state: dict[str, Tensor], report: Report) -> None:
    for kind in ("weight", "bias"):
        score = released.get(f"irtr_head.{kind}")
        if score is None:
            continue
        matching = state.get(f"itm_head.{kind}")
        rows = torch.cat([torch.zeros_like(score) if matching is None else matching[:1], score])
        if matching is None or not torch.equal(rows, matching):
            report.remarks.append(f"row 1 of itm_head.{kind} is the fine-tuned irtr_head.{kind}")
        state[f"itm_head.{kind}"] = rows


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
            "out, or give that which the model was trained with."
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
    own = model.mim_head.positions.to(stored.dtype)
    if stored.shape != own.shape or not torch.allclose(stored, own, atol=1e-6):
        raise CheckpointError("mim_head.decoder_pos_embed is not the sine-cosine table of the published code.")


def _load(model: M3AEPreTrainedModel, state: dict[str, Tensor], report: Report) -> None:
    """Load the weights, every one of which has to be there with the right shape."""
    expected = model.state_dict()
    for loss in _PRETRAINING:
        fresh = {name: value for name, value in expected.items() if name.startswith(f"{loss}_head.")}
        if not getattr(model.config, f"{loss}_weight") and fresh and not fresh.keys() & state.keys():
            state.update(fresh)
            report.remarks.append(f"{loss}_head is not in the file and has weight 0 in loss_names: it is drawn anew")
    problems = [f"{release_name(name)} is missing" for name in expected if name not in state]
    problems += [f"{release_name(name)} has no place" for name in state if name not in expected]
    problems += [
        f"{release_name(name)} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        raise CheckpointError(f"The checkpoint does not make a {type(model).__name__}: {'; '.join(problems)}.")
    model.load_state_dict(state)


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
