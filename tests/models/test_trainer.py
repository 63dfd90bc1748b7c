"""transformers' Trainer with every class that has a loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from transformers import (
    AutoModelForImageClassification,
    DataCollatorForLanguageModeling,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

from m3ae import (
    M3AEForClassification,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForReportGeneration,
    M3AEImageProcessor,
    M3AEProcessor,
)
from m3ae.data.tokenizer import train_tokenizer
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.test_other_programs import CASES, build
from tests.models.tiny import tiny_batch, tiny_config, tiny_model, tiny_pairs

ROWS = 6
RECOMPUTING = "activation_checkpointing"  # `gradient_checkpointing` in earlier versions
if RECOMPUTING not in TrainingArguments.__dataclass_fields__:
    RECOMPUTING = "gradient_checkpointing"
LABELLED = (M3AEForQuestionAnswering, M3AEForClassification)
TRAINABLE = [case for case in CASES if case[0].__name__ != "M3AEModel"]


def rows(model_class: type[M3AEPreTrainedModel], inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The samples of a batch, again and again, without the noise that stands beside them."""

    def row(values: Any, number: int) -> Any:
        return {k: row(v, number) for k, v in values.items()} if isinstance(values, dict) else values[number]

    wanted = {"pixel_values", "input_ids", "attention_mask", "modalities"}
    samples = [row({k: v for k, v in inputs.items() if k in wanted}, number % 4) for number in range(ROWS)]
    if model_class in LABELLED:
        samples = [sample | {"labels": number % 2} for number, sample in enumerate(samples)]
    if model_class is M3AEForReportGeneration:
        samples = [sample | {"labels": sample["input_ids"]} for sample in samples]
    return samples


def trainer(model: M3AEPreTrainedModel, data: list[dict[str, Any]], folder: Path, **options: Any) -> Trainer:
    arguments: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", **options.pop("arguments", {})}
    settings = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **arguments,
    )
    options.setdefault("data_collator", default_collate)
    return Trainer(model, settings, train_dataset=data, eval_dataset=data, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("model_class", "options"), TRAINABLE)
def test_it_trains_evaluates_and_keeps_the_best(
    model_class: type[M3AEPreTrainedModel], options: dict[str, Any], tmp_path: Path
) -> None:
    model, inputs = build(model_class, **options)
    every_step = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    arguments = {**every_step, "load_best_model_at_end": True, RECOMPUTING: True}
    run = trainer(model, rows(model_class, inputs), tmp_path, arguments=arguments)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and all(np.isfinite(losses)) and run.state.best_metric == min(losses)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    loaded = model_class.from_pretrained(run.state.best_model_checkpoint)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("model_class", LABELLED)
def test_metrics_are_computed_of_plain_logits(model_class: type[M3AEPreTrainedModel], tmp_path: Path) -> None:
    model, inputs = build(model_class)

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    run = trainer(model, rows(model_class, inputs), tmp_path, compute_metrics=accuracy)
    predicted = run.predict(run.eval_dataset)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert predicted.predictions.shape == (ROWS, 2)
    np.testing.assert_allclose(predicted.predictions[:4], logits, atol=1e-5)
    expected = (predicted.predictions.argmax(-1) == np.arange(ROWS) % 2).mean()
    assert run.evaluate()["eval_accuracy"] == pytest.approx(expected)


def test_accumulated_batches_are_averaged(tmp_path: Path) -> None:
    """A loss is a mean: two halves of a batch, accumulated, are the batch."""

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                found.append((logs["loss"], logs["grad_norm"]))

    found: list[tuple[float, float]] = []
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for steps in (1, 2):
        torch.manual_seed(0)
        model = M3AEForClassification(tiny_config(text_config=plain, **plain))
        data = [sample | {"labels": n % 2} for n, sample in enumerate(rows(M3AEForClassification, tiny_pairs()))][:4]
        arguments = {"max_steps": 1, "logging_steps": 1, "gradient_accumulation_steps": steps}
        run = trainer(model, data, tmp_path, arguments=arguments, callbacks=[Losses()])
        run.args.per_device_train_batch_size = run.args.train_batch_size if steps == 2 else 4
        run._train_batch_size = 4 // steps
        run.train()
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_masked_words_of_a_collator_of_transformers() -> None:
    model, batch = tiny_model(), tiny_batch()
    labels = batch["input_ids"].where(batch["text_noise"][..., 0] < 0.3, -100)
    masked = batch["input_ids"].where(labels == -100, 127)
    expected = model(**batch, mlm_input_ids=masked, mlm_labels=labels)
    output = model(**batch | {"input_ids": masked}, labels=labels)
    for name, loss in expected.losses.items():
        torch.testing.assert_close(output.losses[name], loss)


def test_pretraining_with_a_collator_of_transformers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["clear lungs", "no effusion"], 300)
    model = M3AEForPreTraining(tiny_config(text_config={"vocab_size": len(tokenizer)}))
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)

    def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        masked = mask([{"input_ids": sample["input_ids"]} for sample in samples])
        return {**masked, "pixel_values": torch.stack([sample["pixel_values"] for sample in samples])}

    data = rows(M3AEForPreTraining, tiny_pairs())
    assert np.isfinite(trainer(model, data, tmp_path, data_collator=collate).evaluate()["eval_loss"])


def test_images_are_classified_by_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = {0: "no finding", 1: "effusion", 2: "nodule"}
    model = M3AEForClassification(tiny_config(id2label=names)).eval()
    model.save_pretrained(tmp_path)
    M3AEProcessor(M3AEImageProcessor.for_size(32), train_tokenizer(["a text"], 270)).save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is M3AEForClassification
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))
    scores = pipeline("image-classification", str(tmp_path))(image)
    pixels = M3AEImageProcessor.for_size(32)(image, return_tensors="pt")["pixel_values"]
    expected = model(pixels).logits[0].softmax(-1)
    assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in scores} == {
        names[number]: value for number, value in enumerate(expected.tolist())
    }
