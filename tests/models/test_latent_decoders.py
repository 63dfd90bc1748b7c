"""The text decoder and the decoder of patches; the rest is tested with the whole model."""

import math

import pytest
import torch

from m3ae.models.latent_configuration import ModalityConfig
from m3ae.models.latent_decoders import PatchDecoder, TextDecoder
from tests.models.tiny import tiny_config
from tests.models.tiny_latent import TRANSFORMER, study_batch


@pytest.fixture
def decoder() -> TextDecoder:
    torch.manual_seed(0)
    modality = ModalityConfig.of("text", {"kind": "text", "max_length": 14, **TRANSFORMER})
    return TextDecoder(tiny_config(), 5, modality, 2).eval()


def text() -> tuple[torch.Tensor, torch.Tensor]:
    batch = study_batch()["text"]
    return batch["input_ids"], batch["attention_mask"]


def test_without_knowledge_each_token_costs_the_logarithm_of_the_vocabulary(decoder: TextDecoder) -> None:
    for layer in (decoder.predict, decoder.length):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    ids, mask = text()
    tokens = mask.sum(1) - 2  # without the special ones
    for training in (False, True):  # whatever is masked: it stands for all
        found = decoder.train(training).log_likelihood(torch.randn(4, 5), ids, mask, torch.rand(4, 11))
        torch.testing.assert_close(found, -tokens * math.log(128) - math.log(13))


def test_how_many_tokens_are_masked(decoder: TextDecoder) -> None:
    count, noise = torch.full((10_000,), 8), torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0))
    evaluated = decoder._num_masked(noise, count)
    shares = [(evaluated == k).float().mean().item() for k in range(1, 9)]
    assert shares == pytest.approx([1 / 8] * 8, abs=0.02)
    trained = decoder.train()._num_masked(noise, count)
    shares = [(trained.clamp(max=8) == k).float().mean().item() for k in range(1, 9)]
    assert shares == pytest.approx([0.75 / 8] * 7 + [0.25 + 0.75 / 8], abs=0.02)


def test_padding_changes_nothing(decoder: TextDecoder) -> None:
    ids, mask = text()
    latents, noise = torch.randn(4, 5), torch.rand(4, 14)
    longer = [torch.nn.functional.pad(part, (0, 3), value=value) for part, value in ((ids, 1), (mask, 0))]
    torch.testing.assert_close(
        decoder.log_likelihood(latents, ids, mask, noise[:, :11]), decoder.log_likelihood(latents, *longer, noise)
    )


def test_only_z_and_visible_tokens_are_seen(decoder: TextDecoder) -> None:
    """With all tokens masked, other tokens of the same length are scored by the same distribution."""
    ids, mask = (part[:1].expand(2, -1).clone() for part in text())
    ids[1, 3] = 7 if ids[0, 3] != 7 else 8
    noise, latents = torch.full((2, 11), 0.999), torch.randn(1, 5).expand(2, -1)
    seen: list[torch.Tensor] = []
    decoder.predict.register_forward_hook(lambda module, inputs, output: seen.append(output))
    decoder.log_likelihood(latents, ids, mask, noise)
    first, second = seen[0].chunk(2)
    torch.testing.assert_close(first, second)


def test_generated_texts_are_valid(decoder: TextDecoder) -> None:
    ids = decoder.generate(torch.randn(20, 5) * 10)
    lengths = (ids != 1).sum(1)
    assert len(set(lengths.tolist())) > 1 and (ids[:, 0] == 0).all()
    for row, length in zip(ids, lengths, strict=True):
        assert row[length - 1] == 2 and (row[length:] == 1).all()
        assert not torch.isin(row[1 : length - 1], torch.tensor([0, 1, 2, 127])).any()


def test_tokens_are_written_in_the_order_of_confidence(decoder: TextDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is surer of later places, and repeats there what it has written, writes from the end."""
    torch.nn.init.zeros_(decoder.length.weight)
    decoder.length.bias.data[4] = 5
    steps = []

    def logits(input_ids, latents, visible, wanted):
        steps.append((input_ids == decoder.mask)[0].nonzero().flatten().tolist())
        found = torch.zeros(*input_ids.shape, 128)
        found[:, torch.arange(6), 10 + torch.arange(6)] = torch.arange(6.0)
        return found[wanted]

    monkeypatch.setattr(decoder, "_logits", logits)
    assert decoder.generate(torch.zeros(1, 5)).tolist() == [[0, 11, 12, 13, 14, 2]]
    assert steps == [[1, 2, 3, 4], [1, 2, 3], [1, 2], [1]]


def test_long_texts_are_explained(decoder: TextDecoder) -> None:
    ids = torch.full((1, 15), 5)
    with pytest.raises(ValueError, match="Texts of 15 tokens, expected at most 14: set max_length"):
        decoder.log_likelihood(torch.zeros(1, 5), ids, torch.ones_like(ids), torch.rand(1, 16))


def test_patches_have_places() -> None:
    modality = ModalityConfig.of("image", {"kind": "image", **TRANSFORMER})
    decoder = PatchDecoder(5, modality, [3, 32, 32], 8, 2)
    image = decoder(torch.randn(2, 5))
    assert image.shape == (2, 3, 32, 32) and (image[:, :, :8, :8] - image[:, :, :8, 8:16]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="32 px images in patches of 7 px"):
        PatchDecoder(5, modality, [3, 32, 32], 7, 2)
