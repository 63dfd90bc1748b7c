"""The Hugging Face contract: saving, loading, Auto classes."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from m3ae import M3AEForPreTraining, M3AEModel
from tests.models.tiny import tiny_batch, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


def test_save_and_load_gives_equal_outputs(saved) -> None:
    model, loaded = tiny_model(), AutoModelForPreTraining.from_pretrained(saved).eval()
    assert isinstance(loaded, M3AEForPreTraining)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert torch.equal(model.mim_head.positions, loaded.mim_head.positions)
    assert torch.equal(model(**tiny_batch()).loss, loaded(**tiny_batch()).loss)


def test_the_trunk_loads_from_a_pretraining_checkpoint(saved) -> None:
    trunk, info = M3AEModel.from_pretrained(saved, output_loading_info=True)
    assert isinstance(AutoModel.from_pretrained(saved), M3AEModel)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(trunk.modality_types.weight, tiny_model().m3ae.modality_types.weight)


def test_missing_weights_are_initialised_and_the_others_kept(saved, tmp_path) -> None:
    trunk = tiny_model().m3ae
    trunk.save_pretrained(tmp_path)
    model, info = M3AEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and not info["unexpected_keys"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    vit = model.m3ae.image_encoder.vit
    assert torch.equal(vit.pos_embed, trunk.image_encoder.vit.pos_embed)
    assert 0 < model.mim_head.mask_token.std() < 0.1
    assert torch.equal(model.mim_head.positions, tiny_model().mim_head.positions)


def test_weights_with_one_parameter_missing_are_not_drawn_anew(tmp_path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("vit.cls_token")}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = M3AEForPreTraining.from_pretrained(tmp_path)
    vit = loaded.m3ae.image_encoder.vit
    assert torch.equal(vit.pos_embed, model.m3ae.image_encoder.vit.pos_embed)
    assert 0 < vit.cls_token.std() < 0.1


def test_a_fresh_process_reproduces_the_loss(saved) -> None:
    code = (
        "import m3ae, torch\n"
        "from transformers import AutoModelForPreTraining\n"
        "from tests.models.tiny import tiny_batch\n"
        f"model = AutoModelForPreTraining.from_pretrained({str(saved)!r}).eval()\n"
        "print(model(**tiny_batch()).loss.item())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) == pytest.approx(tiny_model()(**tiny_batch()).loss.item(), abs=1e-6)


def test_bfloat16_and_eager_attention(saved) -> None:
    reference = tiny_model()(**tiny_batch()).loss
    eager = M3AEForPreTraining.from_pretrained(saved, attn_implementation="eager").eval()
    assert eager.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(**tiny_batch()).loss, reference, atol=1e-5, rtol=0)
    half = M3AEForPreTraining.from_pretrained(saved, dtype=torch.bfloat16).eval()
    batch = tiny_batch()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    torch.testing.assert_close(half(**batch).loss.float(), reference, atol=0.1, rtol=0)


def test_config_is_registered(saved) -> None:
    assert AutoConfig.from_pretrained(saved).model_type == "m3ae"
