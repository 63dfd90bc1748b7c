"""The CPU's own attention and dropout against PyTorch's."""

import ctypes
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from m3ae import M3AEForPreTraining
from m3ae.training.cpu import attention, dropout, fast_kernels, recompute_with
from m3ae.training.memory import enable_gradient_checkpointing
from tests.models.tiny import tiny_batch, tiny_config

VISIBLE = torch.arange(7) < torch.tensor([7, 4])[:, None, None, None]
MASKS = {"none": None, "bool": VISIBLE, "float": torch.zeros(2, 1, 1, 7).masked_fill(~VISIBLE, -1e30)}


def heads(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)]
    return tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)


def gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [gradient.double() for gradient in torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_attention_equals_pytorchs(kind: str, scale: float | None, dtype: torch.dtype, tolerance: float) -> None:
    inputs, reference = heads(dtype), heads(torch.float64)
    mask, wide = MASKS[kind], MASKS[kind]
    if kind == "float":
        mask, wide = MASKS[kind].to(dtype), MASKS[kind].double()
    found = attention(*inputs, mask, scale=scale)
    expected = F.scaled_dot_product_attention(*reference, wide, scale=scale)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        gradients(found, inputs), gradients(expected, reference), atol=2 * tolerance, rtol=2 * tolerance
    )


def test_causal_attention_equals_pytorchs() -> None:
    inputs, reference = heads(torch.bfloat16), heads(torch.float64)
    found, expected = attention(*inputs, is_causal=True), F.scaled_dot_product_attention(*reference, is_causal=True)
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(gradients(found, inputs), gradients(expected, reference), atol=0.1, rtol=0.1)


def test_what_is_not_replaced_stays_pytorchs() -> None:
    inputs = heads(torch.float32)
    assert torch.equal(attention(*inputs), F.scaled_dot_product_attention(*inputs))


def test_dropout_zeroes_the_given_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.ones(1001, 1003, requires_grad=True)  # no multiple of 4
    dropped = dropout(values, 0.1)
    share = float((dropped == 0).float().mean())
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / values.numel()) ** 0.5
    torch.testing.assert_close(dropped.max(), torch.tensor(1 / 0.9), atol=2e-5, rtol=0)
    # Neighbours share a random word, rows do not: both are independent.
    for neighbours in (dropped[:, :-1] * dropped[:, 1:], dropped[:-1] * dropped[1:]):
        assert abs(float((neighbours > 0).float().mean()) - 0.81) < 2e-3
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped)


def test_dropout_follows_the_seed() -> None:
    values = torch.ones(100, 100)
    torch.manual_seed(1)
    first, second = dropout(values, 0.5), dropout(values, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(values, 0.5), first) and not torch.equal(first, second)


@pytest.mark.parametrize(("p", "training", "factor"), [(0.3, False, 1.0), (0.0, True, 1.0), (1.0, True, 0.0)])
def test_dropout_at_its_limits(p: float, training: bool, factor: float) -> None:
    values = torch.arange(5.0)
    assert torch.equal(dropout(values, p, training), factor * values)


def test_modules_use_them_on_a_cpu_only() -> None:
    layer, values = nn.Dropout(0.5), torch.ones(64)
    for device, expected in (("cpu", dropout), ("meta", F.dropout)):
        torch.manual_seed(2)
        with fast_kernels(torch.device(device)):
            found = layer(values)
        torch.manual_seed(2)
        assert torch.equal(found, expected(values, 0.5))


def test_a_compiled_model_uses_them_too() -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    query, key, value = (states.detach() for states in heads(torch.bfloat16))
    attend = torch.compile(F.scaled_dot_product_attention, backend=keep, fullgraph=True)
    with fast_kernels(torch.device("cpu")):
        found = attend(query, key, value, dropout_p=0.5)
    called = {node.target for node in graphs[0].graph.nodes}
    assert F.scaled_dot_product_attention not in called and torch.ops.m3ae.dropout_mask.default in called
    assert found.shape == query.shape


def test_compiled_dropout_draws_anew_and_its_gradient_sees_the_same() -> None:
    def twice(values: Tensor) -> Tensor:
        return torch.stack([F.dropout(values, 0.5), F.dropout(values, 0.5)])

    torch._dynamo.reset()
    values = torch.linspace(1, 2, 1000, requires_grad=True)
    compiled = torch.compile(lambda values: checkpoint(twice, values, use_reentrant=False), fullgraph=True)
    with fast_kernels(values.device):
        first, second = compiled(values), compiled(values)
    rows = torch.cat([first, second])
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))
    first.sum().backward()
    assert torch.equal(values.grad, first.sum(0) / values)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_what_is_freed_stays_with_the_process() -> None:
    program = """
import resource, torch
from m3ae.training.cpu import keep_freed_memory
keep_freed_memory()
def faults(spared):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24 - spared)  # 64 MB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(0), faults(1024))  # a little smaller, so that it fits in there however it has to be aligned
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, last = map(int, found.stdout.split())
    assert last < 100 < first


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_a_checkpointed_layer_computes_again_what_it_has_computed(bf16: bool, rate: float) -> None:
    dropout_rates = {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    device, found = torch.device("cpu"), []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = M3AEForPreTraining(tiny_config(text_config=dropout_rates, **dropout_rates)).train()
        if checkpointed:
            enable_gradient_checkpointing(model, recompute_with(device, compiled=False))
        torch.manual_seed(1)
        with fast_kernels(device):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(**tiny_batch()).loss
            loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-3 if bf16 else 1e-6, rtol=1e-4)
