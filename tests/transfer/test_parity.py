"""Comparison with stored numbers, at other sizes; those of the published code are in test_golden.py."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m3ae.transfer.checkpoints import CheckpointError
from m3ae.transfer.convert import TASKS
from m3ae.transfer.parity import Difference, compare, table
from tests.models.tiny import tiny_batch, tiny_of, tiny_pairs
from tests.transfer.released import released_by_others, save

SIZES = {
    "image_config": {"image_size": 64, "patch_size": 16, "hidden_size": 64, "num_attention_heads": 1},
    "text_config": {"num_hidden_layers": 1},
    "num_hidden_layers": 3,
    "mim_layer": -1,
}


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Inputs for 64 px and 16 patches."""
    pairs, noise = tiny_pairs(), torch.rand(4, 16, generator=torch.Generator().manual_seed(5))
    pairs["pixel_values"] = pairs["pixel_values"].repeat(1, 1, 2, 2)
    return pairs | {"mim_noise": noise}


def expect(folder: Path, inputs: dict[str, torch.Tensor], **values: torch.Tensor) -> Path:
    stored = {f"inputs.{name}": value for name, value in inputs.items()}
    stored |= {name.replace("__", "."): value.detach() for name, value in values.items()}
    save_file({name: value.contiguous().clone() for name, value in stored.items()}, folder / "expected.safetensors")
    return folder / "expected.safetensors"


def test_another_size_and_depth(tmp_path, inputs) -> None:
    model = tiny_of(TASKS["pretraining"], **SIZES)
    path = save(tmp_path, released_by_others(model))
    pairs = {name: inputs[name] for name in tiny_pairs()}
    output = model(**pairs, image_noise=inputs["mim_noise"], generator=torch.Generator().manual_seed(0))
    output.losses["mim"].backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    expected = expect(
        tmp_path,
        inputs,
        features__fused_cls=model.m3ae(**pairs).pooler_output,
        mim__logits=output.mim_logits,
        mim__loss=output.losses["mim"],
        total__loss=output.losses["mim"],
        grad_norm__total=torch.stack(norms).norm(),
        irtr__score=model.itm_head(model.m3ae(**pairs).pooler_output)[:, 1] + 1e-3,
        mim__other=torch.zeros(2),
    )
    found = {difference.name: difference for difference in compare(path, expected)}
    assert {name for name, difference in found.items() if not difference.ok} == {"irtr.score", "mim.other"}
    assert found["irtr.score"].largest == pytest.approx(1e-3, rel=1e-2)
    assert found["grad_norm.total"].allowed == 1e-4


def test_a_model_without_heads_of_pretraining_still_has_features(tmp_path, inputs) -> None:
    model = tiny_of(TASKS["classification"], **SIZES)
    path = save(tmp_path, released_by_others(model))
    pairs = {name: inputs[name] for name in tiny_pairs()}
    text = model.m3ae(**pairs).text_hidden_state
    expected = expect(tmp_path, inputs, features__fused_text=text, cls__logits=model(**pairs).logits)
    assert all(difference.ok for difference in compare(path, expected))
    with pytest.raises(CheckpointError, match="no head for 'question_answering'"):
        compare(path, expect(tmp_path, inputs, vqa__logits=model(**pairs).logits))


def test_expected_values_that_are_none(tmp_path) -> None:
    path = save(tmp_path, released_by_others(tiny_of(TASKS["classification"], **SIZES)))
    with pytest.raises(ValueError, match="lacks anything but inputs"):
        compare(path, expect(tmp_path, tiny_batch()))
    with pytest.raises(ValueError, match=r"lacks inputs\.pixel_values, inputs\.input_ids"):
        compare(path, expect(tmp_path, {}, x=torch.zeros(1)))
    with pytest.raises(ValueError, match="is not a safetensors file of expected values"):
        compare(path, path)


def test_table_marks_what_exceeds_its_tolerance() -> None:
    rows = [Difference("mim.loss", (), 2e-7, 1e-5), Difference("vqa.logits", (4, 13), float("nan"), 1e-5)]
    lines = table(rows).splitlines()
    assert lines[1].split() == ["mim.loss", "scalar", "2.0e-07", "1e-05"]
    assert lines[2].split() == ["vqa.logits", "4×13", "nan", "1e-05", "FAILED"]
