import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from m3ae import M3AEForGeneration, M3AEForPreTraining, M3AEModel
from m3ae.data.samples import SampleDataset, trunk_columns
from m3ae.data.tokenizer import train_tokenizer
from m3ae.evaluation.pretraining import PreTrainingEvaluator
from m3ae.tasks.data import evaluation_samples
from m3ae.tasks.evaluation import evaluate
from m3ae.tasks.models import open_model
from m3ae.tasks.pretraining import PreTraining
from m3ae.training.config import RunConfig
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from tests.tasks.tiny import tiny_run
from tests.tasks.tiny_finetuning import write_splits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "phantoms"


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    config = tiny_run(data, tmp_path_factory.mktemp("runs") / "finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train(config, PreTraining.from_config(config))
    return config.output_dir


def test_a_run_leaves_model_pictures_and_metrics(finished: Path) -> None:
    for name in ("config.yaml", "environment.json", "figures/losses.png", "figures/reconstructions.png"):
        assert (finished / name).stat().st_size > 0
    card = (finished / "model" / "README.md").read_text()
    assert "| validation | mlm_accuracy |" in card and "import m3ae" in card and "Not a medical device" in card
    final = read_metrics(finished / "metrics.jsonl")[-1]
    for split in ("validation", "test"):
        for name in ("mim_psnr", "mlm_accuracy", "itm_accuracy", "side_word_accuracy"):
            assert f"{split}/{name}" in final and f"{split}/shuffled_{name}" in final
        assert final[f"{split}/retrieval_pairs"] == 4
        assert 0 <= final[f"{split}/text_to_image_recall@1"] <= final[f"{split}/text_to_image_recall@5"] == 1


def test_the_saved_model_reproduces_the_stored_loss_in_a_fresh_process(finished: Path, data: Path) -> None:
    stored = read_metrics(finished / "metrics.jsonl")[-1]["validation/loss"]
    code = f"""
import m3ae, torch
from pathlib import Path
from accelerate import Accelerator
from transformers import AutoModelForPreTraining, AutoProcessor
from m3ae.evaluation.pretraining import PreTrainingEvaluator
from m3ae.data.collate import TrunkCollator
from m3ae.data.samples import SampleDataset, trunk_columns
from m3ae.models.modalities import BatchOptions, trunk_modalities
model = AutoModelForPreTraining.from_pretrained({str(finished / "model")!r}).eval()
processor = AutoProcessor.from_pretrained({str(finished / "model")!r})
dataset = SampleDataset(Path({str(data)!r}), "validation", trunk_columns(["frontal", "lateral"], "text"))
collator = TrunkCollator(trunk_modalities(model.config), BatchOptions(processor.tokenizer, 64))
evaluator = PreTrainingEvaluator(dataset, collator, Accelerator(cpu=True), batch_size=4)
with torch.no_grad():
    print(evaluator.masked_metrics(model, shuffled=False)["loss"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(stored, abs=1e-6)


def test_the_trunk_and_the_processor_load_by_auto_classes(finished: Path) -> None:
    model, processor = AutoModel.from_pretrained(finished / "model"), AutoProcessor.from_pretrained(finished / "model")
    assert isinstance(model, M3AEModel)
    inputs = processor(text=["Clear lungs."], return_tensors="pt")
    assert model(**inputs).pooler_output.shape == (1, 64)


def test_a_saved_model_is_measured_again(finished: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_run(data, tmp_path / "run", model={"path": str(finished / "model")})
    metrics, final = evaluate(config, "test"), read_metrics(finished / "metrics.jsonl")[-1]
    assert {name for name in final if name.startswith("test/")} == metrics.keys()
    assert all(metrics[name] == pytest.approx(final[name], abs=1e-5) for name in metrics)


class Killed(BaseException):
    """Nothing may catch it."""


def killing(collate, at: int):
    """Wrap a collator so that its call number `at` kills the run."""
    calls = count(1)

    def wrapped(samples):
        if next(calls) == at:
            raise Killed
        return collate(samples)

    return wrapped


@pytest.mark.parametrize("kill_at", [3, 6])
def test_resuming_after_a_kill_is_bit_identical(finished: Path, data: Path, tmp_path: Path, kill_at: int) -> None:
    config = tiny_run(data, tmp_path / "run")
    task = PreTraining.from_config(config)
    task.collate = killing(task.collate, kill_at)
    with pytest.raises(Killed):
        train(config, task)
    train(config, PreTraining.from_config(config), resume=True)
    expected = load_file(finished / "model" / "model.safetensors")
    resumed = load_file(config.output_dir / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def everything(data: Path, output: Path) -> RunConfig:
    """A run that streams two sets in buckets, with all texts, radiograph augmentation and whole words."""
    also = {
        "path": data.parent / "more",
        "prepare": {"name": "phantom", "num_studies": 30, "seed": 1, "image_size": 32},
    }
    options = {"also": [{**also, "image_columns": ["frontal"], "weight": 0.5}], "texts": "all", "streaming": True}
    return tiny_run(
        data,
        output,
        data=options | {"bucket_batches": 2, "augmentation": "radiograph"},
        model={"overrides": {"whole_word_masking": True}},
    )


def test_a_run_that_streams_resumes_bit_identically(data: Path, tmp_path: Path) -> None:
    for name, steps in (("whole", [4]), ("parts", [2, 4])):
        for max_steps in steps:
            config = everything(data, tmp_path / name)
            task = PreTraining.from_config(config)
            if max_steps < 4:
                task.collate = killing(task.collate, at=2 * max_steps + 1)
                with pytest.raises(Killed):
                    train(config, task)
            else:
                train(config, task, resume=name == "parts")
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_the_tokenizer_learns_the_texts_of_all_sets(data: Path, tmp_path: Path) -> None:
    task = PreTraining.from_config(everything(data, tmp_path))
    assert len(task.train_dataset) == 48 + 24
    columns, folders = trunk_columns(["frontal"], "text"), (data, data.parent / "more")
    texts = [SampleDataset(folder, "train", columns).texts() for folder in folders]
    assert len(task.train_dataset.texts()) == sum(map(len, texts))


def test_continuing_from_a_saved_model(finished: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_run(data, tmp_path, model={"path": str(finished / "model"), "overrides": {"mask_ratio": 0.5}})
    task = PreTraining.from_config(config)
    assert task.model.config.mask_ratio == 0.5
    expected = load_file(finished / "model" / "model.safetensors")
    assert torch.equal(task.model.mlm_head.decoder.weight, expected["mlm_head.decoder.weight"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"prepare": None, "path": "nowhere"}}, "nowhere does not exist: make it with m3ae prepare"),
        ({"data": {"image_columns": ["image"]}}, "no column 'image'; it has id, split, frontal"),
        ({"data": {"max_text_length": 80}}, "max_text_length must be at most 64, got 80"),
        ({"tokenizer": {"path": "nowhere"}}, "No tokenizer in 'nowhere'"),
        ({"model": {"path": "nowhere"}}, "no saved M3AE model in 'nowhere'"),
        ({"model": {"overrides": {"image_config": {"image_size": 30}}}}, "multiple of patch_size"),
        ({"model": {"overrides": {"hiden_size": 30}}}, "overrides.hiden_size: unknown key; did you mean hidden_size"),
    ],
)
def test_bad_input_is_explained(data: Path, tmp_path: Path, sections: dict, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        PreTraining.from_config(tiny_run(data, tmp_path, **sections))


BOTH_SIDES = [{"id": f"r{i}", "image": 9 * i, "text": [f"row {i} is here"]} for i in range(6)]
IMAGES_ALONE, TEXTS_ALONE = {"image_columns": ["image"], "text_column": None}, {"image_columns": []}


def sided(folder: Path, output: Path, data: dict, splits: tuple[str, ...] = ("train", "validation"), **sections: dict):
    """A run on six rows a split, with or without its images and texts."""
    write_splits(folder, dict.fromkeys(splits, BOTH_SIDES))
    options = {"prepare": None, "image_columns": ["image"], "allow_test_rows": True, **data}
    return tiny_run(folder, output, data=options, evaluation={"word_groups": {}}, **sections)


@pytest.mark.parametrize("data", [IMAGES_ALONE, TEXTS_ALONE], ids=["images", "texts"])
@pytest.mark.parametrize("model", [{}, {"schedule": "joint", "itc_weight": 1.0}], ids=["separate", "joint"])
def test_one_side_is_enough_to_learn_from(tmp_path: Path, data: dict, model: dict) -> None:
    splits = ("train", "validation", "test")
    config = sided(tmp_path / "data", tmp_path / "run", data, splits, model={"overrides": model})
    metrics = train(config, PreTraining.from_config(config))
    (measured,) = {"mim_loss", "mlm_loss"} & {name.removeprefix("test/") for name in metrics}
    assert measured == ("mim_loss" if data is IMAGES_ALONE else "mlm_loss")
    assert metrics["test/loss"] == metrics[f"test/{measured}"] > 0
    assert not any("text_to_image" in name or "itm" in name for name in metrics)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert (tmp_path / "run" / "figures" / "reconstructions.png").exists() == (data is IMAGES_ALONE)


def test_without_validation_rows_a_run_has_to_say_so(tmp_path: Path) -> None:
    config = sided(tmp_path / "data", tmp_path / "run", {}, ("train",))
    with pytest.raises(ValueError, match=r"no split 'validation': training.validate_every=2 measures .*=null trains"):
        PreTraining.from_config(config)
    config = sided(tmp_path / "more", tmp_path / "run", {}, ("train",), training={"validate_every": None})
    metrics = train(config, PreTraining.from_config(config))
    assert metrics["best"] is None and (tmp_path / "run" / "figures" / "reconstructions.png").is_file()


@pytest.mark.parametrize(
    ("data", "overrides", "message"),
    [
        (IMAGES_ALONE, {"mim_weight": 0.0}, "mim_weight: got 0 for training rows without texts"),
        (TEXTS_ALONE, {"mlm_weight": 0.0}, "mlm_weight: got 0 for training rows without images"),
        ({"image_columns": [], "text_column": "other"}, {}, "no train row of .* has an image or a text"),
    ],
)
def test_rows_that_nothing_learns_from_are_refused(tmp_path: Path, data: dict, overrides: dict, message: str) -> None:
    rows = [row | {"other": None} for row in BOTH_SIDES]
    config = sided(tmp_path / "data", tmp_path / "run", data, model={"overrides": overrides})
    write_splits(tmp_path / "none", {"train": rows, "validation": rows})
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "none"})})
    with pytest.raises(ValueError, match=message):
        PreTraining.from_config(config)


def test_a_checkpoint_of_another_size_is_explained(finished: Path, data: Path, tmp_path: Path) -> None:
    overrides = {"image_config": {"hidden_size": 64}}
    with pytest.raises(ValueError, match=r"have other sizes than the configuration asks for.*start a new model"):
        PreTraining.from_config(
            tiny_run(data, tmp_path, model={"path": str(finished / "model"), "overrides": overrides})
        )


def test_tokenizer_without_mask_token_is_explained(data: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some text"], 300)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="needs a tokenizer with a mask_token"):
        PreTraining.from_config(tiny_run(data, tmp_path, tokenizer={"path": str(tmp_path / "tokenizer")}))


def test_the_model_has_the_vocabulary_of_the_tokenizer(data: Path, tmp_path: Path) -> None:
    config = tiny_run(data, tmp_path, tokenizer={"vocab_size": 270})
    model, processor = open_model(config, M3AEForPreTraining, lambda: ["some text"])
    assert model.mlm_head.decoder.out_features == len(processor.tokenizer)
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id == 4


def evaluator(data: Path, tmp_path: Path, batch_size: int = 3) -> tuple[PreTraining, PreTrainingEvaluator]:
    task = PreTraining.from_config(tiny_run(data, tmp_path))
    return task, PreTrainingEvaluator(
        evaluation_samples(task.config, "validation"), task.evaluation_collate, Accelerator(cpu=True), batch_size
    )


def test_word_accuracy_hides_all_words_of_all_groups(data: Path, tmp_path: Path) -> None:
    task, measure = evaluator(data, tmp_path)
    pairs = [measure.dataset.first(index, index) for index in range(len(measure.dataset))]
    seen: list[str] = []

    def fill_in(model, batch, positions):
        for row in batch["input_ids"]:
            seen.append(task.processor.tokenizer.decode(row[row != 1]))
        return torch.full_like(positions, -1)

    measure._fill_in = fill_in  # type: ignore[method-assign]
    groups = {"side": ["left", "right"], "size": ["small", "moderate", "large"]}
    accuracy = measure.word_accuracy(task.model, groups, shuffled=False)
    assert accuracy["side_word_accuracy"] == accuracy["size_word_accuracy"] == 0
    assert any("left" in pair.text or "right" in pair.text for pair in pairs)
    assert not any(word in text.lower().split() for text in seen for words in groups.values() for word in words)
    sides = [word for pair in pairs for word in pair.text.lower().replace(".", "").split() if word in groups["side"]]
    most = max(sides.count("left"), sides.count("right"))
    assert accuracy["side_word_chance"] == pytest.approx(most / len(sides))


def test_metrics_do_not_depend_on_the_batch_size(data: Path, tmp_path: Path) -> None:
    found = []
    for batch_size in (2, 6):
        task, measure = evaluator(data, tmp_path, batch_size)
        with torch.no_grad():
            metrics = measure.masked_metrics(task.model.eval(), shuffled=False) | measure.retrieval(task.model, 5)
        found.append({name: value for name, value in metrics.items() if "itm" not in name and name != "loss"})
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    json.dumps(found[0])


def test_shuffling_changes_the_image_and_nothing_else(data: Path, tmp_path: Path) -> None:
    _, measure = evaluator(data, tmp_path)
    own = [pair for batch in measure._batches(shuffled=False) for pair in batch]
    shuffled = [pair for batch in measure._batches(shuffled=True) for pair in batch]
    assert [pair.text for pair in own] == [pair.text for pair in shuffled]
    assert all(a.image_id != b.image_id for a, b in zip(own, shuffled, strict=True))
    assert {pair.image_id for pair in own} == {pair.image_id for pair in shuffled}


def test_a_latent_head_learns_beside_and_generates(data: Path, tmp_path: Path) -> None:
    decoder = {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 1}
    modalities = {"image": {"kind": "image", **decoder}, "text": {"kind": "text", **decoder}}
    latent = {"size": 4, "num_tokens": 2, "beta_warmup": 0.5, "weight": 0.01, "modalities": modalities}
    config = tiny_run(
        data,
        tmp_path / "run",
        model={"overrides": {"latent": latent}},
        training={"max_steps": 2},
        evaluation={"retrieval_pairs": 0},
    )
    task = PreTraining.from_config(config)
    assert [task.step_inputs(step)["beta"].item() for step in range(2)] == [0, 1]
    train(config, task)
    final = read_metrics(config.output_dir / "metrics.jsonl")[-1]
    weighted = final["validation/mim_loss"] + final["validation/mlm_loss"] + final["validation/itm_loss"]
    weighted += 0.01 * final["validation/latent_loss"]
    assert final["validation/loss"] == pytest.approx(weighted)
    assert {"validation/kl", "test/nll_image", "test/nll_text", "test/shuffled_nll_text"} <= final.keys()
    assert "training/latent" in (config.output_dir / "metrics.jsonl").read_text()
    generator = M3AEForGeneration.from_pretrained(config.output_dir / "model").eval()
    made = generator.sample_prior(2)
    assert made["image"].shape == (2, 3, 32, 32) and len(made["text"]) == 2


def test_several_draws_of_masks_are_averaged(data: Path, tmp_path: Path) -> None:
    task, measure = evaluator(data, tmp_path)
    with torch.no_grad():
        first, both = (measure.masked_metrics(task.model.eval(), shuffled=True, draws=draws) for draws in (1, 2))
        visit, size = measure.dataset.first, len(measure.dataset)
        measure.dataset.first = lambda index, seed=0: visit(index, seed + size)  # type: ignore[method-assign]
        second = measure.masked_metrics(task.model.eval(), shuffled=True)
    assert first["mim_loss"] != second["mim_loss"]
    assert both["mim_loss"] == pytest.approx((first["mim_loss"] + second["mim_loss"]) / 2)
