"""The Hugging Face contract: saving, loading, Auto classes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVisualQuestionAnswering

from m3ae import (
    M3AEForClassification,
    M3AEForGeneration,
    M3AEForImageTextRetrieval,
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForReportGeneration,
    M3AEModel,
)
from m3ae.models.flows import FlowPrior
from m3ae.models.modeling import M3AEPreTrainedModel
from tests.models.tiny import tiny_batch, tiny_model, tiny_of, tiny_pairs
from tests.models.tiny_latent import DIGITS, IMAGE, STUDY, latent_config


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


@pytest.fixture
def nan_where_nothing_is_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory holds nan then
    yield
    torch.use_deterministic_algorithms(False)


LATENTS = {
    "joint": latent_config(STUDY, kind="joint", objective="telbo", initial_std=0.1),
    "meme": latent_config(
        {name: {**IMAGE, "private_size": 0} for name in "ab"}, kind="moe", objective="meme", num_samples=2
    ),
    "learned": latent_config(STUDY, learned_prior=3),
    "flow": latent_config(STUDY, flow_prior="maf"),
    "digits": latent_config(DIGITS),
    "autoregressive": latent_config(
        {"a": {**IMAGE, "decoder": "autoregressive", "likelihood": "categorical", "levels": 4}}
    ),
}


@pytest.mark.usefixtures("nan_where_nothing_is_written")
@pytest.mark.parametrize("name", LATENTS)
def test_everything_that_a_checkpoint_lacks_is_initialised(name: str) -> None:
    config = LATENTS[name]
    assert torch.empty(3).isnan().all()
    loaded = M3AEForGeneration.from_pretrained(None, config=config, state_dict={})
    fresh = dict(M3AEForGeneration(config).named_parameters())
    assert not [name for name, value in loaded.state_dict().items() if not value.isfinite().all()]
    for parameter, value in loaded.named_parameters():
        varies = [weights.std(correction=0) > 0 for weights in (value, fresh[parameter])]
        assert varies[0] == varies[1], parameter
    if isinstance(prior := loaded.latent_head.shared_prior, FlowPrior):
        z = torch.randn(4, 5)
        torch.testing.assert_close(prior.log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(-1))


CLASSES = [
    M3AEForPreTraining,
    M3AEForQuestionAnswering,
    M3AEForClassification,
    M3AEForImageTextRetrieval,
    M3AEForReportGeneration,
    M3AEModel,
]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def outputs(model: M3AEPreTrainedModel) -> torch.Tensor:
    """What a model of any class gives for the tiny pairs, negatives and masks drawn with a fixed seed."""
    batch = tiny_pairs()
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    generator = torch.Generator().manual_seed(0)
    draws = isinstance(model, M3AEForPreTraining | M3AEForImageTextRetrieval)
    with torch.no_grad():
        output = model(**batch, **({"generator": generator} if draws else {}))
    if isinstance(model, M3AEForPreTraining):
        return torch.cat(
            [part.float().flatten() for part in (output.mim_logits, output.mlm_logits, output.itm_logits)]
        )
    return (output.pooler_output if isinstance(model, M3AEModel) else output.logits).float()


# Each line of standard output: the folder, and where its outputs are.
FRESH = """
import sys, torch, m3ae
from transformers import AutoConfig
from tests.models.test_saving import outputs
for folder in sys.argv[1:]:
    name = AutoConfig.from_pretrained(folder).architectures[0]
    torch.save(outputs(getattr(m3ae, name).from_pretrained(folder).eval()), folder + "/outputs.pt")
"""


def test_a_fresh_process_gives_identical_outputs(tmp_path) -> None:
    """Every class, float32 and bfloat16, in one file and in shards, without a network."""
    expected = {}
    for model_class in CLASSES:
        for name, dtype in DTYPES.items():
            model = tiny_of(model_class).to(dtype)
            for size in ("5GB", "100KB"):
                folder = tmp_path / f"{model_class.__name__}-{name}-{size}"
                model.save_pretrained(folder, max_shard_size=size)
                assert len(list(folder.glob("*.safetensors"))) > 1 or size == "5GB"
                expected[folder] = outputs(model)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", FRESH, *map(str, expected)], env=environment, check=True, timeout=240)
    for folder, reference in expected.items():
        assert torch.equal(torch.load(folder / "outputs.pt"), reference), folder.name


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


def test_question_answering_is_registered_and_carries_its_answers(tmp_path) -> None:
    model = tiny_of(M3AEForQuestionAnswering, id2label={0: "yes", 1: "no", 2: "left"})
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert isinstance(loaded, M3AEForQuestionAnswering)
    assert loaded.config.id2label == {0: "yes", 1: "no", 2: "left"}
