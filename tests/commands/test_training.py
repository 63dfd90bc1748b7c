import shlex

import pytest

from m3ae.cli import cli
from m3ae.commands.training import NEXT
from m3ae.training.config import RUNS


@pytest.mark.parametrize("task", RUNS)
def test_the_next_command_after_training_exists(task: str) -> None:
    word, *arguments = shlex.split(NEXT[task].format(run="runs/mine", data="data/mine"))
    options = {option for parameter in cli.commands[word].params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options
