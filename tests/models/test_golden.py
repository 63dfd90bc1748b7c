"""The published implementation's numbers, from its own released checkpoint format."""

import pytest
import torch
from safetensors.torch import load_file

from m3ae import M3AEForPreTraining
from m3ae.transfer.convert import TASKS, build, convert, release
from m3ae.transfer.parity import compare, table
from m3ae.transfer.released import read_released

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "official_m3ae"


@pytest.fixture(scope="module")
def pretrained(golden) -> M3AEForPreTraining:
    return build(read_released(golden / "m3ae.ckpt"))[0]


def test_every_stored_number_is_matched(golden) -> None:
    differences = compare(golden / "m3ae.ckpt", golden / "expected.safetensors")
    assert len(differences) == 24 and all(difference.ok for difference in differences), table(differences)


def test_masked_words_are_predicted_where_they_are(golden, pretrained) -> None:
    """`compare` reads the logits of all words; training computes those of masked ones only."""
    expected = load_file(golden / "expected.safetensors")
    names = ("pixel_values", "input_ids", "attention_mask")
    words = {name: expected[f"inputs.{name}"] for name in ("mlm_input_ids", "mlm_labels")}
    output = pretrained(*(expected[f"inputs.{name}"] for name in names), **words)
    at = output.mlm_positions[..., None].expand(-1, -1, expected["mlm.logits"].shape[-1])
    torch.testing.assert_close(output.mlm_logits, expected["mlm.logits"].gather(1, at), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.losses["mlm"], expected["mlm.loss"], atol=1e-5, rtol=0)


def test_nothing_is_left_out_but_on_purpose(golden) -> None:
    released = read_released(golden / "m3ae.ckpt")
    _, report = build(released)
    left_out = sum(map(len, report.left_out.values()))
    assert len(report.mapped) + left_out == len(released.state) == 306
    reasons = {"CLIP's text tower", "RoBERTa's pooler", "an index table"}
    assert report.left_out.keys() == reasons | {f"another task's {head}_head" for head in ("vqa", "cls", "irtr")}


@pytest.mark.parametrize("task", TASKS)
def test_there_and_back_with_each_head(golden, tmp_path, task: str) -> None:
    convert(golden / "m3ae.ckpt", tmp_path / "ours", task)
    release(tmp_path / "ours", tmp_path / "m3ae.ckpt")
    original, back = read_released(golden / "m3ae.ckpt"), read_released(tmp_path / "m3ae.ckpt")
    assert back.state.keys() <= original.state.keys()
    assert all(torch.equal(value, original.state[name]) for name, value in back.state.items())
    sizes = (
        "hidden_size",
        "num_top_layer",
        "num_heads",
        "image_size",
        "patch_size",
        "mim_prob",
        "mim_layer",
        "mlp_ratio",
    )
    ours, theirs = back.settings["config"], original.settings["config"]
    assert {name: ours[name] for name in sizes} == {name: theirs[name] for name in sizes}
    assert ours.keys() == theirs.keys()
