import pytest
import torch
from torch import Tensor

from m3ae import M3AEForImageTextRetrieval
from m3ae.models.encoded import (
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
from m3ae.models.fusion import Stream
from tests.models.tiny import tiny_of, tiny_pairs


@pytest.fixture(scope="module")
def model() -> M3AEForImageTextRetrieval:
    return tiny_of(M3AEForImageTextRetrieval, itc_weight=1.0)


PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LENGTHS = (3, 12, 7, 3, 30, 9, 2)
TOKENS = [[0, *range(5 + 3 * n, 3 + 3 * n + length), 2] for n, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def texts(model: M3AEForImageTextRetrieval) -> EncodedTexts:
    return encode_texts(model.m3ae, TOKENS, batch_size=3)


@pytest.fixture(scope="module")
def images(model: M3AEForImageTextRetrieval) -> EncodedImages:
    return encode_images(model.m3ae, PIXELS.split(2))


@pytest.fixture(scope="module")
def plain(model: M3AEForImageTextRetrieval) -> Tensor:
    """Scores (7, 5), each pair encoded anew, alone and without padding."""
    with torch.no_grad():
        rows = [
            model.itm_head(model.m3ae(PIXELS[[image]], torch.tensor([ids])).pooler_output)[0, 1]
            for ids in TOKENS
            for image in range(len(PIXELS))
        ]
    return torch.stack(rows).view(len(TOKENS), len(PIXELS))


def score_all(score, texts, images, **options: int) -> Tensor:
    """Score every text against every image, (7, 5)."""
    pairs = torch.cartesian_prod(torch.arange(len(texts)), torch.arange(len(images)))
    return score_pairs(score, texts, images, pairs, **options).view(len(texts), len(images))


@pytest.mark.parametrize(("batch_size", "block_size"), [(64, 64), (4, 2), (1, 1)])
def test_scores_are_those_of_the_plain_forward(model, texts, images, plain, batch_size: int, block_size: int) -> None:
    scores = score_all(model.score, texts, images, batch_size=batch_size, block_size=block_size)
    torch.testing.assert_close(scores, plain, atol=1e-5, rtol=1e-5)


def test_pairs_are_scored_in_the_order_given(model, texts, images, plain) -> None:
    pairs = torch.tensor([[4, 0], [0, 4], [4, 0], [6, 3], [1, 1], [0, 0]])
    scores = score_pairs(model.score, texts, images, pairs, batch_size=2, block_size=2)
    torch.testing.assert_close(scores, plain[pairs[:, 0], pairs[:, 1]], atol=1e-5, rtol=1e-5)


def test_each_image_is_selected_once_and_no_padding_is_fused(model, texts, images) -> None:
    selected, fused = [], []

    class Watched(EncodedImages):
        def select(self, index: Tensor):
            selected.append(index.tolist())
            return super().select(index)

    def score(text, image):
        assert text.mask is None or text.mask.all(1).any()  # as long as one of them, not longer
        fused.append(text.tokens.shape[:2])
        return model.score(text, image)

    score_all(score, texts, Watched(images.stream), batch_size=5, block_size=5)
    assert selected == [[0, 1, 2, 3, 4]]
    assert fused == [(5, length) for length in sorted(LENGTHS)]


def test_images_on_demand_give_the_same(model, texts, images) -> None:
    loaded = []

    def encode(rows: list[int]) -> Stream:
        loaded.append(rows)
        with torch.no_grad():
            return model.m3ae.encode_image(PIXELS[rows])

    lazy = ImagesOnDemand(encode, len(PIXELS), batch_size=2)
    expected = score_all(model.score, texts, images)
    torch.testing.assert_close(score_all(model.score, texts, lazy, block_size=3), expected, atol=1e-5, rtol=1e-5)
    assert loaded == [[0, 1], [2], [3, 4]]


def test_embeddings_do_not_depend_on_batches(model, texts, images) -> None:
    found = embed(model.itc_head, "text", texts, batch_size=3)
    alone = torch.cat([embed(model.itc_head, "text", encode_texts(model.m3ae, [ids])) for ids in TOKENS])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TOKENS)))
    assert embed(model.itc_head, "image", images, batch_size=2).shape == (5, model.config.itc_size)


@pytest.fixture(scope="module")
def similarity(model, texts, images) -> Tensor:
    return embed(model.itc_head, "text", texts) @ embed(model.itc_head, "image", images).T


def test_what_is_wanted_both_ways_is_scored_once(model, texts, images, similarity) -> None:
    scored = []

    def score(pairs: Tensor) -> Tensor:
        scored.extend(map(tuple, pairs.tolist()))
        return score_pairs(model.score, texts, images, pairs, batch_size=4)

    expected = score_all(model.score, texts, images)
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
        monkeypatch.setattr("m3ae.models.encoded.SCORES_AT_ONCE", at_once)
        for k, size in ((3, 3), (50, 20)):
            cosines, numbers = nearest(queries, candidates, k)
            torch.testing.assert_close(cosines, expected.values[:, :size])
            assert torch.equal(numbers, expected.indices[:, :size])


def test_half_precision_is_the_callers_choice_and_makes_no_ties(model, plain) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        own = encode_texts(model.m3ae, TOKENS), encode_images(model.m3ae, PIXELS.split(2))
        scores = score_all(model.score, *own)
    assert scores.dtype == torch.float32 and len(scores.unique()) == scores.numel()
    assert 1e-5 < (scores - plain).abs().max() < 0.02


def test_training_draws_the_texts_that_the_contrastive_head_finds_near(model) -> None:
    few = tiny_of(M3AEForImageTextRetrieval, itc_weight=1.0, num_negatives=1)
    few.itc_head.log_scale.data.fill_(6.0)  # so sharp that the nearest is always drawn
    pairs = tiny_pairs()
    text, image = few.encode_text(pairs["input_ids"], pairs["attention_mask"]), few.encode_image(pairs["pixel_values"])
    similarity = few.itc_head(text, image).T.fill_diagonal_(-torch.inf)
    output = few(**pairs, negative_noise=torch.full((4, 4), 0.5))
    assert output.candidates[:, 1].tolist() == similarity.argmax(1).tolist()
    assert list(output.losses) == ["irtr", "itc"]
    torch.testing.assert_close(output.loss, output.losses["irtr"] + output.losses["itc"])
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in few.itc_head.parameters())
