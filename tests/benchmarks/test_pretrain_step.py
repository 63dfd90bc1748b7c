"""The arithmetic that is counted is what the model does, and the command runs."""

import json
import multiprocessing
import sys
from pathlib import Path

import needed_flops
import pretrain_step
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from m3ae import M3AEConfig, M3AEForPreTraining
from tests.benchmarks.conftest import running_here
from tests.models.tiny import tiny_batch, tiny_config

LENGTH, PREDICTED = 12, 2


@pytest.mark.parametrize("schedule", ["separate", "joint"])
@pytest.mark.parametrize("overrides", [{}, {"mim_layer": -1, "mask_ratio": 0.4}], ids=["published", "other"])
def test_flops_are_those_of_the_model(schedule: str, overrides: dict[str, float]) -> None:
    config = tiny_config(schedule=schedule, num_hidden_layers=3, **overrides)
    batch = tiny_batch(4, LENGTH)
    labels = torch.full((4, LENGTH), -100)
    labels[:, 1 : 1 + PREDICTED] = 7
    assert needed_flops.num_predicted(config, LENGTH) == PREDICTED
    batch |= {"mlm_input_ids": batch["input_ids"], "mlm_labels": labels}
    batch |= {"image_ids": torch.arange(4), "text_ids": torch.arange(4)}
    model = M3AEForPreTraining(config).train()
    # The fused kernel computes its weights again in the backward pass, which is not needed but faster.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(**batch).loss
        forward = counter.get_total_flops()
        loss.backward()
    lengths = [LENGTH] * 4
    unread = 0
    if schedule == "joint":  # of a mismatched pair the class tokens alone are read, but the layer computes whole rows
        image = 1 + needed_flops.num_visible(config)
        read_last = image if needed_flops.mim_depth(config) == 3 else 1
        computed = needed_flops.fuse(config, LENGTH, image, 3, 1 + PREDICTED, read_last)
        unread = 2 * (computed - needed_flops.fuse(config, LENGTH, image, 3, 1, 1))
    assert forward == needed_flops.forward_flops(config, lengths, schedule) + unread
    assert counter.get_total_flops() == needed_flops.step_flops(config, lengths, schedule) + 3 * unread


def test_the_command_prints_and_writes_the_ratio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(setting: pretrain_step.Setting, *, latent: bool = False) -> M3AEConfig:
        return tiny_config(schedule=setting.schedule, **({"latent": {"num_samples": 1}} if latent else {}))

    monkeypatch.setattr(pretrain_step.Setting, "config", config)
    monkeypatch.setattr(pretrain_step, "running", running_here)
    monkeypatch.setattr(pretrain_step, "matrix_peak", lambda setting: 1e9)
    command = (
        "pretrain_step.py --batch-size 4 --baseline --also latent checkpointing --bucketed --rounds 3 --steps 2 --json"
    )
    monkeypatch.setattr(sys, "argv", [*command.split(), str(tmp_path / "figures.json")])
    pretrain_step.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratio"] == sorted(figures["ratios"])[1] > 0
    assert 0.9 < figures["memory_ratio"] < 1.1  # the same process here
    assert figures["package"]["needed_flops_per_step"] == figures["baseline"]["needed_flops_per_step"] > 0
    printed = capsys.readouterr().out
    assert f"ratio {figures['ratio']:.2f}" in printed
    for name in ("latent", "checkpointing"):
        assert f"{name}: {sorted(figures[f'{name}_ratios'])[1]:.2f} times as long" in printed


def test_a_procedure_runs_in_a_process_of_its_own() -> None:
    setting = pretrain_step.Setting("tiny", 2, "joint", "float32", 0.0, "cpu", False, 1)
    with pretrain_step.running(setting, "package", [[12, 64]]) as take_steps:
        measured = take_steps()
    assert measured.processor > 0 and measured.wall > 0 and measured.memory > 2**20


def test_a_process_that_fails_is_one_message() -> None:
    setting = pretrain_step.Setting("tiny", 2, "joint", "float32", 0.0, "cpu", False, 1, image_size=33)
    with (
        pretrain_step.running(setting, "package", [[12, 64]]) as take_steps,
        pytest.raises(SystemExit, match=r"process of package ended, its error is above; .*image_size=33"),
    ):
        take_steps()


def test_a_process_that_is_killed_says_so() -> None:
    setting = pretrain_step.Setting("tiny", 2, "joint", "float32", 0.0, "cpu", False, 1)
    with pretrain_step.running(setting, "package", [[12, 64]]) as take_steps:
        take_steps()
        (process,) = multiprocessing.active_children()
        process.kill()
        with pytest.raises(SystemExit, match=r"process of package was killed, as for lack of memory"):
            take_steps()


@pytest.mark.parametrize(
    ("preset", "image_size", "widths", "depths", "vocabulary"),
    [
        ("small", 224, (384, 384), (6, 6, 6, 4), 50265),
        ("base", 288, (768, 768), (12, 12, 6, 4), 50265),
        ("phantom", 96, (192, 192), (4, 2, 2, 2), 1000),
    ],
)
def test_presets_have_the_stated_sizes(
    preset: str, image_size: int, widths: tuple[int, int], depths: tuple[int, ...], vocabulary: int
) -> None:
    config = pretrain_step.Setting(preset, 8, "separate", "float32", 0.0, "cpu", False, 1).config()
    image, text = config.image_config, config.text_config
    assert (image.image_size, image.hidden_size, config.hidden_size) == (image_size, *widths)
    found = (image.num_hidden_layers, text.num_hidden_layers, config.num_hidden_layers)
    assert (*found, config.decoder_num_hidden_layers) == depths
    assert (text.vocab_size, text.hidden_dropout_prob, config.attention_probs_dropout_prob) == (vocabulary, 0.0, 0.0)
    assert config.itc_weight == 0.0
