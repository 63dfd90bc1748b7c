from pathlib import Path

import pytest

from m3ae.training.config import ConfigError, RunConfig, dump_config, load_config

MINIMAL = """
task: pretraining
output_dir: runs/a
data: {path: prepared}
training: {max_steps: 10, batch_size: 2}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, *overrides: str, text: str = MINIMAL) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    return [line.strip() for line in str(caught.value).splitlines()]


def test_defaults_and_types(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert config.output_dir == Path("runs/a")
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.warmup) == (1e-4, (0.9, 0.98), 0.1)
    assert (config.training.max_steps, config.training.best_metric) == (10, "validation/loss")


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [
        ("optimizer.lr=1e-4", "optimizer", 1e-4),  # a word in YAML 1.1
        ("optimizer.eps=5.e-9", "optimizer", 5e-9),
        ("training.mixed_precision=no", "training", "no"),  # false in YAML 1.1
        ("training.max_steps=100_000", "training", 100_000),
        ("data.crop_scale=[0.6, 1]", "data", (0.6, 1.0)),
        ("data.text_column=null", "data", None),
        ("data.text_column=[question, answer]", "data", ["question", "answer"]),
        ("data.prepare.name=phantom", "data", {"name": "phantom"}),
        ("model.overrides.text.layers=2", "model", {"text": {"layers": 2}}),
        ("tokenizer.path=a=b", "tokenizer", "a=b"),
        ("classification.class_weights=[1, 2.5]", "classification", [1.0, 2.5]),
        ("classification.class_weights=balanced", "classification", "balanced"),
    ],
)
def test_overrides_are_read_as_yaml(tmp_path, override, section, value):
    config = load_config(write(tmp_path, MINIMAL), [override])
    assert getattr(getattr(config, section), override.split("=")[0].split(".")[1]) == value


def test_a_model_is_named_in_short(tmp_path):
    path = write(tmp_path, MINIMAL + "model: {overrides: {mask_ratio: 0.5}}")
    model = load_config(path, ["model=runs/a/model"]).model
    assert (model.path, model.overrides) == ("runs/a/model", {"mask_ratio": 0.5})
    assert load_config(path, ["model={path: b}"]).model.overrides == {}


def test_dump_reads_back_equal(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), ["optimizer.lr=1e-7", "data.prepare={name: phantom, seed: 0}"])
    assert load_config(write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_step=1", "training.max_step: unknown key; did you mean training.max_steps"),
        ("training.path=x", "training.path: unknown key; did you mean data.path or data.also.path or"),
        ("training.lr=1", "training.lr: unknown key; did you mean optimizer.lr?"),
        ("trainig.max_steps=1", "trainig: unknown key; did you mean training?"),
        (
            "model.qqq=1",
            "model.qqq: unknown key; expected one of ['model.size', 'model.path', 'model.from_scratch', ",
        ),
        ("training.max_steps=ten", "training.max_steps: got 'ten' (str), expected a valid integer"),
        ("training.max_steps='10'", "training.max_steps: got '10' (str), expected a valid integer"),
        ("training.compile=1", "training.compile: got 1 (int), expected a valid boolean"),
        ("training.batch_size=true", "training.batch_size: got True (bool), expected a valid integer"),
        ("training.batch_size=0", "training.batch_size: got 0 (int), expected greater than 0"),
        ("training.batch_size=", "training.batch_size: got nothing, expected a valid integer"),
        ("optimizer.schedule=step", "optimizer.schedule: got 'step' (str), expected 'linear', 'cosine' or 'constant'"),
        ("optimizer.warmup=11", "optimizer.warmup: got 11 steps, expected at most training.max_steps (10)"),
        ("data.crop_scale=[1, 0.5]", "data.crop_scale: got [1.0, 0.5], expected 0 < smallest <= largest <= 1"),
        ("data={}", "data.path: missing; expected a value"),
        (
            "task=vqa",
            "task: got 'vqa' (str), expected 'pretraining', 'question_answering', 'classification', 'retr",
        ),
        ("model.from_scratch=true", "model.from_scratch: got true without model.path, which names the model to draw"),
        ("finetuning.frozen=all", "finetuning.frozen: got 'all' (str), expected 'nothing', 'encoders' or 'trunk'"),
        (
            "classification={labels: [a], num_labels: 2}",
            "classification.num_labels: got it beside classification.labels",
        ),
        ("classification.labels=[a, b, a]", "classification.labels: got ['a', 'b', 'a'], expected each name once"),
        ("data.also=[{path: x, wieght: 2}]", "data.also.0.wieght: unknown key; did you mean data.also.weight?"),
        ("data.also=[{path: x, weight: 0}]", "data.also.0.weight: got 0 (int), expected greater than 0"),
    ],
)
def test_each_problem_is_explained(tmp_path, override, message):
    heading, problem = problems(tmp_path, override)
    assert heading == f"{tmp_path / 'config.yaml'}:"
    assert problem.startswith(message)


def test_all_problems_are_listed_at_once(tmp_path):
    assert len(problems(tmp_path, "training.max_step=1", "data.pth=x", "optimizer.lr=fast")) == 1 + 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("training..max_steps=3", "expected key=value"),
        ("task.name=3", "task is 'pretraining' (str), which has no keys of its own"),
        ("training.max_steps=[1", "not valid YAML"),
    ],
)
def test_malformed_overrides(tmp_path, override, message):
    (problem,) = problems(tmp_path, override)
    assert repr(override) in problem
    assert message in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "got nothing, expected a mapping"), ("- a", "got ['a'] (list)"), ("a: [", "not valid YAML")],
)
def test_unusable_files(tmp_path, text, message):
    (problem,) = problems(tmp_path, text=text)
    assert message in problem


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file at"):
        load_config(tmp_path / "absent.yaml")


def test_a_configuration_is_frozen(tmp_path):
    config: RunConfig = load_config(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        config.training.max_steps = 1
