import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from m3ae.models.encoders import ImageEncoder
from m3ae.training.optim import learning_rate_factor, parameter_groups
from m3ae.training.sections import OptimizerConfig
from tests.models.tiny import tiny_config, tiny_model


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


def rates(model: nn.Module, **settings: object) -> dict[str, float]:
    """The learning rate of each parameter, the heads' being 1."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, **{"lr_multipliers": {}} | settings))
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_the_rate_decays_with_the_layers_above():
    found = rates(tiny_model(), layer_decay=0.5)
    image, text, fusion = "m3ae.image_encoder.vit.", "m3ae.text_encoder.", "m3ae.fusion.layers."
    expected = {
        1.0: ["mim_head.", "mlm_head.", "itm_head.", "m3ae.poolers."],
        0.5: [f"{fusion}1."],
        0.25: [f"{fusion}0.", "m3ae.projections.", "m3ae.modality_types.", f"{image}norm."],
        0.125: [f"{image}blocks.1.", f"{text}encoder.layer.1."],
        0.0625: [f"{image}blocks.0.", f"{text}encoder.layer.0."],
        0.03125: [f"{image}{name}" for name in ("cls_token", "pos_embed", "patch_embed.", "norm_pre.")]
        + [f"{text}embeddings."],
    }
    for rate, prefixes in expected.items():
        for prefix in prefixes:
            of_prefix = {name: value for name, value in found.items() if name.startswith(prefix)}
            assert of_prefix and set(of_prefix.values()) == {rate}, (prefix, of_prefix)
    assert sum(name.startswith(tuple(prefixes)) for prefixes in expected.values() for name in found) == len(found)
    both = rates(tiny_model(), layer_decay=0.5, lr_multipliers={"fusion": 5, "heads": 3})
    assert both[f"{fusion}0.text.self_attention.query.weight"] == 5 * 0.25 and both["itm_head.weight"] == 3
    assert both[f"{image}blocks.1.norm1.weight"] == 0.125
    own = rates(tiny_model(), lr_multipliers={"encoder": 0.5, "encoder.text": 0.25})
    assert (own[f"{image}cls_token"], own[f"{text}embeddings.word_embeddings.weight"]) == (0.5, 0.25)


@pytest.mark.parametrize(
    ("model_type", "first", "last", "embeddings"),
    [
        ("distilbert", "transformer.layer.0.", "transformer.layer.1.", ["embeddings."]),
        ("modernbert", "layers.0.", "layers.1.", ["embeddings."]),
        ("deberta-v2", "encoder.layer.0.", "encoder.layer.1.", ["embeddings.", "encoder.rel_embeddings."]),
        ("electra", "encoder.layer.0.", "encoder.layer.1.", ["embeddings.", "embeddings_project."]),
    ],
)
def test_the_layers_of_any_text_encoder_count(model_type: str, first: str, last: str, embeddings: list[str]):
    options = {"model_type": model_type, "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 2, "pad_token_id": 1}
    more = {"electra": {"embedding_size": 16}, "deberta-v2": {"relative_attention": True}}.get(model_type, {})
    found = rates(tiny_model(text_config=options | more, mask_token_id=4), layer_decay=0.5)
    for rate, prefixes in {0.125: [last], 0.0625: [first], 0.03125: embeddings}.items():
        for prefix in prefixes:
            values = {value for name, value in found.items() if name.startswith(f"m3ae.text_encoder.{prefix}")}
            assert values == {rate}, prefix


def test_an_encoder_alone_decays_as_in_timm():
    vit = VisionTransformer(32, 8, embed_dim=32, num_heads=2, depth=2, num_classes=2, pre_norm=True)
    names = {id(parameter): name for name, parameter in vit.named_parameters()}
    groups = param_groups_layer_decay(vit, layer_decay=0.75)
    theirs = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    theirs |= dict.fromkeys(("norm_pre.weight", "norm_pre.bias"), theirs["cls_token"])  # as in timm from 1.0.31 on
    model = nn.ModuleDict({"image_encoder": ImageEncoder(tiny_config())})
    found = {name.removeprefix("image_encoder.vit."): rate for name, rate in rates(model, layer_decay=0.75).items()}
    assert found.pop("norm.weight") == found.pop("norm.bias") == theirs["head.weight"] == 1  # as in BEiT and MAE
    assert found == pytest.approx({name: theirs[name] for name in found}) and len(found) == len(theirs) - 4


def test_a_decay_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"layer_decay: got 0.5, but no layer of encoders or fusion is trained"):
        parameter_groups(Model(), OptimizerConfig(layer_decay=0.5))
    model = tiny_model()
    model.m3ae.requires_grad_(False)
    with pytest.raises(ValueError, match="no layer"):
        parameter_groups(model, OptimizerConfig(layer_decay=0.5))


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
