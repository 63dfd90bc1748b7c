"""Generation on the one training loop: digits in small, and studies with a text."""

from collections import Counter
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file

from m3ae import M3AEForGeneration
from m3ae.data.samples import Visit
from m3ae.models.gaussians import beta_schedule
from m3ae.tasks.generation import Generation
from m3ae.training.config import RunConfig, make_config
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from m3ae.training.trained_model import prepare_model
from tests.data.small_folder import picture, stored, write_splits
from tests.tasks.test_pretraining import Killed, killing

MODALITIES: dict[str, dict[str, Any]] = {
    "image": {"kind": "image", "encoder": "mlp", "shape": [1, 8, 8], "hidden_size": 8, "private_size": 2},
    "speech": {"kind": "sequence", "shape": [4, 3], "hidden_size": 8},
    "label": {"kind": "label", "encoder": "none", "labels": ["a", "b"], "hidden_size": 8},
}


def row(number: int) -> dict[str, Any]:
    speech, volume = (np.full(shape, number % 2, np.float32) for shape in ((4, 3), (1, 4, 4, 4)))
    cells = {"image": stored(picture(number, (8, 8))), "speech": speech, "volume": volume.tolist()}
    cells["label"] = "ab"[number % 2]
    if number % 4 == 1:
        del cells["image"]
    text = ["Side left." if number % 2 else "Right."]
    labels = None if number == 2 else ["odd", "rare"] if number % 2 else ["even"]
    return {"id": f"r{number}", "text": text, "labels": labels, **cells}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = iter(range(100))
    splits = {
        name: [row(next(numbers)) for _ in range(n)] for name, n in (("train", 20), ("validation", 6), ("test", 5))
    }
    return write_splits(tmp_path_factory.mktemp("data") / "digits", **splits)


def run(folder: Path, output: Path, modalities: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    latent = {"size": 3, "num_samples": 2, "num_tokens": 2, "modalities": modalities or MODALITIES}
    options: dict[str, Any] = {
        "task": "generation",
        "output_dir": output,
        "data": {"path": folder},
        "model": {"size": "tiny", "overrides": {"latent": latent}},
        "optimizer": {"lr_multipliers": {}},
        "training": {
            "max_steps": 4,
            "batch_size": 4,
            "mixed_precision": "no",
            "validate_every": 2,
            "checkpoint_every": 2,
            "tracker": "none",
        },
        "generation": {"missing_rate": 0.3, "prior_components": 2},
    }
    for name, values in sections.items():
        options[name] = {**options.get(name, {}), **values}
    return make_config(options)


def test_a_run_resumes_exactly_and_leaves_a_model_with_its_prior(data: Path, tmp_path: Path) -> None:
    whole = run(data, tmp_path / "whole")
    train(whole, Generation.from_config(whole))
    parts = run(data, tmp_path / "parts")
    task = Generation.from_config(parts)
    task.collate = killing(task.collate, 4)
    with pytest.raises(Killed):
        train(parts, task)
    train(parts, Generation.from_config(parts), resume=True)
    weights = [load_file(config.output_dir / "model" / "model.safetensors") for config in (whole, parts)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())

    metrics = read_metrics(whole.output_dir / "metrics.jsonl")
    for split in ("validation", "test"):
        names = {f"{split}/{name}" for name in ("loss", "kl", "nll_image", "nll_speech", "nll_label")}
        assert names <= metrics[-1].keys()
    assert {"training/kl", "training/nll_image"} <= {name for record in metrics for name in record}
    model = M3AEForGeneration.from_pretrained(whole.output_dir / "model")
    assert model.sample_prior(3, "fitted")["speech"].shape == (3, 4, 3)
    card = (whole.output_dir / "model" / "README.md").read_text()
    assert "modalities image, label, speech, joined to a mopoe posterior over 3 latent" in card


def test_beta_depends_on_the_step_alone(data: Path, tmp_path: Path) -> None:
    task = Generation.from_config(run(data, tmp_path))
    found = [task.step_inputs(step)["beta"].item() for step in range(4)]
    assert found == pytest.approx([beta_schedule(step, 4, 0.25, 1.0) for step in range(4)]) == [0, 1, 1, 1]


def test_the_metrics_do_not_depend_on_the_batches(data: Path, tmp_path: Path) -> None:
    """The KL of the shared latent is exact."""
    modalities = {name: {**options, "private_size": 0} for name, options in MODALITIES.items()}
    found = []
    for size in (2, 6):
        task = Generation.from_config(run(data, tmp_path, modalities, evaluation={"batch_size": size}))
        with torch.no_grad():
            found.append(task.evaluate(task.model.eval(), Accelerator(cpu=True), "validation")["kl"])
    assert found[0] == pytest.approx(found[1])


def test_texts_have_a_tokenizer(data: Path, tmp_path: Path) -> None:
    text = {"kind": "text", "hidden_size": 8, "num_attention_heads": 2, "num_layers": 1, "max_length": 16}
    modalities = {"text": text, "speech": MODALITIES["speech"]}
    config = run(data, tmp_path, modalities, data={"max_text_length": 16}, tokenizer={"vocab_size": 270})
    task = Generation.from_config(config)
    batch = task.collate([task.train_dataset[visit] for visit in _visits(4)])
    assert task.model(**batch).loss.isfinite()
    task.save(task.model, tmp_path, {})
    again = Generation.from_config(run(data, tmp_path / "next", model={"path": str(tmp_path), "overrides": {}}))
    assert len(again.tokenizer) == len(task.tokenizer) == again.model.config.text_config.vocab_size
    assert torch.equal(
        again.model.latent_head.decoders["text"].embed.weight, task.model.latent_head.decoders["text"].embed.weight
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_several_sets_are_mixed_by_index_or_as_a_stream(data: Path, tmp_path: Path, streaming: bool) -> None:
    rows = [row(number) | {"id": f"other {number}"} for number in range(200, 208)]
    other = write_splits(tmp_path / "other", train=rows)
    modalities = {**MODALITIES, "text": {"kind": "text", "decoder": "transformer", "hidden_size": 8}}
    sections = {"data": {"also": [{"path": other, "weight": 2.0}], "streaming": streaming}}
    config = run(data, tmp_path / "run", modalities, tokenizer={"vocab_size": 270}, **sections)
    task = Generation.from_config(config)
    assert len(task.train_dataset.texts()) == 28 and len(task.training_rows) == 20
    if streaming:
        samples = list(islice(task.train_dataset.share(0, 1), 36))
    else:
        samples = [task.train_dataset[Visit(index)] for index in range(len(task.train_dataset))]
    assert sorted(Counter(sample.id for sample in samples if "other" in sample.id).values()) == [2] * 8
    assert len({sample.id for sample in samples}) == 28, "an epoch"
    assert task.model(**task.collate(samples[:4])).loss.isfinite()
    task.fit_prior(task.model, Accelerator(cpu=True))


def _visits(count: int) -> list[Any]:
    return [Visit(index, 0) for index in range(count)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label": {**MODALITIES["label"], "labels": ["a", "c"]}},
            r"label.labels: got \['a', 'c'\], but the training",
        ),
        ({"other": {"kind": "vector", "shape": [2]}}, "no column 'other'"),
    ],
)
def test_bad_modalities_are_explained(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generation.from_config(run(data, tmp_path, {**MODALITIES, **changes}))


def test_without_a_latent_head_there_is_nothing_to_train(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.overrides.latent: missing; expected the options"):
        Generation.from_config(run(data, tmp_path, model={"overrides": {}}))


def test_what_a_run_needs_at_its_end_is_checked_before_its_first_step(tmp_path: Path) -> None:
    numbers = count()
    rows = [row(next(numbers)) for _ in range(6)]

    def refused(message: str, splits: dict[str, list[dict[str, Any]]], **sections: Any) -> None:
        sections["data"] = {"allow_test_rows": True}
        folder = write_splits(tmp_path / str(next(numbers)), **splits)
        with pytest.raises(ValueError, match=message):
            Generation.from_config(run(folder, tmp_path / "run", **sections))

    refused(r"no split 'validation': .*validate_every=null", {"train": rows, "test": rows})
    splits = {"train": rows, "validation": rows[:2]}  # one of them has an image
    kept = run(write_splits(tmp_path / "kept", **splits), tmp_path / "run", data={"leave_out_test_rows": True})
    assert Generation.from_config(kept).training_rows.ids == [cells["id"] for cells in rows[1:]]
    silent = [cells | {"speech": None} for cells in rows]
    refused("latent.modalities.speech: no training row of", {"train": silent, "validation": rows})
    unknown = [*rows[:-1], rows[-1] | {"label": "new"}]
    for split in ("validation", "test"):
        refused("has the label 'new', which no training row has", {"train": rows, "validation": rows, split: unknown})
    empty = [cells | dict.fromkeys(MODALITIES) for cells in rows]
    refused("test, has a modality that z is inferred from", {"train": rows, "validation": rows, "test": empty})
    options = {"generation": {"text_options": {"num_beams": 2}}}
    refused("which only the decoder autoregressive has", {"train": rows, "validation": rows}, **options)


def test_training_hides_the_condition_of_a_conditional_model_and_never_its_target(data: Path, tmp_path: Path) -> None:
    names = ["image", "speech"]
    latent = {"size": 3, "modalities": MODALITIES, "kind": "joint", "objective": "cvae", "condition": names}
    model = {"size": "tiny", "overrides": {"latent": latent}}
    task = Generation.from_config(run(data, tmp_path, model=model, generation={"missing_rate": 1.0}))
    rows = [task.train_dataset[Visit(0, seed)] for seed in range(20)]
    batch = task.collate(rows)["modalities"]
    assert all(batch[name]["present"].all() for name in MODALITIES if name not in names)
    assert set(map(tuple, torch.stack([batch[name]["present"] for name in names], 1).tolist())) == {
        (True, False),
        (False, True),
    }


def test_a_run_with_a_discriminator_and_volumes_resumes_exactly(data: Path, tmp_path: Path) -> None:
    deceiving = {
        "image": {**MODALITIES["image"], "adversarial": {"weight": 0.1, "start": 0.5}},
        "volume": {"kind": "volume", "shape": [1, 4, 4, 4], "decoder": "implicit", "hidden_size": 8, "num_layers": 1},
    }
    whole, parts = (run(data, tmp_path / name, modalities=deceiving) for name in ("whole", "parts"))
    train(whole, Generation.from_config(whole))
    task = Generation.from_config(parts)
    assert [task.step_inputs(step)["progress"].item() for step in (0, 3)] == [0, 0.75]
    task.collate = killing(task.collate, 4)
    with pytest.raises(Killed):
        train(parts, task)
    train(parts, Generation.from_config(parts), resume=True)
    weights = [load_file(config.output_dir / "model" / "model.safetensors") for config in (whole, parts)]
    assert {"discriminators", "volume"} <= {part for name in weights[0] for part in name.split(".")}
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    names = {name for record in read_metrics(whole.output_dir / "metrics.jsonl") for name in record}
    assert "training/discriminator_accuracy_image" in names and "validation/adversarial_image" not in names


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_engines_that_shard_parameters_train_no_discriminator(
    data: Path, tmp_path: Path, engine: DistributedType
) -> None:
    deceiving = {"image": {**MODALITIES["image"], "adversarial": {"weight": 0.1, "start": 0.5}}}
    config = run(data, tmp_path, modalities=deceiving)
    accelerator = cast(Accelerator, SimpleNamespace(distributed_type=engine))
    with pytest.raises(ValueError, match=f"whole parameters in every process; got {engine.value}"):
        prepare_model(Generation.from_config(config).model, config, accelerator)
