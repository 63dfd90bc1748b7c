import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from m3ae.models.encoders import Block
from tests.models.tiny import tiny_batch, tiny_config, tiny_model


def with_drop_path(rate: float, layers: int = 4) -> dict[str, object]:
    return {"image_config": {"num_hidden_layers": layers, "drop_path_rate": rate}}


def rates(model: torch.nn.Module) -> list[float]:
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in model.m3ae.image_encoder.vit.blocks]


def test_drop_path_grows_with_depth_as_in_timm() -> None:
    vit = VisionTransformer(8, 4, embed_dim=8, num_heads=1, depth=4, drop_path_rate=0.3)
    theirs = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    found = rates(tiny_model(**with_drop_path(0.3)))
    assert found == pytest.approx([0, 0.1, 0.2, 0.3]) and found == pytest.approx(theirs)
    assert rates(tiny_model(**with_drop_path(0.3, layers=1))) == [0]
    with pytest.raises(ValueError, match=r"drop_path_rate must lie between 0 and 0.99, got 1.5"):
        tiny_config(**with_drop_path(1.5))


def test_drop_path_has_no_parameters_and_evaluation_none_of_it() -> None:
    plain, dropping = tiny_model(**with_drop_path(0.0)), tiny_model(**with_drop_path(0.9))
    expected, found = plain.state_dict(), dropping.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    torch.testing.assert_close(dropping(**tiny_batch()).losses, plain(**tiny_batch()).losses, rtol=0, atol=0)
    plain.train(), dropping.train()
    torch.manual_seed(0)
    expected = plain(**tiny_batch()).loss
    torch.manual_seed(0)
    assert dropping(**tiny_batch()).loss != expected


def test_drop_path_keeps_or_leaves_out_the_update_of_a_whole_sample() -> None:
    torch.manual_seed(0)
    config = tiny_config()
    block = Block(config, config.image_config, 32, 2, drop_path=0.75)
    block.mlp.fc2.weight.data.zero_()
    block.mlp.fc2.bias.data.zero_()
    tokens = torch.randn(1, 5, 32).expand(4000, -1, -1)
    update = block.eval()(tokens[:1]) - tokens[:1]
    updates = block.train()(tokens) - tokens
    kept = updates.flatten(1).norm(dim=1) > 0
    torch.testing.assert_close(updates[kept], (4 * update).expand(int(kept.sum()), -1, -1), rtol=1e-3, atol=1e-5)
    assert kept.float().mean() == pytest.approx(0.25, abs=0.03)  # four deviations
