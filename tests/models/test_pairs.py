import math

import pytest
import torch

from m3ae.models.pairs import contrastive_loss, match_pairs, matching_loss, ranking_loss


def test_match_pairs_gives_half_of_the_texts_another_image() -> None:
    noise = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(8)
    pairs = match_pairs(ids, ids, torch.ones(8, dtype=torch.bool), noise)
    assert pairs.labels.sum() == 4
    assert torch.equal(pairs.image_index == ids, pairs.labels == 1)
    assert len(pairs.image_index[pairs.labels == 0].unique()) == 4


def test_match_pairs_never_takes_a_negative_with_the_same_image_or_text() -> None:
    image_ids, text_ids = torch.tensor([1, 1, 2, 3, 4, 5]), torch.tensor([1, 2, 2, 3, 3, 3])
    for seed in range(50):
        noise = torch.rand(6, 2, generator=torch.Generator().manual_seed(seed))
        pairs = match_pairs(image_ids, text_ids, torch.ones(6, dtype=torch.bool), noise)
        wrong = (pairs.labels == 0).nonzero()[:, 0]
        assert len(wrong) == 3
        assert (image_ids[pairs.image_index[wrong]] != image_ids[wrong]).all()
        assert (text_ids[pairs.image_index[wrong]] != text_ids[wrong]).all()


def test_match_pairs_without_a_partner_keeps_its_own_image() -> None:
    present = torch.tensor([True, False, True])
    same = torch.zeros(3, dtype=torch.long)
    pairs = match_pairs(torch.arange(3), same, present, torch.rand(3, 2))
    assert pairs.labels.tolist() == [1, 1, 1]
    assert pairs.valid.tolist() == [True, False, True]
    ids = torch.arange(3)
    for seed in range(20):
        noise = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed))
        pairs = match_pairs(ids, ids, present, noise)
        assert pairs.labels[present].sum() == 1 and pairs.image_index[1] == 1
        assert 1 not in pairs.image_index[present].tolist()


def test_matching_loss_leaves_out_incomplete_pairs() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [50.0, -50.0]])
    loss = matching_loss(logits, torch.tensor([1, 1]), torch.tensor([True, False]))
    torch.testing.assert_close(loss, torch.tensor(-math.log(0.75)))


def test_contrastive_loss_leaves_out_pairs_that_share_something_and_incomplete_ones() -> None:
    logits = torch.tensor([[2.0, 1.0, 9.0, 0.0], [0.0, 3.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0], [1.0, 9.0, 9.0, 4.0]])
    same = torch.eye(4, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    loss = contrastive_loss(logits, same, torch.tensor([True, True, False, True]))

    def log_odds(own: float, *others: float) -> float:
        return own - math.log(sum(map(math.exp, (own, *others))))

    rows = log_odds(2, 1, 0) + log_odds(3, 0) + log_odds(4, 1)
    columns = log_odds(2, 0, 1) + log_odds(3, 1) + log_odds(4, 0)
    torch.testing.assert_close(loss, torch.tensor(-(rows + columns) / 6))


def test_ranking_loss_counts_rows_with_a_positive_and_their_candidates() -> None:
    scores = torch.tensor([[2.0, 1.0, -torch.inf], [5.0, -torch.inf, -torch.inf], [1.0, 1.0, 1.0]], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log(3)) / 2)
    loss.backward()
    assert scores.grad.isfinite().all() and not scores.grad[1].any()
