"""What a run says about its course: estimates, warnings, lines where there is no terminal."""

from logging import WARNING, LogRecord, getLogger

import pytest
from tqdm import tqdm

from m3ae.training import progress
from m3ae.training.progress import Progress, in_words
from m3ae.training.sections import TrainingConfig

LINES = ["Setting accelerator to CPU. If you have GPU or other accelerator, …", "a checkpoint is incomplete"]


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(tqdm, "write", lines.append)
    return lines


def a_run(step: int = 0, *, shown: bool = True, **settings) -> Progress:
    options = {"max_steps": 300, "batch_size": 1, "validate_every": 100, "expected_step_seconds": 0.5} | settings
    return Progress(TrainingConfig(**options), step, shown)


def test_the_first_steps_say_how_long_the_run_will_take_and_the_first_validation_what_it_adds(said) -> None:
    with a_run() as run:
        for step, seconds in enumerate([9.0, 0.5, 0.5, 7.0, 0.6], start=1):  # slow to start, and once disturbed
            run.add_step(step, seconds)
        assert not said
        run.add_step(6, 0.6)
        assert said == ["about 2.9 min left: 294 steps of 0.60 s; validations and the final report come on top"]
        for step in range(7, 101):
            run.add_step(step, 0.6)
        run.add_validation(100, 30.0)
        assert said[1:] == ["about 3.0 min left, with validations of 30 s"]
        run.add_validation(200, 30.0)
    assert len(said) == 2


def test_a_run_leaves_out_what_deepspeed_guesses_about_a_cpu(said) -> None:
    with a_run():
        shown = [
            getLogger("DeepSpeed").filter(LogRecord("DeepSpeed", WARNING, "", 0, line, None, None)) for line in LINES
        ]
    assert [bool(one) for one in shown] == [False, True]


def test_steps_far_longer_than_expected_are_a_warning(said) -> None:
    for expected, warned in ((0.5, True), (1.5, False), (None, False)):
        said.clear()
        run = a_run(expected_step_seconds=expected)
        for step in range(1, 7):
            run.add_step(step, 4.3)
        assert said[0].startswith("about 21 min left: 294 steps of 4.3 s")
        assert [line.startswith("warning: a step takes 8.6 times the 0.50 s") for line in said[1:]] == [True] * warned


def test_a_resumed_run_counts_what_is_left_and_a_short_one_says_nothing(said) -> None:
    run = a_run(step=290)
    for step in range(291, 297):
        run.add_step(step, 1.0)
    assert said == ["about 4.0 s left: 4 steps of 1.0 s; validations and the final report come on top"]
    said.clear()
    run = a_run(max_steps=6, validate_every=6)
    for step in range(1, 7):
        run.add_step(step, 1.0)
    run.add_validation(6, 1.0)
    quiet = a_run(shown=False)
    for step in range(1, 7):
        quiet.add_step(step, 9.0)
    assert not said


def test_without_a_terminal_there_is_a_line_now_and_then(said, monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    run = a_run()
    for step, now in ((10, 100.0), (20, 105.0), (30, 110.0), (300, 111.0)):  # noqa: B007 (read by the clock)
        run.show(step, {"loss": "9.1", "samples/s": "3.0"})
    assert said == [f"step {step} of 300: loss 9.1, samples/s 3.0" for step in (10, 30, 300)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.05, "0.05 s"),
        (4.3, "4.3 s"),
        (80, "80 s"),
        (100, "1.7 min"),
        (1300, "22 min"),
        (6000, "1.7 h"),
        (90000, "25 h"),
    ],
)
def test_lengths_of_time(seconds, words) -> None:
    assert in_words(seconds) == words
