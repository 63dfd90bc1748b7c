"""A first config for a prepared folder: its columns, a model that fits its rows, and steps that fit the time.

A step of each model that is considered is taken on the rows themselves, so that the config is known to build, and what
it costs on this machine.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import send_to_device
from PIL import Image

from m3ae.data.parallel import available_cores
from m3ae.data.pictures import label_counts
from m3ae.data.prepared import array_shape, image_columns, load_manifest, load_split
from m3ae.data.samples import evenly
from m3ae.precision import choose_precision
from m3ae.tasks import task_class
from m3ae.tasks.models import saved_config
from m3ae.training.batches import micro_batches
from m3ae.training.config import RunConfig, make_config
from m3ae.training.engine import device_name, prepare_cpu, process_state, settle_precision
from m3ae.words import count_words

EPOCHS = {"question_answering": 40, "classification": 40, "retrieval": 40, "report_generation": 40}
EPOCHS |= {"pretraining": 100, "generation": 200}
SIZES = (("mini", 96, 1.0), ("mini", 128, 1.8), ("small", 224, 18.0), ("base", 224, 8.0))  # side; cost over the last
MIN_STEPS = 200
TRAINING_SHARE = 0.7  # of the time; validation, the final measurement and figures take the rest
ROWS_READ = 300  # for the sizes of images and the lengths of texts
FEW_ROWS = 10  # of a label, below which nothing can be learnt of it
MAX_LABELS = 30
TOKENS_PER_WORD = 1.7
GREY_LIMIT = 0.95  # share of grey images from which on they count as radiographs


class Contents(NamedTuple):
    """What the training rows of a prepared folder hold.

    Attributes:
        folder: The prepared folder.
        rows: Number of rows by split.
        images: Columns of images.
        text: Whether a row has a text.
        labels: Names by column of labels, the most frequent first.
        multi_label: Columns of which a row has several labels, or none.
        questions: Whether rows have questions and answers.
        arrays: Shape by column of numbers.
        side: Shorter side of most images in pixels.
        is_grey: Whether the images are grey.
        is_mixed: Whether the images differ in their shapes, or are far from square.
        words: Number of words that few of the texts or questions exceed.
    """

    folder: Path
    rows: dict[str, int]
    images: list[str]
    text: bool
    labels: dict[str, list[str]]
    multi_label: set[str]
    questions: bool
    arrays: dict[str, tuple[int, ...]]
    side: int
    is_grey: bool
    is_mixed: bool
    words: int

    @property
    def tasks(self) -> list[str]:
        """The tasks that the rows can teach, the one that needs most of them first."""
        teaches = {
            "question_answering": self.questions,
            "classification": bool(self.labels and (self.images or self.text)),
            "pretraining": bool(self.images),
            "retrieval": bool(self.images and self.text),
            "report_generation": bool(self.images and self.text),
            "generation": len([*self.images, *self.arrays]) + self.text > 1 or bool(self.arrays),
        }
        return [task for task, can in teaches.items() if can]


def read_contents(folder: Path) -> Contents:
    """Read what the training rows of a prepared folder hold.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: The folder is damaged, or has no training rows.
    """
    splits = {name: info.rows for name, info in load_manifest(folder).splits.items() if info.rows}
    if "train" not in splits:
        raise ValueError(f"{folder} has no training rows: it has {splits}; prepare it without --split none")
    rows = load_split(folder, "train")
    filled = {name for name in rows.column_names if rows.data.column(name).null_count < len(rows)}
    sample = rows.select(evenly(len(rows), ROWS_READ))
    images = [name for name in image_columns(rows.features) if name in filled]
    opened = [Image.open(io.BytesIO(cell["bytes"])) for name in images for cell in sample[name] if cell]
    sides = np.array([image.size for image in opened] or [(1, 1)])
    shapes = sides[:, 0] / sides[:, 1]
    questions = "question" in filled and bool({"answer", "answers"} & filled)
    texts = sample["question"] if questions else sample["text"] if "text" in filled else []
    lengths = [count_words(text) for cell in texts if cell for text in ([cell] if isinstance(cell, str) else cell)]
    counts = {name: by_split["train"] for name, by_split in label_counts({"train": rows}).items() if name != "answer"}
    labels = {name: _names(count) for name, count in counts.items() if len(_names(count)) > 1}
    several = {name for name in labels if any(len(cell) != 1 for cell in rows[name] if isinstance(cell, list))}
    return Contents(
        folder=folder,
        rows=splits,
        images=images,
        text="text" in filled,
        labels=labels,
        multi_label=several,
        questions=questions,
        arrays={name: shape for name, feature in rows.features.items() if (shape := array_shape(feature))},
        side=int(np.median(sides.min(axis=1))),
        is_grey=sum(map(_is_grey, opened[::6])) > GREY_LIMIT * len(opened[::6]),
        is_mixed=bool(np.quantile(shapes, 0.9) > 1.15 or np.quantile(shapes, 0.1) < 1 / 1.15),
        words=int(np.quantile(lengths, 0.95)) if lengths else 0,
    )


def _is_grey(image: Image.Image) -> bool:
    """Return whether the channels of an image are equal, but for the noise of its compression."""
    pixels = np.asarray(image.convert("RGB").resize((32, 32))).astype(int)
    return bool(np.ptp(pixels, axis=-1).mean() < 4)


def _names(counts: Counter[str]) -> list[str]:
    """Return the labels, the most frequent first; of many, those of which there is something to learn."""
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return names if len(names) <= MAX_LABELS else [name for name in names if counts[name] >= FEW_ROWS][:MAX_LABELS]


def draft_config(folder: Path, task: str | None = None, minutes: float = 10.0, model: str | None = None) -> str:
    """Return the YAML of a run on a prepared folder, with comments.

    Args:
        folder: The prepared folder.
        task: The task; by default the first that the rows can teach.
        minutes: Time that the run may take on this machine.
        model: Folder or hub name of a saved model to start from; by default a new one.

    Raises:
        FileNotFoundError: There is no such prepared folder.
        ValueError: The folder has no training rows, or they cannot teach the task.
    """
    contents = read_contents(folder)
    task = task or next(iter(contents.tasks), "none")
    if task not in contents.tasks:
        can = ", ".join(contents.tasks) or "none of these: see m3ae data show"
        raise ValueError(f"--task: the rows of {folder} cannot teach {task}, expected {can}")
    device = process_state().device
    sizes: Sequence[tuple[str, int, float]] = SIZES if model is None else [("", 0, 1.0)]
    batch = min(64 if device.type == "cuda" or task in ("retrieval", "generation") else 32, contents.rows["train"])
    wanted = max(MIN_STEPS, EPOCHS[task] * contents.rows["train"] // batch)
    budget, seconds, values = TRAINING_SHARE * 60 * minutes, 0.0, dict[str, Any]()
    for size, side, cost in sizes:
        if cost * seconds * wanted > budget:
            break
        larger = _values(contents, task, size, side, batch, model)
        if values.get("model") == larger["model"]:  # the images are no larger
            continue
        try:
            measured = time_step(make_config(larger))
        except torch.OutOfMemoryError:
            break
        if values and measured * wanted > budget:
            break
        seconds, values = measured, larger
    if not values:
        raise MemoryError(f"{device} has too little memory for the smallest model: train on another one")
    steps = max(1, min(wanted, int(budget / seconds)))
    values["training"] |= {
        "max_steps": steps,
        "expected_step_seconds": float(f"{seconds:.2g}") or 0.01,
        "checkpoint_every": max(1, steps // 5),
    }
    if values["training"].get("validate_every", 0) is not None:
        values["training"]["validate_every"] = max(1, steps // 10)
    make_config(values)
    header = _header(contents, task, steps, seconds, batch, device)
    if steps < wanted:
        header.append(
            f"# hint      --minutes {wanted * seconds / 60 / TRAINING_SHARE:.0f} would do for {wanted} steps"
        )
    return "\n".join([*header, *_yaml(values)]) + "\n"


def time_step(config: RunConfig) -> float:
    """Return the seconds that a training step of a run takes on this machine, its batch included."""
    config = settle_precision(config)
    task = task_class(config.task).from_config(config)
    accelerator = Accelerator(mixed_precision=config.training.mixed_precision)
    prepare_cpu(accelerator)
    model = task.model.to(accelerator.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    batches = micro_batches(config, task.train_dataset, task.collate, accelerator, 0)
    seconds = []
    for step in range(3):
        start = time.perf_counter()
        batch = send_to_device({**next(batches), **task.step_inputs(step)}, accelerator.device)
        with accelerator.autocast():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return float(np.mean(seconds[1:]))


def _values(
    contents: Contents, task: str, size: str, side: int, batch: int, model: str | None
) -> dict[str, dict[str, Any] | Any]:
    """Return the sections of a run."""
    measured = "validation" in contents.rows
    training: dict[str, Any] = {"max_steps": 1000, "batch_size": batch}
    if not measured:
        training["validate_every"] = None
    elif metric := _best_metric(contents, task):
        training |= {"best_metric": f"validation/{metric}", "best_mode": "max"}
    side = min(side, max(32, contents.side // 16 * 16))
    image_config = {"image_size": side} | ({"resize": "pad"} if contents.is_mixed else {})  # cut nothing off
    values: dict[str, Any] = {
        "task": task,
        "output_dir": f"runs/{contents.folder.resolve().name}",
        "data": _data(contents, task, size, model),
        "tokenizer": {"vocab_size": 2000},
        "model": {"size": size, "overrides": {"image_config": image_config}},
        "optimizer": {"lr": 3e-4, "lr_multipliers": {}, "weight_decay": 0.05, "schedule": "cosine", "warmup": 0.05},
        "training": training,
    }
    if model is not None:
        values["model"] = {"path": model, "overrides": {}}
        values["optimizer"] |= {"lr": 2e-4, "lr_multipliers": {"heads": 3}}
        del values["tokenizer"]
    if task == "generation":
        _add_generation(values, contents, side)
    overrides = values["model"]["overrides"]
    if task == "pretraining":
        overrides |= {"schedule": "joint", "mask_ratio": 0.5, "mlm_probability": 0.3, "norm_pix_loss": False}
        overrides |= {"itc_weight": 1.0} if contents.text else {}
    if task == "classification":
        values["classification"] = _classes(contents)
    if task == "retrieval":
        overrides |= {"itc_weight": 1.0, "num_negatives": 0}
        values["retrieval"] = {"rerank": 0}
    return values


def _data(contents: Contents, task: str, size: str, model: str | None) -> dict[str, Any]:
    longest = {"mini": 96, "": 64}.get(size, 256)
    if model is not None:
        longest = saved_config(model).longest_text
    tokens = min(longest, 16 * (1 + int(TOKENS_PER_WORD * contents.words + 2) // 16))
    data: dict[str, Any] = {"path": str(contents.folder)}
    if task == "generation":
        return data | {"max_text_length": tokens}
    reads = {"question_answering": "question", "classification": None if contents.images else "text"}
    reads["report_generation"] = None  # the report is written, not read
    data["image_columns"] = contents.images
    data["text_column"] = reads.get(task, "text" if contents.text else None)
    if data["text_column"] is not None or task == "report_generation":
        data["max_text_length"] = tokens
    if len(contents.images) > 1 and model is None:
        data["views"] = "all"
    data |= {"augmentation": "radiograph"} if contents.is_grey else {}
    if contents.images:
        data["crop_scale"] = [0.8, 1.0]
    data |= {"max_validation_samples": 200} if task == "report_generation" else {}
    return data


def _best_metric(contents: Contents, task: str) -> str | None:
    if contents.rows["validation"] < FEW_ROWS:
        return None  # the loss differs where shares do not
    if task == "classification" and next(iter(contents.labels)) in contents.multi_label:
        return "macro_auroc"
    return {"classification": "macro_f1", "question_answering": "accuracy", "retrieval": "mean_recall"}.get(
        task, "cider_d" if task == "report_generation" else None
    )


def _classes(contents: Contents) -> dict[str, Any]:
    column, names = next(iter(contents.labels.items()))
    several = column in contents.multi_label
    return {"label_column": column, "multi_label": several, "labels": names} | (
        {} if several else {"class_weights": "balanced"}
    )


def _add_generation(values: dict[str, Any], contents: Contents, side: int) -> None:
    """Add the latent head with a modality for each column."""
    image = {"kind": "image", "encoder": "cnn", "decoder": "cnn", "shape": [1 if contents.is_grey else 3, 64, 64]}
    scale = {"scale": 0.25, "learn_scale": True, "hidden_size": 256}
    modalities: dict[str, Any] = {name: image | scale | {"num_layers": 3} for name in contents.images}
    for name, shape in contents.arrays.items():
        kind = {1: "vector", 2: "sequence"}[len(shape)]
        modalities[name] = {"kind": kind, "shape": [*shape], **scale, "scale": 0.7}
    if contents.text:
        length = values["data"]["max_text_length"]
        modalities["text"] = {"kind": "text", "decoder": "autoregressive", "hidden_size": 192, "num_layers": 2}
        modalities["text"] |= {"max_length": length, "dropout": 0.3, "weight": 5}
    for name, names in contents.labels.items():
        kind = "labels" if name in contents.multi_label or name == "labels" else "label"
        modalities[name] = {"kind": kind, "encoder": "none", "labels": names, "hidden_size": 128, "num_layers": 1}
    latent = {"kind": "mopoe", "size": 16, "num_samples": 1, "beta_warmup": 0.2, "modalities": modalities}
    values["model"]["overrides"] = {"latent": latent}
    values["optimizer"] |= {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "lr_multipliers": {}}


def _header(contents: Contents, task: str, steps: int, seconds: float, batch: int, device: torch.device) -> list[str]:
    rows = ", ".join(f"{count} in {name}" for name, count in contents.rows.items())
    columns = [*contents.images, *(["text"] if contents.text else []), *contents.labels, *contents.arrays]
    others = [other for other in contents.tasks if other != task]
    what = device_name(device) if device.type == "cuda" else f"{available_cores()} CPU cores"
    name = contents.folder.resolve().name
    minutes = max(1, round(steps * seconds / 60 / TRAINING_SHARE))
    lines = [
        f"A first {task} run on {contents.folder}, written by m3ae init; change what you know better.",
        "",
        f"  m3ae train {name}.yaml",
        "",
        f"data      rows: {rows}; columns: {', '.join(columns)}",
        f"hardware  {what}, {choose_precision(device)}".replace("precision: ", ""),
        f"time      about {minutes} min: {steps} steps of {seconds:.2g} s, "
        f"{steps * batch / contents.rows['train']:.0f} passes over the training rows",
    ]
    if others:
        lines.append(f"also      m3ae init {contents.folder} --task {'|'.join(others)}")
    if contents.rows["train"] < 1000 and task != "generation":
        lines.append("hint      with so few rows begin from a model that has seen others: --model FOLDER")
    return [f"# {line}".rstrip() for line in lines]


COMMENTS = {
    "data.views": "the images of a row are its views; one: a visit draws one of them",
    "data.text_column": "what the model reads beside the images; null: nothing",
    "data.max_text_length": "tokens; longer texts are cut",
    "data.max_validation_samples": "reports are long to write",
    "data.augmentation": "turns and shifts a little, never mirrors",
    "data.crop_scale": "share of the area that a random crop keeps",
    "model.size": "tiny, mini, small or base",
    "classification.multi_label": "true: a row has any number of labels",
    "classification.class_weights": "rare classes weigh as much as frequent ones",
    "training.best_metric": "chooses the model that is kept",
    "training.expected_step_seconds": "measured by m3ae init",
    "training.validate_every": "null: there are no rows for validation",
    "optimizer.warmup": "share of the steps",
}


def _yaml(values: dict[str, Any]) -> list[str]:
    """Return the lines of sections, an option a line."""
    lines = []
    for section, options in values.items():
        if not isinstance(options, dict):
            lines.append(f"{section}: {_inline(options)}")
            continue
        lines.append(f"{section}:")
        for key, value in options.items():
            comment = COMMENTS.get(f"{section}.{key}")
            if key == "validate_every" and value is not None:
                comment = None
            if isinstance(value, dict) and value:
                nested = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
                lines += [f"  {key}:", *(f"    {line}" for line in nested.splitlines())]
            else:
                lines.append(f"  {key}: {_inline(value)}" + (f" # {comment}" if comment else ""))
    return lines


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()
