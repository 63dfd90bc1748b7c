import pytest
import torch

from m3ae import M3AEForImageTextRetrieval
from tests.models.tiny import tiny_config, tiny_model, tiny_of, tiny_pairs


@pytest.fixture(scope="module")
def model() -> M3AEForImageTextRetrieval:
    return tiny_of(M3AEForImageTextRetrieval)


def all_scores(model: M3AEForImageTextRetrieval, pairs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Score each image (rows) with each text, one pair at a time and encoding both anew."""
    size = len(pairs["input_ids"])
    rows = [
        model.score(
            model.encode_text(pairs["input_ids"][[j]], pairs["attention_mask"][[j]]),
            model.encode_image(pairs["pixel_values"][[i]]),
        )
        for i in range(size)
        for j in range(size)
    ]
    return torch.stack(rows).view(size, size)


def test_a_pretrained_model_scores_by_row_1_of_its_matching_head(tmp_path) -> None:
    pretrained = tiny_model()
    pretrained.save_pretrained(tmp_path)
    model, info = M3AEForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pairs = tiny_pairs()
    text, image = model.encode_text(pairs["input_ids"], pairs["attention_mask"]), model.encode_image(**_pixels(pairs))
    logits = pretrained.itm_head(pretrained.m3ae(**pairs).pooler_output)
    torch.testing.assert_close(model.score(text, image), logits[:, 1])


def _pixels(pairs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"pixel_values": pairs["pixel_values"]}


def test_each_image_finds_its_text_among_the_batch(model) -> None:
    pairs = tiny_pairs()
    output = model(**pairs)
    assert output.logits.shape == output.candidates.shape == (4, 4)
    assert output.candidates[:, 0].tolist() == [0, 1, 2, 3] and output.candidates.sort(1).values[2].tolist() == [
        0,
        1,
        2,
        3,
    ]
    expected = all_scores(model, pairs)
    torch.testing.assert_close(output.logits, expected.gather(1, output.candidates), atol=1e-4, rtol=1e-4)
    loss = torch.nn.functional.cross_entropy(output.logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(output.loss, loss)
    assert list(output.losses) == ["irtr"]


def test_negatives_are_limited_given_or_drawn(model) -> None:
    pairs = tiny_pairs()
    few = tiny_of(M3AEForImageTextRetrieval, num_negatives=1)
    noise = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4)
    assert few(**pairs, negative_noise=noise).candidates.tolist() == [[0, 1], [1, 0], [2, 0], [3, 0]]
    hardest = torch.tensor([[3], [3], [3], [0]])
    assert few(**pairs, negatives=hardest).candidates.tolist() == [[0, 3], [1, 3], [2, 3], [3, 0]]
    drawn = [few(**pairs, generator=torch.Generator().manual_seed(1)).candidates for _ in range(2)]
    assert torch.equal(*drawn)


def test_equal_texts_and_incomplete_samples_are_no_negatives(model) -> None:
    pairs = tiny_pairs()
    for name in ("input_ids", "attention_mask"):
        pairs[name][1] = pairs[name][0]
    pairs["pixel_values"][3] = torch.nan
    present = torch.tensor([True, True, True, False])
    output = model(**pairs, image_present=present)
    counted = {(row, text) for row, text in _finite(output)}
    assert counted == {(0, 0), (0, 2), (1, 1), (1, 2), (2, 2), (2, 0), (2, 1), (3, 3)}
    rows = -output.logits[:3].log_softmax(1)[:, 0]
    torch.testing.assert_close(output.loss, rows.mean())
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def _finite(output) -> list[tuple[int, int]]:
    found = output.logits.isfinite().nonzero().tolist()
    return [(row, output.candidates[row, column].item()) for row, column in found]


def test_a_batch_of_one_has_nothing_to_tell_apart(model) -> None:
    assert model(**tiny_pairs(1)).loss == 0


def test_num_negatives_is_checked() -> None:
    with pytest.raises(ValueError, match=r"num_negatives must be at least 1, got 0; .* needs itc_weight \(got 0\)"):
        tiny_config(num_negatives=0)


def test_without_negatives_contrast_is_learnt_alone_and_nothing_is_fused(monkeypatch) -> None:
    both = tiny_of(M3AEForImageTextRetrieval, itc_weight=2.0)
    alone = tiny_of(M3AEForImageTextRetrieval, itc_weight=2.0, num_negatives=0)
    alone.load_state_dict(both.state_dict())
    expected = both(**tiny_pairs()).losses["itc"]
    monkeypatch.setattr(alone.m3ae, "fuse", None)
    output = alone(**tiny_pairs())
    assert output.logits is None and output.candidates is None and list(output.losses) == ["itc"]
    torch.testing.assert_close(output.losses["itc"], expected)
    torch.testing.assert_close(output.loss, 2 * expected)
