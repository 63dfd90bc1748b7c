"""Train the toy task as a script, so that torchrun can start several processes: run_toy.py FOLDER key=value…"""

import sys
from pathlib import Path

import yaml
from toy import ToyTask, toy_config

from m3ae.training.loop import train

if __name__ == "__main__":
    folder, *settings = sys.argv[1:]
    values = {key: yaml.safe_load(value) for key, value in (setting.split("=") for setting in settings)}
    resume = values.pop("resume", False)
    task = ToyTask(
        dropout=values.pop("dropout", 0.5), kill_at=values.pop("kill_at", None), nan_at=values.pop("nan_at", ())
    )
    train(toy_config(Path(folder), **values), task, resume=resume)
