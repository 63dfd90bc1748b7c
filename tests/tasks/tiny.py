"""A pre-training run that takes seconds: phantoms of 32 px and a tiny model."""

from pathlib import Path
from typing import Any

from m3ae.training.config import RunConfig, make_config


def tiny_run(folder: Path, output: Path, task: str = "pretraining", **sections: dict[str, Any]) -> RunConfig:
    options: dict[str, Any] = {
        "task": task,
        "output_dir": output,
        "data": {
            "path": folder,
            "prepare": {"name": "phantom", "num_studies": 60, "image_size": 32, "num_workers": 1},
            "image_columns": ["frontal", "lateral"],
            "crop_scale": (0.8, 1.0),
        },
        "tokenizer": {"vocab_size": 300},
        "model": {"size": "tiny"},
        "training": {
            "mixed_precision": "no",
            "max_steps": 4,
            "batch_size": 4,
            "gradient_accumulation_steps": 2,
            "validate_every": 2,
            "checkpoint_every": 2,
            "log_every": 1,
            "tracker": "none",
        },
        "evaluation": {"retrieval_pairs": 4, "word_groups": {"side": ["left", "right"]}},
    }
    if task == "generation":  # which has no pairs
        options |= {"data": {"path": folder, "prepare": options["data"]["prepare"]}, "evaluation": {}}
    for name, values in sections.items():
        options[name] = {**options[name], **values}
    return make_config(options)
