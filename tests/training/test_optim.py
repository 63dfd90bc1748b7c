import pytest
import torch
from torch import nn

from m3ae.training.optim import learning_rate_factor, parameter_groups
from m3ae.training.sections import OptimizerConfig


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
        self.head = nn.Linear(4, 1)

    def parameter_group(self, name: str) -> str:
        return "heads" if name.startswith("head.") else "encoder"


def test_groups_split_by_name_and_decay():
    model = Model()
    groups = parameter_groups(model, OptimizerConfig(lr=0.1, weight_decay=0.01, lr_multipliers={"heads": 5}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {g["name"]: (g["lr"], g["weight_decay"], [names[id(p)] for p in g["params"]]) for g in groups}
    assert found == {
        "encoder without decay": (0.1, 0.0, ["token", "norm.weight", "norm.bias"]),
        "encoder": (0.1, 0.01, ["positions"]),
        "heads without decay": (0.5, 0.0, ["head.bias"]),
        "heads": (0.5, 0.01, ["head.weight"]),
    }


def test_without_grouping_all_parameters_are_the_encoder():
    groups = parameter_groups(nn.Linear(2, 2), OptimizerConfig(lr_multipliers={}))
    (decayed, vectors) = sorted(groups, key=lambda group: group["name"])
    assert (decayed["name"], vectors["name"]) == ("encoder", "encoder without decay")


def test_unknown_multiplier_lists_the_groups():
    expected = r"got groups \['heads.decoders.tail'\], expected some of \['encoder', 'fusion', 'heads'\]"
    with pytest.raises(ValueError, match=expected):
        parameter_groups(Model(), OptimizerConfig(lr_multipliers={"heads.decoders.tail": 5}))


def test_the_most_specific_multiplier_counts():
    class Parts(Model):
        def parameter_group(self, name: str) -> str:
            return {"positions": "heads.decoders.text", "head.weight": "heads.decoders.image"}.get(name, "heads")

    def rates(**multipliers: float) -> dict[str, float]:
        groups = parameter_groups(Parts(), OptimizerConfig(lr=1.0, weight_decay=0.1, lr_multipliers=multipliers))
        return {group["name"].removeprefix("heads.decoders."): group["lr"] for group in groups}

    assert rates(heads=5) == {"text": 5, "image": 5, "heads without decay": 5}
    decoders = {"heads.decoders": 3}
    assert rates(**decoders, heads=5) == {"text": 3, "image": 3, "heads without decay": 5}
    assert rates(**decoders, **{"heads.decoders.image": 2}) == {"text": 3, "image": 2, "heads without decay": 1}


def test_a_multiplier_of_a_group_that_a_model_lacks_is_nothing():
    groups = parameter_groups(Model(), OptimizerConfig(lr=0.1, lr_multipliers={"fusion": 5}))  # as by default
    assert {group["lr"] for group in groups} == {0.1}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0, 0.0]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rate_factor(schedule, expected):
    settings = OptimizerConfig(schedule=schedule, warmup=2)
    assert [learning_rate_factor(settings, step, 6) for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.1, 25), (1, 1), (40, 40)])
def test_warmup_in_steps_or_as_a_fraction(warmup: float, steps: int):
    factors = [learning_rate_factor(OptimizerConfig(warmup=warmup), step, 250) for step in range(250)]
    assert factors.index(1.0) == max(0, steps - 1)
