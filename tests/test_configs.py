"""Every shipped config parses, builds, and says what it needs."""

from pathlib import Path

import pytest
import torch

from m3ae import M3AEConfig, M3AEForPreTraining
from m3ae.tasks.pretraining import check_text_length
from m3ae.training.config import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path: Path) -> None:
    config = load_config(path)
    overrides = dict(config.model.overrides)
    overrides["text_config"] = {"vocab_size": config.tokenizer.vocab_size} | overrides.get("text_config", {})
    model_config = M3AEConfig.named(config.model.size, **overrides)
    check_text_length(model_config, config.data.max_text_length)
    with torch.device("meta"):
        model = M3AEForPreTraining(model_config)
    groups = {model.parameter_group(name) for name, _ in model.named_parameters()}
    assert groups == {"encoder", "fusion", "heads"} and set(config.optimizer.lr_multipliers) <= groups


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_opens_with_command_hardware_time_and_expectation(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"accelerate launch scripts/pretrain.py configs/pretrain/{path.name}" in text
    for word in ("hardware", "time", "expect"):
        assert f"# {word} " in text


def test_base_is_the_published_recipe() -> None:
    config = load_config(ROOT / "configs" / "pretrain" / "base.yaml")
    optimizer, training = config.optimizer, config.training
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.warmup) == (1e-5, (0.9, 0.98), 0.01, 0.1)
    assert optimizer.lr_multipliers == {"heads": 5, "fusion": 5} and training.max_steps == 100_000
    assert 8 * training.batch_size * training.gradient_accumulation_steps == 256
