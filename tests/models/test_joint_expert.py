"""The expert of everything that is present."""

from pathlib import Path

import pytest
import torch

from m3ae import LatentConfig, M3AEForGeneration
from tests.models.tiny import tiny_model
from tests.models.tiny_latent import (
    DIGITS,
    STUDY,
    digits_batch,
    latent_config,
    latent_model,
    rows,
    study_batch,
    without,
)


@pytest.mark.parametrize(("modalities", "batch"), [(DIGITS, digits_batch(4)), (STUDY, study_batch(4))])
def test_it_reads_what_is_present_and_nothing_else(modalities: dict, batch: dict) -> None:
    model = latent_model(modalities, kind="joint")
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]]).bool()
    incomplete = without({name: batch[name] for name in sorted(batch)}, present)
    q = model.infer_latent(incomplete).shared.components
    assert (q.mu[0, 3] == 0).all() and (q.logvar[0, 3] == 0).all(), "nothing tells nothing"
    for row in range(4):
        alone = model.infer_latent(rows(incomplete, [row])).shared.components
        torch.testing.assert_close(alone.mu[0, 0], q.mu[0, row])
    names = [name for name, there in zip(sorted(batch), present[:, 1], strict=True) if there]
    left_out = model.infer_latent({name: batch[name] for name in names}).shared.components
    torch.testing.assert_close(left_out.mu[0, 1], q.mu[0, 1])
    whole = model.infer_latent(batch).shared.components
    assert (whole.mu[0, 1] - q.mu[0, 1]).abs().max() > 1e-3, "what is added changes it"
    for found, given in zip(model.infer_subsets(batch, [names, [*batch]]), (names, [*batch]), strict=True):
        torch.testing.assert_close(found.mean, model.infer_latent({name: batch[name] for name in given}).mean)


def test_streams_are_fused_before_they_are_read() -> None:
    model, batch = latent_model(STUDY, kind="joint", objective="jmvae"), study_batch(4)
    model(batch).loss.backward()
    for name, parameter in [*model.m3ae.fusion.named_parameters(), *model.latent_head.joint_expert.named_parameters()]:
        assert parameter.grad.isfinite().all(), name
    assert model.m3ae.fusion.layers[0]["image"].cross_attention.query.weight.grad.any()
    assert not latent_model(DIGITS, kind="joint").latent_head.fuses
    before = model.infer_latent(batch).mean
    torch.nn.init.normal_(model.m3ae.fusion.layers[0]["text"].output.weight)
    assert (model.infer_latent(batch).mean - before).abs().max() > 1e-4
    text = {"text": batch["text"]}
    torch.testing.assert_close(model.infer_latent(text).mean, model._infer_experts(text).shared.mu[2])


def test_it_starts_from_the_fusion_of_a_pretrained_trunk_and_is_saved(tmp_path: Path) -> None:
    trunk = tiny_model()
    trunk.save_pretrained(tmp_path / "trunk")
    latent = LatentConfig(size=5, num_tokens=2, kind="joint", objective="telbo")
    model = M3AEForGeneration.from_pretrained(tmp_path / "trunk", latent=latent).eval()
    pretrained = trunk.m3ae.fusion.state_dict()
    assert all(torch.equal(value, pretrained[name]) for name, value in model.m3ae.fusion.state_dict().items())
    model.save_pretrained(tmp_path / "model")
    again = M3AEForGeneration.from_pretrained(tmp_path / "model").eval()
    batch = {name: tensors for name, tensors in study_batch(4).items() if name != "lateral"}
    batch["image"] = batch.pop("frontal")
    torch.testing.assert_close(again.infer_latent(batch).mean, model.infer_latent(batch).mean)


@pytest.mark.parametrize("std", [1.0, 0.1])
def test_experts_start_with_the_deviation_of_the_configuration_and_keep_what_is_saved(
    tmp_path: Path, std: float
) -> None:
    model = M3AEForGeneration(latent_config(DIGITS, kind="joint", objective="jmvae", initial_std=std)).eval()
    batch = digits_batch(4)
    for q in model.infer_subsets(batch, [["glyph"], [*batch]]):
        for component in q.shared.components.logvar:
            torch.testing.assert_close((component / 2).exp().mean(), torch.tensor(std), rtol=0.05, atol=0)
    torch.nn.init.normal_(model.latent_head.joint_expert.output[-1].bias)
    model.save_pretrained(tmp_path)
    again = M3AEForGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again.infer_latent(batch, joint=True).mean, model.infer_latent(batch, joint=True).mean)
