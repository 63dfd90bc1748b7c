import re
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
        ("model.overrides.image_config.image_size=64", "model", {"image_config": {"image_size": 64}}),
        ("tokenizer.path=a=b", "tokenizer", "a=b"),
    ],
)
def test_overrides_are_read_as_yaml(tmp_path, override, section, value):
    config = load_config(write(tmp_path, MINIMAL), [override])
    assert getattr(getattr(config, section), override.split("=")[0].split(".")[1]) == value


@pytest.mark.parametrize(("text", "value"), [("[1, 2.5]", [1.0, 2.5]), ("balanced", "balanced")])
def test_class_weights_are_a_list_or_a_word(tmp_path, text, value):
    config = load_config(write(tmp_path, MINIMAL), ["task=classification", f"classification.class_weights={text}"])
    assert config.classification.class_weights == value


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
            "task: got 'vqa' (str), expected one of pretraining, question_answering, classification, retrieval, rep",
        ),
        ("model.from_scratch=true", "model.from_scratch: got true without model.path, which names the model to draw"),
        ("data.also=[{path: x, wieght: 2}]", "data.also.0.wieght: unknown key; did you mean data.also.weight?"),
        ("data.also=[{path: x, weight: 0}]", "data.also.0.weight: got 0 (int), expected greater than 0"),
        ("data={path: x, image_columns: [], text_column: null}", "data.image_columns: got none and no text_column"),
        ("data.max_unreadable_shards=1", "data.max_unreadable_shards: got 1 without data.streaming"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1: got 1 (int), expected less than 1"),
        ("optimizer.lr_multipliers={head: 5}", "optimizer.lr_multipliers.head: unknown group; expected encoder, "),
        ("tokenizer.vocab_size=260", "tokenizer.vocab_size: got 260 (int), expected greater than or equal to 261"),
        ("evaluation.word_groups={side: []}", "evaluation.word_groups.side: got [] (list)"),
        # what a task needs, or has
        ("task=classification finetuning.frozen=all", "finetuning.frozen: got 'all' (str), expected 'nothing', 'enc"),
        (
            "task=classification classification={labels: [a], num_labels: 2}",
            "classification.num_labels: got a number beside classification.labels",
        ),
        ("task=classification classification.labels=[a, b, a]", "classification.labels: got ['a', 'b', 'a'], expect"),
        ("task=retrieval data.text_column=null", "data: retrieval needs image_columns and a text_column"),
        ("task=retrieval training.batch_size=1", "training.batch_size: got 1, expected at least 2: the pairs of a"),
        ("task=question_answering data.text_column=null", "data.text_column: got null, expected the column of the"),
        ("task=generation", "model.overrides.latent: missing; expected the options of the latent head"),
        (
            "task=generation model.overrides.latent={size: 4} generation.text_options={num_beam: 2}",
            "generation.text_options.num_beam: unknown key; did you mean num_beams",
        ),
        # the source and the model, before either is asked for anything
        ("data.prepare={num_studies: 3}", "data.prepare.name: got nothing, expected one of digits, folder, iu_xray"),
        ("data.prepare={name: phantm}", "data.prepare.name: got 'phantm' (str), expected one of digits, folder"),
        ("data.prepare={name: phantom, num_studes: 3}", "data.prepare.num_studes: unknown key; did you mean num_stu"),
        ("data.prepare={name: phantom, num_studies: '3'}", "data.prepare.num_studies: got '3' (str), expected a val"),
        ("data.prepare={name: phantom, factors: two}", "data.prepare.factors: got 'two' (str), expected 'one_findin"),
        ("data.prepare={name: phantom, quality: 96}", "data.prepare.quality: got 96, expected 1 to 95"),
        ("data.prepare={name: phantom, output: x}", "data.prepare.output: unknown key"),
        ("data.prepare={name: iu_xray}", "data.prepare.source: missing; expected a value"),
        ("data.also=[{path: x, prepare: {name: a}}]", "data.also.0.prepare.name: got 'a' (str), expected one of"),
        ("model.overrides.mask_ration=0.5", "model.overrides.mask_ration: unknown key; did you mean mask_ratio"),
        ("model.overrides.mask_ratio='0.5'", "model.overrides.mask_ratio: got '0.5' (str), expected a valid number"),
        ("model.overrides.mask_ratio=1.5", "model.overrides: mask_ratio must lie between 0 and 0.99, got 1.5"),
        ("model.overrides.image_config.patch_sze=8", "model.overrides.image_config.patch_sze: unknown key; did you "),
        ("model.overrides.image_config=3", "model.overrides.image_config: got 3 (int), expected an object"),
        ("model.overrides.text_config.num_hidden_layer=2", "model.overrides: text_config has no option 'num_hidden_l"),
        ("model.overrides.latent.sise=2", "model.overrides.latent.sise: unknown key; did you mean latent.size"),
        (
            "model.overrides.latent.modalities={image: {kind: image, sale: 2}}",
            "model.overrides.latent.modalities.image.sale: unknown key; did you mean latent.modalities.image.scale",
        ),
        ("model={path: x, overrides: {mask_ration: 1}}", "model.overrides.mask_ration: unknown key; did you mean"),
    ],
)
def test_each_problem_is_explained(tmp_path, override, message):
    heading, problem = problems(tmp_path, *re.split(r" (?=[a-z_.]+=)", override))
    assert heading == f"{tmp_path / 'config.yaml'}:"
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("task", "override", "key", "owners"),
    [
        ("pretraining", "generation.missing_rate=0.5", "generation", "generation"),
        ("pretraining", "finetuning={frozen: trunk}", "finetuning", "question_answering, classification, retrieval"),
        ("pretraining", "evaluation.controls=true", "evaluation.controls", "question_answering, classification, retr"),
        ("retrieval", "classification={multi_label: true}", "classification", "classification"),
        ("retrieval", "generation.missing_rate=0.5", "generation", "generation"),
        ("retrieval", "evaluation.mask_draws=2", "evaluation.mask_draws", "pretraining"),
        ("classification", "data.also=[]", "data.also", "pretraining, generation"),
        ("classification", "data.weight=2", "data.weight", "pretraining, generation"),
        ("question_answering", "data.streaming=true", "data.streaming", "pretraining, generation"),
        ("generation", "data.bucket_batches=2", "data.bucket_batches", "pretraining, question_answering, classif"),
        ("generation", "data.image_columns=[x]", "data.image_columns", "pretraining, question_answering, classif"),
        ("generation", "evaluation.resamples=9", "evaluation.resamples", "question_answering, classification, re"),
    ],
)
def test_options_of_other_tasks_are_refused(tmp_path, task, override, key, owners):
    _, problem = problems(tmp_path, f"task={task}", "model.overrides.latent.size=4", override)
    assert problem.startswith(f"{key}: unknown key; it is an option of {owners}")
    assert problem.endswith(f"not of {task}: leave it out")


def test_all_problems_are_listed_at_once(tmp_path):
    assert len(problems(tmp_path, "training.max_step=1", "data.pth=x", "optimizer.lr=fast")) == 1 + 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("training..max_steps=3", "expected key=value"),
        ("task.name=3", "task is 'pretraining' (str), which has no keys"),
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


@pytest.mark.parametrize("top", ["[a", "{a: 1"])
def test_nested_anchors_are_not_spelt_out(tmp_path, top):
    """Ten aliases of ten aliases of …: 500 bytes for 10 to the power of 20 values."""
    close = "]" if top[0] == "[" else "}"
    lines = [f"x0: &a0 {top}{close}"]
    for depth in range(1, 20):
        aliases = [f"*a{depth - 1}"] * 10
        inner = aliases if top[0] == "[" else [f"{key}: {alias}" for key, alias in enumerate(aliases)]
        lines.append(f"x{depth}: &a{depth} {top[0]}{', '.join(inner)}{close}")
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="with all aliases spelt out, expected at most 10,000"):
        load_config(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(ConfigError, match="an alias must not stand inside what it names"):
        load_config(tmp_path / "config.yaml")


def test_long_values_are_shortened_in_messages(tmp_path):
    (tmp_path / "config.yaml").write_text(f"task: pretraining\noutput_dir: x\ntraining: {'x' * 10_000}\n")
    with pytest.raises(ConfigError, match=r"training: got 'x{299}… [(]str[)]"):
        load_config(tmp_path / "config.yaml")
