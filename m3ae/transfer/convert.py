"""Conversion of the published M3AE checkpoints (Chen et al. 2022) into hub-format folders, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from m3ae.files import new_folder, replacing
from m3ae.models.configuration import M3AEConfig, M3AEImageConfig
from m3ae.models.hub import model_card
from m3ae.models.processing import M3AEImageProcessor, M3AEProcessor
from m3ae.transfer.reading import Released, read_released
from m3ae.transfer.settings import departures
from m3ae.transfer.tokenizers import check_tokenizer, load_tokenizer
from m3ae.transfer.weights import TASKS, Report, build, released_content

_DATA_SETS = {"vqa_vqa_rad": "vqa_rad", "vqa_slack": "slake", "vqa_medvqa_2019": "vqa_med_2019"}  # published: ours


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
    if tokenizer is None and text.model_type == "bert":
        raise ValueError(
            f"{checkpoint} has a BERT, whose special tokens no weight shows: give --tokenizer the folder of the "
            "tokenizer that the model was trained with, as a rule bert-base-uncased."
        )
    if tokenizer is None:
        report.remarks.append(
            "released files hold no tokenizer and none was given: only the image processor is written; give "
            "--tokenizer the folder of the tokenizer that the model was trained with, as a rule roberta-base"
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
    assert isinstance(config.text_config, PreTrainedConfig)
    if config.text_config.model_type not in ("bert", "roberta") or config.num_views > 1:
        raise ValueError(
            f"{folder} has a text encoder of the type {config.text_config.model_type} and {config.num_views} views; "
            "the released format has one image and a bert or roberta."
        )
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
        path: A text file with one name a line, an empty one being an empty line, or JSON: a list, the published
            `{name: index}`, `{index: name}`, or any of these under the key `answers`.

    Raises:
        ValueError: Something else, or a name that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"The answer list {path} is missing.")
    text = path.read_text(encoding="utf-8-sig")
    names = _listed(json.loads(text)) if path.suffix == ".json" else text.splitlines()
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"{path} lists {len(names)} names, {len(set(names))} of them different; expected each once, one a line "
            'in a text file, or as JSON: ["yes", "no"] or {"yes": 0, "no": 1}.'
        )
    return names


def _check_order(path: Path, released: Released) -> None:
    """Raise if `m3ae prepare` has written the list, and it is not the published one of the checkpoint's data set."""
    content = json.loads(path.read_text(encoding="utf-8-sig")) if path.suffix == ".json" else None
    if not isinstance(content, dict) or "answers_from" not in content:
        return
    if content.get("order") != "published":
        raise ValueError(
            f"{path} lists the answers of a prepared folder, the most frequent first. The head of a published "
            "checkpoint has those of all splits in the order of the published files: prepare the folder again with "
            "--answers-from all --overwrite."
        )
    manifest = path.with_name("manifest.json")
    source = json.loads(manifest.read_text(encoding="utf-8"))["source"] if manifest.is_file() else None
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
