"""Decoders of texts: one that fills in masked words, and an autoregressive one."""

import math
from pathlib import Path

import pytest
import torch

from m3ae import M3AEForGeneration
from m3ae.models.modalities import configure
from m3ae.models.text_decoders import AutoregressiveTextDecoder, MaskedTextDecoder
from tests.models.tiny import tiny_config
from tests.models.tiny_latent import STUDY, TRANSFORMER, latent_model, study_batch


@pytest.fixture(params=["cross_attention", "prefix"])
def decoder(request: pytest.FixtureRequest) -> MaskedTextDecoder:
    torch.manual_seed(0)
    options = {"conditioning": request.param, "max_length": 14, **TRANSFORMER}
    modality = configure("text", {"kind": "text", **options})
    return MaskedTextDecoder(tiny_config(), 5, modality, 2).eval()


def text() -> tuple[torch.Tensor, torch.Tensor]:
    batch = study_batch()["text"]
    return batch["input_ids"], batch["attention_mask"]


def test_without_knowledge_each_token_costs_the_logarithm_of_the_vocabulary(decoder: MaskedTextDecoder) -> None:
    for layer in (decoder.predict, decoder.length):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    ids, mask = text()
    tokens = mask.sum(1) - 2  # without the special ones
    for training in (False, True):  # whatever is masked: it stands for all
        found = decoder.train(training).log_likelihood(torch.randn(4, 5), ids, mask, torch.rand(4, 11))
        torch.testing.assert_close(found, -tokens * math.log(128) - math.log(13))


def test_how_many_tokens_are_masked(decoder: MaskedTextDecoder) -> None:
    count, noise = torch.full((10_000,), 8), torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0))
    evaluated = decoder._num_masked(noise, count)
    shares = [(evaluated == k).float().mean().item() for k in range(1, 9)]
    assert shares == pytest.approx([1 / 8] * 8, abs=0.02)
    trained = decoder.train()._num_masked(noise, count)
    shares = [(trained.clamp(max=8) == k).float().mean().item() for k in range(1, 9)]
    assert shares == pytest.approx([0.75 / 8] * 7 + [0.25 + 0.75 / 8], abs=0.02)


def test_padding_changes_nothing(decoder: MaskedTextDecoder) -> None:
    ids, mask = text()
    latents, noise = torch.randn(4, 5), torch.rand(4, 14)
    longer = [torch.nn.functional.pad(part, (0, 3), value=value) for part, value in ((ids, 1), (mask, 0))]
    torch.testing.assert_close(
        decoder.log_likelihood(latents, ids, mask, noise[:, :11]), decoder.log_likelihood(latents, *longer, noise)
    )


def test_only_z_and_visible_tokens_are_seen(decoder: MaskedTextDecoder) -> None:
    """With all tokens masked, other tokens of the same length are scored by the same distribution."""
    ids, mask = (part[:1].expand(2, -1).clone() for part in text())
    ids[1, 3] = 7 if ids[0, 3] != 7 else 8
    noise, latents = torch.full((2, 11), 0.999), torch.randn(1, 5).expand(2, -1)
    seen: list[torch.Tensor] = []
    decoder.predict.register_forward_hook(lambda module, inputs, output: seen.append(output))
    decoder.log_likelihood(latents, ids, mask, noise)
    first, second = seen[0].chunk(2)
    torch.testing.assert_close(first, second)


def test_generated_texts_are_valid(decoder: MaskedTextDecoder) -> None:
    ids = decoder.generate(torch.randn(20, 5) * 10)
    lengths = (ids != 1).sum(1)
    assert len(set(lengths.tolist())) > 1 and (ids[:, 0] == 0).all()
    for row, length in zip(ids, lengths, strict=True):
        assert row[length - 1] == 2 and (row[length:] == 1).all()
        assert not torch.isin(row[1 : length - 1], torch.tensor([0, 1, 2, 127])).any()


def test_tokens_are_written_in_the_order_of_confidence(
    decoder: MaskedTextDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_long_texts_are_explained(decoder: MaskedTextDecoder) -> None:
    ids = torch.full((1, 15), 5)
    with pytest.raises(ValueError, match="Texts of 15 tokens, expected at most 14: set max_length"):
        decoder.log_likelihood(torch.zeros(1, 5), ids, torch.ones_like(ids), torch.rand(1, 16))


@pytest.fixture
def writer() -> AutoregressiveTextDecoder:
    torch.manual_seed(0)
    modality = configure("text", {"kind": "text", "decoder": "autoregressive", "max_length": 14, **TRANSFORMER})
    decoder = AutoregressiveTextDecoder(tiny_config(), 5, modality, 2).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # fresh weights say the same of everything
    return decoder


def logits_of(writer: AutoregressiveTextDecoder, ids: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """What the GPT-2 says after each of the tokens (R, L), two latent tokens beside or before them."""
    memory = writer.latent_tokens(latents).view(len(ids), 2, 16)
    if not writer.prefix:
        return writer.model(ids, encoder_hidden_states=memory).logits
    return writer.model(inputs_embeds=torch.cat([memory, writer.model.transformer.wte(ids)], 1)).logits[:, 2:]


def test_the_autoregressive_likelihood_is_that_of_token_after_token(writer: AutoregressiveTextDecoder) -> None:
    ids, mask = text()
    latents, noise = torch.randn(4, 5), torch.rand(4, 11)
    found = writer.log_likelihood(latents, ids, mask, noise)
    for row, length in enumerate(mask.sum(1).tolist()):
        expected = torch.zeros(())
        for place in range(1, length):  # the words before it and z alone, the end included
            logits = logits_of(writer, ids[row, None, :place], latents[row, None])
            expected += logits[0, -1].log_softmax(-1)[ids[row, place]]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
    longer = [torch.nn.functional.pad(part, (0, 3), value=value) for part, value in ((ids, 1), (mask, 0))]
    torch.testing.assert_close(writer.log_likelihood(latents, *longer, torch.rand(4, 14)), found)


def test_an_autoregressive_decoder_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(
    writer: AutoregressiveTextDecoder,
) -> None:
    torch.nn.init.zeros_(writer.model.lm_head.weight)
    ids, mask = text()
    found = writer.log_likelihood(torch.randn(4, 5), ids, mask, torch.rand(4, 11))
    torch.testing.assert_close(found, -(mask.sum(1) - 1) * math.log(128))


def test_in_training_words_are_hidden_from_an_autoregressive_decoder(writer: AutoregressiveTextDecoder) -> None:
    ids, mask = text()
    latents, noise = torch.randn(4, 5), torch.rand(4, 11)
    whole = writer.log_likelihood(latents, ids, mask, noise)
    assert torch.equal(writer.train().log_likelihood(latents, ids, mask, noise), whole), "none are without dropout"
    writer.word_dropout = 0.5
    torch.testing.assert_close(writer.log_likelihood(latents, ids, mask, torch.ones_like(noise)), whole)
    hidden = writer.log_likelihood(latents, ids, mask, torch.zeros_like(noise))
    blind = ids.where((mask == 0) | (ids == 0), writer.mask)
    expected = logits_of(writer, blind, latents)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(hidden, (expected * mask[:, 1:]).sum(1))
    assert torch.equal(writer.eval().log_likelihood(latents, ids, mask, torch.zeros_like(noise)), whole)


def test_an_autoregressive_decoder_writes_the_likeliest_next_token(writer: AutoregressiveTextDecoder) -> None:
    latents = torch.randn(6, 5)
    ids = writer.generate(latents)
    assert (ids[:, 0] == 0).all() and ids.shape[1] <= 14
    logits = logits_of(writer, ids, latents)[:, :-1]
    logits[..., [0, 1, 127]] = -torch.inf
    ended = (ids[:, :-1] == 2).cumsum(1) > 0
    assert torch.equal(ids[:, 1:], logits.argmax(-1).masked_fill(ended, 1))

    def likelihood(written: torch.Tensor) -> torch.Tensor:
        mask = (written != 1).long()
        return writer.log_likelihood(latents, written, mask, torch.rand(6, 1 + written.shape[1]))

    assert likelihood(writer.generate(latents, num_beams=8, length_penalty=0.0)).sum() > likelihood(ids).sum()
    torch.manual_seed(0)
    drawn = [writer.generate(latents, do_sample=True) for _ in range(2)]
    assert drawn[0].tolist() != drawn[1].tolist()


def test_a_model_with_an_autoregressive_decoder_is_saved_and_writes_the_same(tmp_path: Path) -> None:
    study = {**STUDY, "text": {**STUDY["text"], "decoder": "autoregressive"}}
    model, batch = latent_model(study), study_batch()
    given = {"frontal": batch["frontal"]}
    model.train()(modalities=batch).loss.backward()
    assert model.latent_head.decoders["text"].latent_tokens.weight.grad.isfinite().all()
    model.eval().save_pretrained(tmp_path)
    again = M3AEForGeneration.from_pretrained(tmp_path)
    assert isinstance(again.latent_head.decoders["text"], AutoregressiveTextDecoder)
    first, second = (
        own.generate_modalities(given, ["text"], temperature=0, text_options={"num_beams": 2})["text"]
        for own in (model, again)
    )
    assert torch.equal(first, second) and first.shape[:2] == (1, 4)
    with pytest.raises(ValueError, match="text options: got num_beams for a masked text decoder"):
        latent_model(STUDY).generate_modalities(given, ["text"], text_options={"num_beams": 2})
