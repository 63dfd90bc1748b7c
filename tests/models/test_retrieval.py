import pytest
import torch
from torch import Tensor

from m3ae import M3AEForImageTextRetrieval
from m3ae.models.fusion import Stream
from m3ae.models.retrieval import (
    EncodedImages,
    EncodedTexts,
    ImagesOnDemand,
    embed,
    encode_images,
    encode_texts,
    nearest,
    score_both_ways,
    score_pairs,
)
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


def test_images_alone_have_no_text_to_find(model) -> None:
    output = model(pixel_values=tiny_pairs()["pixel_values"])
    assert output.loss == 0 and output.logits[:, 1:].isneginf().all()


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


@pytest.fixture(scope="module")
def searcher() -> M3AEForImageTextRetrieval:
    return tiny_of(M3AEForImageTextRetrieval, itc_weight=1.0)


PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LENGTHS = (3, 12, 7, 3, 30, 9, 2)
TOKENS = [[0, *range(5 + 3 * n, 3 + 3 * n + length), 2] for n, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def texts(searcher: M3AEForImageTextRetrieval) -> EncodedTexts:
    return encode_texts(searcher.m3ae, TOKENS, batch_size=3)


@pytest.fixture(scope="module")
def images(searcher: M3AEForImageTextRetrieval) -> EncodedImages:
    return encode_images(searcher.m3ae, PIXELS.split(2))


@pytest.fixture(scope="module")
def plain(searcher: M3AEForImageTextRetrieval) -> Tensor:
    """Scores (7, 5), each pair encoded anew, alone and without padding."""
    with torch.no_grad():
        rows = [
            searcher.itm_head(searcher.m3ae(PIXELS[[image]], torch.tensor([ids])).pooler_output)[0, 1]
            for ids in TOKENS
            for image in range(len(PIXELS))
        ]
    return torch.stack(rows).view(len(TOKENS), len(PIXELS))


def score_all(score, texts, images, **options: int) -> Tensor:
    """Score every text against every image, (7, 5)."""
    pairs = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(images)))
    return score_pairs(score, texts, images, pairs, **options).view(len(texts), len(images))


@pytest.mark.parametrize(("batch_size", "block_size"), [(64, 64), (4, 2), (1, 1)])
def test_scores_are_those_of_the_plain_forward(
    searcher, texts, images, plain, batch_size: int, block_size: int
) -> None:
    scores = score_all(searcher.score, texts, images, batch_size=batch_size, block_size=block_size)
    torch.testing.assert_close(scores, plain, atol=1e-5, rtol=1e-5)


def test_pairs_are_scored_in_the_order_given(searcher, texts, images, plain) -> None:
    pairs = torch.tensor([[4, 0], [0, 4], [4, 0], [6, 3], [1, 1], [0, 0]])
    scores = score_pairs(searcher.score, texts, images, pairs, batch_size=2, block_size=2)
    torch.testing.assert_close(scores, plain[pairs[:, 0], pairs[:, 1]], atol=1e-5, rtol=1e-5)


def test_each_image_is_selected_once_and_no_padding_is_fused(searcher, texts, images) -> None:
    selected, fused = [], []

    class Watched(EncodedImages):
        def select(self, index: Tensor):
            selected.append(index.tolist())
            return super().select(index)

    def score(text, image):
        assert text.mask is None or text.mask.all(1).any()  # as long as one of them, not longer
        fused.append(text.tokens.shape[:2])
        return searcher.score(text, image)

    score_all(score, texts, Watched(images.stream), batch_size=5, block_size=5)
    assert selected == [[0, 1, 2, 3, 4]]
    assert fused == [(5, length) for length in sorted(LENGTHS)]


def test_images_on_demand_give_the_same(searcher, texts, images) -> None:
    loaded = []

    def encode(rows: list[int]) -> Stream:
        loaded.append(rows)
        with torch.no_grad():
            return searcher.m3ae.encode_image(PIXELS[rows])

    lazy = ImagesOnDemand(encode, len(PIXELS), batch_size=2)
    expected = score_all(searcher.score, texts, images)
    torch.testing.assert_close(score_all(searcher.score, texts, lazy, block_size=3), expected, atol=1e-5, rtol=1e-5)
    assert loaded == [[0, 1], [2], [3, 4]]


def test_embeddings_do_not_depend_on_batches(searcher, texts, images) -> None:
    found = embed(searcher.itc_head, "text", texts, batch_size=3)
    alone = torch.cat([embed(searcher.itc_head, "text", encode_texts(searcher.m3ae, [ids])) for ids in TOKENS])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TOKENS)))
    assert embed(searcher.itc_head, "image", images, batch_size=2).shape == (5, searcher.config.itc_size)


@pytest.fixture(scope="module")
def similarity(searcher, texts, images) -> Tensor:
    return embed(searcher.itc_head, "text", texts) @ embed(searcher.itc_head, "image", images).T


def test_what_is_wanted_both_ways_is_scored_once(searcher, texts, images, similarity) -> None:
    scored = []

    def score(pairs: Tensor) -> Tensor:
        scored.extend(map(tuple, pairs.tolist()))
        return score_pairs(searcher.score, texts, images, pairs, batch_size=4)

    expected = score_all(searcher.score, texts, images)
    nearest_images, nearest_texts = similarity.topk(2).indices, similarity.T.topk(3).indices
    of_texts, of_images = score_both_ways(nearest_images, nearest_texts, score)
    torch.testing.assert_close(of_texts, expected.gather(1, nearest_images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_images, expected.T.gather(1, nearest_texts), atol=1e-5, rtol=1e-5)
    wanted = {(text, image) for text, own in enumerate(nearest_images.tolist()) for image in own}
    wanted |= {(text, image) for image, own in enumerate(nearest_texts.tolist()) for text in own}
    assert sorted(scored) == sorted(wanted) and len(wanted) < 7 * 2 + 5 * 3


def test_the_nearest_are_found_whatever_is_compared_at_once(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (torch.randn(count, 4, generator=generator) for count in (9, 20))
    expected = (queries @ candidates.T).sort(dim=1, descending=True)
    for at_once in (1, 50, 1000):
        monkeypatch.setattr("m3ae.models.retrieval.SCORES_AT_ONCE", at_once)
        for k, size in ((3, 3), (50, 20)):
            cosines, numbers = nearest(queries, candidates, k)
            torch.testing.assert_close(cosines, expected.values[:, :size])
            assert torch.equal(numbers, expected.indices[:, :size])


def test_half_precision_is_the_callers_choice_and_makes_no_ties(searcher, plain) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        own = encode_texts(searcher.m3ae, TOKENS), encode_images(searcher.m3ae, PIXELS.split(2))
        scores = score_all(searcher.score, *own)
    assert scores.dtype == torch.float32 and len(scores.unique()) == scores.numel()
    assert 1e-5 < (scores - plain).abs().max() < 0.02


def test_training_draws_the_texts_that_the_contrastive_head_finds_near(searcher) -> None:
    few = tiny_of(M3AEForImageTextRetrieval, itc_weight=1.0, num_negatives=1)
    few.itc_head.log_scale.data.fill_(6.0)  # so sharp that the nearest is always drawn
    pairs = tiny_pairs()
    text, image = few.encode_text(pairs["input_ids"], pairs["attention_mask"]), few.encode_image(pairs["pixel_values"])
    numbers, present = torch.arange(4), torch.ones(4, dtype=torch.bool)
    similarity = few.itc_head(text, image, (numbers, numbers), present).logits.T.fill_diagonal_(-torch.inf)
    output = few(**pairs, negative_noise=torch.full((4, 4), 0.5))
    assert output.candidates[:, 1].tolist() == similarity.argmax(1).tolist()
    assert list(output.losses) == ["irtr", "itc"]
    torch.testing.assert_close(output.loss, output.losses["irtr"] + output.losses["itc"])
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in few.itc_head.parameters())
