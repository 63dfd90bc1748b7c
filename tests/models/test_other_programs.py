"""Models in other people's programs: accelerate, peft, quantisation."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, infer_auto_device_map

from m3ae import (
    M3AEForClassification,
    M3AEForGeneration,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForReportGeneration,
    M3AEModel,
)
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.tiny import tiny_batch, tiny_config, tiny_of, tiny_pairs

LATENT = {"size": 5, "num_tokens": 2, "learned_prior": 2}
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 1, "private_size": 2}


def modalities(**text: Any) -> dict[str, dict[str, Any]]:
    return {"image": {"kind": "image", "learn_scale": True, **SMALL}, "text": {"kind": "text", **SMALL, **text}}


def build(model_class: type[M3AEPreTrainedModel], **options: Any) -> tuple[M3AEPreTrainedModel, dict[str, Any]]:
    """A model and what it takes; all noise is given."""
    if model_class is M3AEForPreTraining:
        return tiny_of(model_class, itc_weight=1.0, **options), tiny_batch()
    if model_class is not M3AEForGeneration:
        negatives, labels = torch.tensor([[1], [2], [3], [0]]), tiny_pairs()["input_ids"]
        given = {M3AEForImageTextRetrieval: {"negatives": negatives}, M3AEForReportGeneration: {"labels": labels}}
        return tiny_of(model_class, itc_weight=1.0, **options), tiny_pairs() | given.get(model_class, {})
    torch.manual_seed(0)
    model = M3AEForGeneration(tiny_config(**options)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    pairs, latent = tiny_pairs(), model.latent
    count = len(latent.experts)
    inputs = {
        "image": {"pixel_values": pairs.pop("pixel_values").sigmoid()},
        "text": {name: pairs[name] for name in ("input_ids", "attention_mask")},
    }
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(2**count - 1, 4, 13, generator=draw)
    eps = torch.randn(2**count - 1, 4, latent.total_size, generator=draw)
    return model, {"modalities": inputs, "eps": eps, "text_noise": {"text": noise}}


GENERATORS = {
    "masked text": {"latent": {**LATENT, "modalities": modalities(max_length=14)}},
    "prefix, convolutions": {
        "latent": {
            **LATENT,
            "modalities": modalities(max_length=14, decoder="autoregressive", conditioning="prefix")
            | {"image": {"kind": "image", "decoder": "cnn", "conditioning": "prefix", **SMALL}},
        }
    },
}
CLASSES = (M3AEModel, M3AEForPreTraining, M3AEForQuestionAnswering, M3AEForClassification, M3AEForReportGeneration)
CASES = [
    *((c, {}) for c in CLASSES),
    (M3AEForImageTextRetrieval, {"num_negatives": 1}),
    *((M3AEForGeneration, options) for options in GENERATORS.values()),
]
every_class = pytest.mark.parametrize(("model_class", "options"), CASES)


def results(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """All that the public functions of a model compute."""
    found: list[Any] = [value for value in model(**inputs).values() if isinstance(value, torch.Tensor)]
    if isinstance(model, M3AEForPreTraining | M3AEForImageTextRetrieval):
        encode = model.m3ae if isinstance(model, M3AEForPreTraining) else model
        text = encode.encode_text(inputs["input_ids"], inputs["attention_mask"])
        image = encode.encode_image(inputs["pixel_values"])
        found += [model.score(text, image), model.itc_head.embed("image", image)]
    if isinstance(model, M3AEForGeneration):
        made = model.generate_modalities(inputs["modalities"], temperature=0.0)
        found += [*made.values(), *model.sample_prior(2, generator=torch.Generator().manual_seed(0)).values()]
        found.append(model.log_evidence(inputs["modalities"], 2, generator=torch.Generator().manual_seed(0)))
    return found


def same(model: Any, other: Any, inputs: dict[str, Any], tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        for expected, got in zip(results(model, inputs), results(other, inputs), strict=True):
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@every_class
def test_parameters_that_come_when_their_module_is_called(
    model_class: type[M3AEPreTrainedModel], options: dict[str, Any]
) -> None:
    """Offloaded parameters are on the meta device but while the module's own `forward` runs."""
    model, inputs = build(model_class, **options)
    offloaded, _ = build(model_class, **options)
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    same(model, offloaded, inputs)


@every_class
def test_a_part_on_disk(model_class: type[M3AEPreTrainedModel], options: dict[str, Any], tmp_path: Path) -> None:
    model, inputs = build(model_class, **options)
    model.save_pretrained(tmp_path)
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": model.get_memory_footprint() // 2, "disk": 10**9},
        no_split_module_classes=model._no_split_modules,
    )
    assert {"cpu", "disk"} <= set(places.values())
    loaded = model_class.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offloaded")
    same(model, loaded.eval(), inputs)


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_takes_what_its_processor_gives(
    model_class: type[M3AEPreTrainedModel], options: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model, inputs = build(model_class, **options)
    expected = [result.float() for result in results(model, inputs)]
    model.to(dtype).save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path).eval()
    assert model.dtype == dtype
    found = results(model, inputs)
    for value, other in zip(found, expected, strict=True):
        assert value.shape == other.shape and value.isfinite().all()
    if model_class is M3AEForGeneration:
        torch.testing.assert_close(found[0].float(), expected[0], rtol=0.05, atol=0.5)
    loss = model.train()(**inputs).get("loss")
    if loss is not None:
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def loss_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    output = model(**inputs)
    return output.pooler_output.sum() if output.get("loss") is None else output.loss


@every_class
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning", "ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize("layers", ["all-linear", ["qkv", "proj", "query", "value", "out_proj", "c_attn"]])
def test_adapters_learn_and_are_merged(
    model_class: type[M3AEPreTrainedModel], options: dict[str, Any], layers: Any
) -> None:
    peft = pytest.importorskip("peft")
    model, inputs = build(model_class, **options)
    if model_class in (M3AEForQuestionAnswering, M3AEForClassification):
        inputs = {**inputs, "labels": torch.tensor([0, 1, 1, 0])}
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights=False)
    adapted = peft.get_peft_model(model, settings)
    loss_of(adapted.train(), inputs).backward()
    unread = {name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in unread if "pooler" not in name}, unread
    adapted.eval()
    with torch.no_grad():
        before = loss_of(adapted, inputs)
        torch.testing.assert_close(loss_of(adapted.merge_and_unload(), inputs), before, rtol=1e-4, atol=1e-4)


@every_class
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_dynamically_quantised_layers_run(model_class: type[M3AEPreTrainedModel], options: dict[str, Any]) -> None:
    model, inputs = build(model_class, **options)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    layer = quantised.latent_head.experts["image"].output if model_class is M3AEForGeneration else quantised
    assert any("quantized" in type(module).__module__ for module in layer.modules())
    with torch.no_grad():
        for expected, got in zip(results(model, inputs), results(quantised, inputs), strict=True):
            assert got.shape == expected.shape and got.isfinite().all()
