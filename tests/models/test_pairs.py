import math

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from m3ae.models.fusion import Stream
from m3ae.models.heads import ContrastiveHead
from m3ae.models.pairs import contrastive_loss, match_pairs, matching_loss, ranking_loss, sigmoid_loss
from tests.models.tiny import tiny_config


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


def test_sigmoid_loss_leaves_out_pairs_that_share_something_and_incomplete_ones() -> None:
    logits = torch.tensor([[2.0, 1.0, 9.0], [0.5, 3.0, 9.0], [9.0, 9.0, 9.0]])
    same = torch.eye(3, dtype=torch.bool)
    valid = torch.tensor([True, True, False])

    def cost(logit: float) -> float:
        return math.log(1 + math.exp(-logit))

    matched, mismatched = cost(2) + cost(3), cost(-1) + cost(-0.5)
    torch.testing.assert_close(sigmoid_loss(logits, same, valid), torch.tensor((matched + mismatched) / 2))
    same[0, 1] = same[1, 0] = True
    torch.testing.assert_close(sigmoid_loss(logits, same, valid), torch.tensor(matched / 2))
    assert sigmoid_loss(logits.log() * torch.nan, same, torch.zeros(3, dtype=torch.bool)) == 0


def test_sigmoid_contrast_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text, image = {**sizes, "vocab_size": 9, "projection_size": 16}, {**sizes, "image_size": 8, "patch_size": 4}
    siglip = SiglipModel(SiglipConfig(text_config=text, vision_config=image)).eval()
    siglip.logit_scale.data.fill_(0.7)
    siglip.logit_bias.data.fill_(-1.5)
    theirs = siglip(torch.randint(9, (5, 4)), torch.randn(5, 3, 8, 8), return_loss=True)
    head = ContrastiveHead(tiny_config(hidden_size=16, itc_size=16, itc_loss="sigmoid"))
    assert (head.log_scale.item(), head.bias.item()) == (pytest.approx(math.log(10)), -10)
    for name in ("text", "image"):
        getattr(head, name).weight.data = torch.eye(16)
        getattr(head, name).bias.data.zero_()
    head.log_scale.data, head.bias.data = siglip.logit_scale.data[0], siglip.logit_bias.data[0]
    streams = [Stream(embeds[:, None]) for embeds in (theirs.text_embeds, theirs.image_embeds)]
    ours = head(*streams, (torch.arange(5), torch.arange(5)), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(ours.logits, theirs.logits_per_text)
    torch.testing.assert_close(ours.loss, theirs.loss)
