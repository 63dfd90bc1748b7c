"""The decoder of reports: what it reads, and what `generate` writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from m3ae import M3AEForPreTraining, M3AEForReportGeneration
from m3ae.models.reports import Memory, token_costs
from tests.models.tiny import tiny_config, tiny_model, tiny_of, tiny_pairs

LENGTHS = {"min_new_tokens": 6, "max_new_tokens": 12}


def writer(**options: Any) -> M3AEForReportGeneration:
    model = tiny_of(M3AEForReportGeneration, **options)
    assert isinstance(model, M3AEForReportGeneration)
    for name, parameter in model.report_head.named_parameters():
        if "ln_" in name:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
        else:
            parameter.data *= 0.3
    return model


def images() -> dict[str, Tensor]:
    return {"pixel_values": tiny_pairs()["pixel_values"]}


def reports() -> Tensor:
    batch = tiny_pairs()
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def test_the_loss_is_that_of_each_next_token() -> None:
    model, labels = writer(), reports()
    output = model(**images(), labels=labels)
    assert output.logits.shape == (4, 12, 128)
    log_probabilities = output.logits.log_softmax(-1)
    costs = [
        -log_probabilities[row, place - 1, labels[row, place]]
        for row in range(4)
        for place in range(1, 12)
        if labels[row, place] >= 0
    ]
    torch.testing.assert_close(output.loss, torch.stack(costs).mean())
    torch.testing.assert_close(token_costs(output.logits, labels).sum(), torch.stack(costs).sum())


def test_a_token_sees_those_before_it_alone_and_the_image() -> None:
    model, labels = writer(), reports()
    logits = model(**images(), labels=labels).logits
    changed = labels.clone()
    changed[:, 5] = 9
    other = model(**images(), labels=changed).logits
    torch.testing.assert_close(other[:, :5], logits[:, :5])
    assert (other[:, 5] - logits[:, 5]).abs().amax() > 1e-3
    torch.testing.assert_close(model(**images()).logits, logits[:, :1])
    other = model(pixel_values=images()["pixel_values"].flip(0), labels=labels).logits
    assert (other[:, 0] - logits[:, 0]).abs().amax() > 1e-3


def test_greedy_decoding_is_the_same_without_the_cache_and_beams_are_likelier() -> None:
    model = writer()
    memory = model.encode(**images())
    greedy = model.generate(memory=memory, **LENGTHS)
    assert torch.equal(model.generate(**images(), use_cache=False, **LENGTHS), greedy)
    logits = model.decode(memory, greedy)[:, :-1]
    logits[..., [0, 1, 127]] = -torch.inf
    logits[:, :6, 2] = -torch.inf  # min_new_tokens
    ended = (greedy[:, :-1] == 2).cumsum(1) > 0
    assert torch.equal(greedy[:, 1:], logits.argmax(-1).masked_fill(ended, 1))

    def likelihood(ids: Tensor) -> Tensor:
        return -token_costs(model.decode(memory, ids), ids.masked_fill(ids == 1, -100)).sum()

    options = {"min_new_tokens": 8, "max_new_tokens": 8, "suppress_tokens": [0, 1, 2, 127]}  # of one length
    beams = model.generate(memory=memory, num_beams=16, **options)
    assert likelihood(beams) > likelihood(model.generate(memory=memory, **options))
    torch.manual_seed(0)
    drawn = [model.generate(memory=memory, do_sample=True, **LENGTHS).tolist() for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert len(model.generate(memory=memory, num_beams=3, num_return_sequences=2)) == 8


def test_padding_of_an_image_is_not_read() -> None:
    model, inputs = writer(), images()
    mask = torch.ones_like(inputs["pixel_values"][:, 0])
    mask[0, :8] = mask[0, 24:] = 0
    memory = model.encode(**inputs, pixel_mask=mask)
    assert memory.mask.sum(1)[:2].tolist() == [1 + 8, 1 + 16]
    inputs["pixel_values"] = torch.where(mask[:, None].bool(), inputs["pixel_values"], torch.nan)
    filled = model(**inputs, pixel_mask=mask, labels=reports()).logits
    expected = model.decode(memory, reports().clamp(min=0))
    torch.testing.assert_close(filled[:, 0], expected[:, 0], atol=1e-5, rtol=0)


def test_a_missing_view_or_text_is_not_read() -> None:
    model, labels = writer(views=["frontal", "lateral"]), reports()
    batch = tiny_pairs() | {"text_present": torch.tensor([True, True, False, True])}
    views = torch.stack([batch["pixel_values"], batch["pixel_values"].flip(0)], 1)
    present = torch.tensor([[True, False], [True, True], [False, False], [False, True]])
    batch |= {"pixel_values": views, "image_present": present}
    logits = model(**batch, labels=labels).logits
    absent = ~present[..., None, None, None]
    other = torch.where(absent, views + 3, views)
    words = batch["input_ids"].clone()
    words[2] = 9
    torch.testing.assert_close(
        model(**batch | {"pixel_values": other, "input_ids": words}, labels=labels).logits, logits
    )
    alone = {"pixel_values": views[:1, 0], "input_ids": words[:1], "attention_mask": batch["attention_mask"][:1]}
    torch.testing.assert_close(model(**alone, labels=labels[:1]).logits, logits[:1])
    assert logits.isfinite().all() and model.encode(**batch).mask[2].all(), "a sample without anything"
    ones = Memory(torch.ones(1, 2, 3), torch.tensor([[True, False]]))
    assert ones.mean().tolist() == [[1, 1, 1]]


def test_a_model_is_saved_with_its_way_to_write(tmp_path: Path) -> None:
    model = writer()
    model.generation_config.update(num_beams=2, max_new_tokens=9)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert isinstance(again, M3AEForReportGeneration) and again.generation_config.num_beams == 2
    written = model.generate(**images())
    assert torch.equal(again.generate(**images()), written) and written.shape[1] <= 10
    assert torch.equal(written, model.generate(**images(), num_beams=2, max_new_tokens=9))
    torch.testing.assert_close(again(**images(), labels=reports()).loss, model(**images(), labels=reports()).loss)


@pytest.mark.filterwarnings("ignore:Some weights")
def test_a_pre_trained_trunk_starts_it_and_words_may_be_added(tmp_path: Path) -> None:
    trained = tiny_model()
    trained.save_pretrained(tmp_path)
    model = M3AEForReportGeneration.from_pretrained(tmp_path)
    for name, parameter in trained.m3ae.named_parameters():
        assert torch.equal(model.m3ae.get_parameter(name), parameter)
    assert {model.parameter_group(name) for name, _ in model.report_head.named_parameters(prefix="report_head")} == {
        "heads"
    }
    model.resize_token_embeddings(140)
    assert model(**images(), labels=torch.full((4, 3), 139)).logits.shape == (4, 3, 140)
    model.save_pretrained(tmp_path / "reports")
    _, info = M3AEForPreTraining.from_pretrained(tmp_path / "reports", output_loading_info=True)
    assert not info["unexpected_keys"]


def test_layers_are_an_option() -> None:
    assert len(M3AEForReportGeneration(tiny_config(report_num_hidden_layers=1)).report_head.transformer.h) == 1
