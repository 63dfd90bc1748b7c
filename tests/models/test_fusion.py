import pytest
import torch

from m3ae.models.fusion import Fusion, Stream
from tests.models.tiny import tiny_config


def fusion(implementation: str = "sdpa") -> Fusion:
    config = tiny_config()
    config._attn_implementation = implementation
    torch.manual_seed(0)
    module = Fusion(config, ("text", "image")).eval()
    for name, parameter in module.named_parameters():
        if "norm." in name:  # fresh ones change nothing where they come twice
            parameter.data = 1 + 0.3 * torch.randn(parameter.shape)
    return module


def streams(size: int = 3) -> dict[str, Stream]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(size, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return {
        "text": Stream(torch.randn(size, 5, 32, generator=generator), mask),
        "image": Stream(torch.randn(size, 7, 32, generator=generator)),
    }


def test_both_streams_update_from_the_previous_layer() -> None:
    module, given = fusion(), streams()
    layer = module.layers[0]
    mask = given["text"].mask[:, None, None]
    states = module(given)
    text = layer["text"](given["text"].tokens, mask, given["image"].tokens, None, None)
    image = layer["image"](given["image"].tokens, None, given["text"].tokens, mask, None)
    torch.testing.assert_close(states[1]["text"], text)
    torch.testing.assert_close(states[1]["image"], image)
    assert [list(state) for state in states] == [["text", "image"]] * 3


def test_reading_less_gives_the_same_values() -> None:
    module, given = fusion(), streams()
    everything = module(given)
    positions = torch.tensor([[0, 2], [1, 1], [4, 0]])
    read = module(given, read={"text": positions})[-1]
    assert list(read) == ["text"]
    expected = everything[-1]["text"].gather(1, positions[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(read["text"], expected)
    early = module(given, read={"image": None}, num_layers=1)
    torch.testing.assert_close(early[-1]["image"], everything[1]["image"])


def test_eager_equals_sdpa() -> None:
    given = streams()
    given["image"] = given["image"]._replace(present=torch.tensor([True, False, True]))
    for eager, sdpa in zip(fusion("eager")(given)[-1].values(), fusion("sdpa")(given)[-1].values(), strict=True):
        torch.testing.assert_close(eager, sdpa, atol=1e-5, rtol=0)


def test_an_absent_stream_is_as_no_stream() -> None:
    module, given = fusion(), streams()
    absent = given | {"image": given["image"]._replace(present=torch.tensor([True, False, False]))}
    alone = module({"text": given["text"]})[-1]["text"]
    both = module(given)[-1]["text"]
    fused = module(absent)[-1]["text"]
    torch.testing.assert_close(fused[:1], both[:1])
    torch.testing.assert_close(fused[1:], alone[1:])


def test_three_streams_attend_to_all_others() -> None:
    config = tiny_config()
    torch.manual_seed(0)
    module = Fusion(config, ("frontal", "lateral", "text")).eval()
    given = {name: Stream(torch.randn(2, 4, 32)) for name in ("frontal", "lateral", "text")}
    base = module(given)[-1]["text"]
    for name in ("frontal", "lateral"):
        changed = given | {name: Stream(given[name].tokens + 1)}
        assert not torch.allclose(module(changed)[-1]["text"], base)
        gone = given | {name: given[name]._replace(present=torch.zeros(2, dtype=torch.bool))}
        rest = {other: stream for other, stream in given.items() if other != name}
        torch.testing.assert_close(module(gone)[-1]["text"], module(rest)[-1]["text"])


def test_cross_attention_is_what_the_last_layer_uses() -> None:
    module, given = fusion("eager"), streams()
    used = []
    attention = module.layers[-1]["image"].cross_attention
    handle = attention.output.register_forward_pre_hook(lambda _, inputs: used.append(inputs[0]))
    states = module(given)
    handle.remove()
    weights = module.cross_attention(given, "image")
    assert weights.shape == (3, 2, 7, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 7))
    assert torch.equal(weights[0, :, :, 3:], torch.zeros(2, 7, 2))  # padding
    values = attention.value(states[-2]["text"]).view(3, 5, 2, 16).transpose(1, 2)
    torch.testing.assert_close((weights @ values).transpose(1, 2).flatten(-2), used[0])


def test_cross_attention_needs_another_stream() -> None:
    with pytest.raises(ValueError, match="Cross-attention of 'text' needs another stream; got only"):
        fusion().cross_attention({"text": streams()["text"]}, "text")
