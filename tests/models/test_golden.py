"""The published implementation's numbers, from its own released checkpoint format."""

import json

import pytest
import torch
from safetensors.torch import load_file

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.models.conversion import convert_name, convert_state_dict

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "official_m3ae"
    settings = json.loads((folder / "config.json").read_text())
    published, vision = settings["config"], settings["vision"]
    config = M3AEConfig(
        image_config={
            "image_size": published["image_size"],
            "patch_size": vision["patch"],
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
        },
        text_config=settings["roberta"],
        hidden_size=published["hidden_size"],
        num_hidden_layers=published["num_top_layer"],
        num_attention_heads=published["num_heads"],
        intermediate_size=published["hidden_size"] * published["mlp_ratio"],
        mask_ratio=published["mim_prob"],
        mim_layer=published["mim_layer"],
        norm_pix_loss=published["norm_pix_loss"],
        decoder_hidden_size=published["mim_decoder_hidden_size"],
        decoder_num_hidden_layers=published["mim_decoder_num_layers"],
        decoder_num_attention_heads=published["mim_decoder_num_heads"],
    )
    released = torch.load(folder / "m3ae.ckpt", weights_only=True)["state_dict"]
    heads = ("vqa_head", "cls_head", "irtr_head")
    state = convert_state_dict({key: value for key, value in released.items() if not key.startswith(heads)})
    model = M3AEForPreTraining(config).eval()
    positions = state.pop("mim_head.positions")
    model.load_state_dict(state)
    assert torch.equal(model.mim_head.positions, positions)
    return model, load_file(folder / "expected.safetensors")


def inputs(expected: dict[str, torch.Tensor], *names: str) -> list[torch.Tensor]:
    return [expected[f"inputs.{name}"] for name in names]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_features(golden) -> None:
    model, expected = golden
    pixels, ids, mask = inputs(expected, "pixel_values", "input_ids", "attention_mask")
    trunk = model.m3ae
    assert_close(trunk.image_encoder(pixels), expected["features.vision_encoder.last_hidden_state"])
    text = trunk.text_encoder(ids, attention_mask=mask).last_hidden_state
    assert_close(text, expected["features.text_encoder.last_hidden_state"])
    output = trunk(pixels, ids, mask)
    assert_close(output.text_hidden_state, expected["features.fused_text"])
    assert_close(output.image_hidden_state, expected["features.fused_image"])
    assert_close(output.pooler_output, expected["features.fused_cls"])


def test_objectives_and_gradients(golden) -> None:
    model, expected = golden
    pixels, ids, mask, noise = inputs(expected, "pixel_values", "input_ids", "attention_mask", "mim_noise")
    masked, labels = inputs(expected, "mlm_input_ids", "mlm_labels")
    output = model(pixels, ids, mask, mlm_input_ids=masked, mlm_labels=labels, image_noise=noise)
    assert_close(output.mim_logits, expected["mim.logits"])
    assert torch.equal(output.mim_mask.float(), expected["mim.mask"])
    assert_close(model.mim_target(pixels), expected["mim.target"])
    assert_close(output.losses["mim"], expected["mim.loss"])
    assert_close(output.losses["mlm"], expected["mlm.loss"])
    at = output.mlm_positions[..., None].expand(-1, -1, expected["mlm.logits"].shape[-1])
    assert_close(output.mlm_logits, expected["mlm.logits"].gather(1, at))

    matched, negative = inputs(expected, "itm_labels", "negative_pixel_values")
    images = torch.where(matched[:, None, None, None] == 1, pixels, negative)
    trunk = model.m3ae
    fused = trunk.fuse({"text": trunk.encode_text(ids, mask), "image": trunk.encode_image(images)})[-1]
    logits = model.itm_head(trunk.pool(fused))
    assert_close(logits, expected["itm.logits"])
    itm = torch.nn.functional.cross_entropy(logits, matched)
    assert_close(itm, expected["itm.loss"])

    model.zero_grad()
    total = output.losses["mim"] + output.losses["mlm"] + itm
    assert_close(total, expected["total.loss"])
    total.backward()
    norms = {name: parameter.grad.norm() for name, parameter in model.named_parameters() if parameter.grad is not None}
    for key, value in expected.items():
        if key.startswith("grad_norm.") and key != "grad_norm.total":
            name = convert_name(key.removeprefix("grad_norm."))
            torch.testing.assert_close(norms[name], value.reshape(()), rtol=1e-4, atol=0)
    # The stored total leaves out the matching head: with it, the square of the norm is larger by exactly its own.
    overall = torch.stack([norm for name, norm in norms.items() if not name.startswith("itm_head")]).norm()
    torch.testing.assert_close(overall, expected["grad_norm.total"].reshape(()), rtol=1e-4, atol=0)
