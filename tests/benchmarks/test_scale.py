"""The plan for many GPUs: its page says what its script computes, and the arithmetic is that of the papers."""

from dataclasses import replace
from pathlib import Path

import pytest
import scale
import scale_measure
import torch

from tests.models.tiny import tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def plan() -> scale.Plan:
    return scale.plan()


def test_the_page_has_the_tables_that_the_script_computes(plan: scale.Plan) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == scale.fill(page, plan), "run benchmarks/scale.py docs/scale.md"
    assert page.count("|\n| ---") == len(scale.tables(plan)) == 6
    with pytest.raises(ValueError, match="0 marks <!-- constants -->"):
        scale.fill("", plan)


def test_engines_share_what_they_say(plan: scale.Plan) -> None:
    whole = 16 * plan.parameters  # weights, gradients and two moments in float32
    alone = replace(plan, values=plan.values | {"gpus": 1.0, "batch": 0.0}, largest=0)
    beside = {"DDP": 4, "ZeRO-1": 0, "ZeRO-2": 0, "ZeRO-3": 4, "FSDP2": 4}  # buckets; a whole model to be measured
    for engine in scale.ENGINES:
        assert sum(alone.memory(engine).values()) == whole + beside[engine] * plan.parameters
    many = replace(alone, values=alone.values | {"gpus": 1e12})
    left = {engine: round(sum(many.memory(engine).values()) / plan.parameters) for engine in scale.ENGINES}
    assert left == {"DDP": 20, "ZeRO-1": 8, "ZeRO-2": 4, "ZeRO-3": 4, "FSDP2": 4}  # a whole model to be measured


def test_young_s_interval_loses_least(plan: scale.Plan) -> None:
    def lost(interval: float) -> float:
        return plan.checkpoint_seconds(1) / interval + interval / 2 / plan.seconds_between_failures

    best = plan.interval(1)
    assert lost(best) < min(lost(0.9 * best), lost(1.1 * best))
    restarts = plan.values["restart"] / plan.seconds_between_failures
    assert plan.lost_share(1) == pytest.approx(lost(best) + restarts)


def test_what_is_not_hidden_lengthens_the_step(plan: scale.Plan) -> None:
    slow = replace(plan, values=plan.values | {"between": plan.values["between"] / 100})
    assert slow.step_seconds("DDP") == pytest.approx(slow.traffic_seconds("DDP") + slow.compute_seconds / 3)
    assert plan.step_seconds("DDP") == plan.compute_seconds


def test_activations_grow_with_the_samples() -> None:
    config = tiny_config(hidden_dropout_prob=0.0)
    one, four = (scale_measure.activation_bytes(config, samples, tokens=8) for samples in (2, 8))
    assert one == pytest.approx(four, rel=0.3)
    assert scale_measure.slice_bytes(1000) > 100
    assert torch.is_grad_enabled()
