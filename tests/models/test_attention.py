from typing import Any

import pytest
import torch

from m3ae import M3AEForGeneration, M3AEForImageTextRetrieval, M3AEForPreTraining, M3AEModel
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.test_other_programs import CASES, build, every_class
from tests.models.tiny import tiny_of, tiny_pairs
from tests.models.tiny_latent import digits_batch, latent_model


@every_class
def test_what_is_asked_for_is_added(model_class: type[M3AEPreTrainedModel], options: dict[str, Any]) -> None:
    model, inputs = build(model_class, **options)
    plain = model(**inputs)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [*output.keys()] == [*plain.keys(), "hidden_states", "attentions"]
    shapes = [tuple(state.shape[1:]) for state in output.hidden_states]
    words = 2 if model_class is M3AEForPreTraining else 12  # of which the last layer is computed
    assert shapes == [(12, 32), (12, 32), (words, 32)]
    assert [tuple(weights.shape[1:]) for weights in output.attentions] == [(2, 12, 12), (2, words, 12)]
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
        assert not weights[1, :, :, 10:].any() or model_class is M3AEForImageTextRetrieval, "padding"
    for name, value in plain.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(output[name], value, atol=1e-4, rtol=1e-4)  # by other attention
    assert model.config._attn_implementation == "sdpa" and model(**inputs).keys() == plain.keys()
    for name in ("output_hidden_states", "return_dict"):
        setattr(model.config, name, name != "return_dict")
    values = model(**inputs)
    assert isinstance(values, tuple) and len(values) == len(plain) + 1
    torch.testing.assert_close(values[-1][-1], output.hidden_states[-1], atol=1e-5, rtol=1e-5)
    assert isinstance(model(**inputs, return_dict=True, output_hidden_states=False), type(plain))


def test_hidden_states_are_those_of_the_fusion() -> None:
    model, pairs = tiny_of(M3AEModel), tiny_pairs()
    output = model(**pairs, output_hidden_states=True)
    states = model.fuse(model.encode(**pairs))
    for state, expected in zip(output.hidden_states, states, strict=True):
        torch.testing.assert_close(state, expected["text"])
    assert output.hidden_states[-1] is output.text_hidden_state
    some = model(**pairs, output_hidden_states=[0, -1, 7]).hidden_states
    assert some[1] is None and len(some) == 3
    torch.testing.assert_close((some[0], some[2]), (output.hidden_states[0], output.hidden_states[2]))
    image = model(pixel_values=pairs["pixel_values"], output_hidden_states=True, output_attentions=True)
    assert image.hidden_states[-1] is image.image_hidden_state and len(image.attentions) == 2


def test_a_model_without_layers_of_attention_has_none() -> None:
    output = latent_model()(digits_batch(), output_hidden_states=True, output_attentions=True)
    assert (output.hidden_states, output.attentions) == ((), ())


def test_a_generator_without_text_shows_its_image_encoder() -> None:
    model = latent_model({"image": {"kind": "image", "hidden_size": 16}})
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert isinstance(model, M3AEForGeneration)
    output = model({"image": {"pixel_values": pixels}}, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == 3 * [(2, 17, 32)]
    assert [tuple(weights.shape) for weights in output.attentions] == 2 * [(2, 2, 17, 17)]


@pytest.mark.parametrize(("model_class", "options"), CASES[:2])
def test_gradients_reach_hidden_states(model_class: type[M3AEPreTrainedModel], options: dict[str, Any]) -> None:
    model, inputs = build(model_class, **options)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    for value in (output.hidden_states[0], output.attentions[0]):
        value.retain_grad()
    output[0].flatten()[0].backward()
    assert output.hidden_states[0].grad.any() and output.attentions[0].grad.any()
