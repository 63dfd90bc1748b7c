from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from m3ae import M3AEForImageTextRetrieval, M3AEForPreTraining
from m3ae.models.modeling import M3AEPreTrainedModel
from m3ae.models.pairs import ContrastedPairs
from m3ae.training.gradient_cache import beside_others
from m3ae.training.loop import train
from m3ae.training.progress import read_metrics
from tests.models.tiny import tiny_batch, tiny_of, tiny_pairs
from tests.training.tiny_task import TinyPreTraining
from tests.training.toy import ToyTask, toy_config

ALONE = {"mim_weight": 0.0, "mlm_weight": 0.0, "itm_weight": 0.0, "itc_weight": 2.0}
IDS = {"image_ids": torch.tensor([0, 1, 2, 3, 3, 5]), "text_ids": torch.tensor([0, 1, 2, 3, 4, 0])}
PRESENT = {"text_present": torch.tensor([True] * 5 + [False])}


def retrieval(**options: Any) -> tuple[M3AEPreTrainedModel, dict[str, Tensor]]:
    model = tiny_of(M3AEForImageTextRetrieval, itc_weight=2.0, num_negatives=0, **options)
    return model.train(), tiny_pairs(6) | IDS | PRESENT


def pretraining(**options: Any) -> tuple[M3AEPreTrainedModel, dict[str, Tensor]]:
    return tiny_of(M3AEForPreTraining, **ALONE, **options).train(), tiny_batch(6) | IDS | PRESENT


def chunks(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: rows[start : start + 2] for name, rows in batch.items()} for start in (0, 2, 4)]


def cached_gradients(model: M3AEPreTrainedModel, batch: dict[str, Tensor]) -> tuple[list[float], dict[str, Tensor]]:
    losses = []
    for micro_batch in beside_others(model, chunks(batch), nullcontext):
        loss = model(**micro_batch).loss
        (loss / 3).backward()
        losses.append(loss.item())
    return losses, gradients(model)


def gradients(model: M3AEPreTrainedModel) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and "itc_head.log_scale" in found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", [retrieval, pretraining])
@pytest.mark.parametrize("options", [{}, {"itc_loss": "sigmoid"}, {"schedule": "joint"}], ids=str)
def test_gradients_are_those_of_the_whole_batch(make: Any, options: dict[str, str]) -> None:
    dry = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, batch = make(**options, **dry, text_config=dry)
    expected = model(**batch)
    expected.loss.backward()
    whole = gradients(model)
    losses, found = cached_gradients(model, batch)
    assert losses == pytest.approx([expected.loss.item()] * 3, rel=1e-5)
    assert_close(found, whole)


@pytest.mark.parametrize("make", [retrieval, pretraining])
def test_the_second_pass_draws_the_dropout_of_the_first(make: Any) -> None:
    model, batch = make(image_config={"dropout": 0.1, "drop_path_rate": 0.5})
    head, trunk = model.itc_head, model.m3ae
    torch.manual_seed(0)
    encoded = []
    for rows in chunks(batch):  # in one graph, with the dropout that micro-batches draw one after the other
        texts = rows["input_ids"], rows["attention_mask"], rows["text_present"]
        text = trunk.encode_text(*texts) if make is retrieval else None
        image = trunk.encode_image(rows["pixel_values"])
        vectors = head.embed("text", text or trunk.encode_text(*texts)), head.embed("image", image)
        encoded.append(ContrastedPairs(*vectors, rows["image_ids"], rows["text_ids"], rows["text_present"]))
    pairs = ContrastedPairs(*map(torch.cat, zip(*encoded, strict=True)))
    logits = head.log_scale.exp() * pairs.texts @ pairs.images.T
    expected = 2 * head.loss(logits, pairs.same(), pairs.valid)
    expected.backward()
    whole = gradients(model)
    torch.manual_seed(0)
    losses, found = cached_gradients(model, batch)
    assert losses == pytest.approx([expected.item()] * 3, rel=1e-5)
    assert_close(found, whole)
    _, redrawn = cached_gradients(model, batch)
    name = "m3ae.projections.image.weight"
    assert (redrawn[name] - found[name]).norm() > 0.1 * found[name].norm()


def test_other_losses_stay_those_of_their_micro_batch() -> None:
    model = tiny_of(M3AEForPreTraining, itc_weight=1.0)
    batch = tiny_batch(6) | IDS
    whole = model(**batch).losses["itc"]
    for micro_batch, plain in zip(beside_others(model, chunks(batch), nullcontext), chunks(batch), strict=True):
        found, expected = model(**micro_batch).losses, model(**plain).losses
        torch.testing.assert_close(found.pop("itc"), whole)
        assert expected.pop("itc") != whole and found == expected


def test_a_run_contrasts_all_samples_of_a_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("m3ae.training.loop.prepare_cpu", lambda accelerator: None)  # threads cost a tiny model time

    def losses(name: str, **settings: Any) -> list[float]:
        train(
            toy_config(tmp_path / name, max_steps=2, log_every=1, validate_every=None, **settings),
            TinyPreTraining(**ALONE),
        )
        return [line["training/itc"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "lr" in line]

    whole = losses("whole", batch_size=6, gradient_accumulation_steps=1)
    cached = losses("cached", batch_size=2, gradient_accumulation_steps=3, contrast_over="step")
    assert cached == pytest.approx(whole, rel=1e-5) and len(cached) == 2


def test_what_has_no_effect_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="contrast_over: got step with gradient_accumulation_steps=1"):
        toy_config(tmp_path, contrast_over="step", gradient_accumulation_steps=1)
    with pytest.raises(ValueError, match="contrast_over: got step, but the ToyModel has no contrastive head"):
        train(toy_config(tmp_path, contrast_over="step"), ToyTask())
    model, batch = retrieval()
    del batch["text_ids"]
    with pytest.raises(ValueError, match="contrast across micro-batches needs them"):
        model(**next(beside_others(model, chunks(batch), nullcontext)))
