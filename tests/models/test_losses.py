import math

import pytest
import torch
from torch.nn import functional as F

from m3ae.models import losses


def test_patchify_and_back() -> None:
    images = torch.arange(2 * 3 * 4 * 4).float().reshape(2, 3, 4, 4)
    patches = losses.patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1, :6].tolist() == [images[0, c, 0, x].item() for x in (2, 3) for c in range(3)]
    assert torch.equal(losses.unpatchify(patches, 2, 3), images)


def test_normalize_patches() -> None:
    normalized = losses.normalize_patches(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(normalized, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), atol=1e-5, rtol=0)


def test_masked_image_loss_counts_masked_patches_only() -> None:
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.0], [3.0, 1.0], [100.0, 100.0]]])
    loss = losses.masked_image_loss(prediction, target, torch.tensor([[True, True, False]]))
    assert loss.item() == (1 + 5) / 2
    assert losses.masked_image_loss(prediction, target, torch.zeros(1, 3, dtype=torch.bool)).item() == 0


def test_masked_language_loss_is_the_mean_over_labels() -> None:
    logits = torch.zeros(2, 2, 8)
    assert losses.masked_language_loss(logits, torch.tensor([[1, -100], [3, -100]])).item() == torch.tensor(8.0).log()
    none = losses.masked_language_loss(logits.requires_grad_(), torch.full((2, 2), -100))
    none.backward()
    assert none.item() == 0 and logits.grad is not None and logits.grad.abs().sum() == 0


def test_matching_loss_leaves_out_incomplete_pairs() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [50.0, -50.0]])
    loss = losses.matching_loss(logits, torch.tensor([1, 1]), torch.tensor([True, False]))
    torch.testing.assert_close(loss, torch.tensor(-math.log(0.75)))


def test_contrastive_loss_leaves_out_pairs_that_share_something_and_incomplete_ones() -> None:
    logits = torch.tensor([[2.0, 1.0, 9.0, 0.0], [0.0, 3.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0], [1.0, 9.0, 9.0, 4.0]])
    same = torch.eye(4, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    loss = losses.contrastive_loss(logits, same, torch.tensor([True, True, False, True]))

    def log_odds(own: float, *others: float) -> float:
        return own - math.log(sum(map(math.exp, (own, *others))))

    rows = log_odds(2, 1, 0) + log_odds(3, 0) + log_odds(4, 1)
    columns = log_odds(2, 0, 1) + log_odds(3, 1) + log_odds(4, 0)
    torch.testing.assert_close(loss, torch.tensor(-(rows + columns) / 6))


def test_answer_loss_is_the_mean_times_the_number_of_answers() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[0, 1, 0, 0.3, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0.6]])
    published = F.binary_cross_entropy_with_logits(logits, scores) * 5
    torch.testing.assert_close(losses.answer_loss(logits, scores), published)


def test_answers_that_exclude_each_other() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    loss = losses.answer_loss(logits, torch.tensor([1, -100, 4]), exclusive=True)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1, -100, 4])))
    two_right = torch.tensor([[0.0, 1, 0, 1, 0]])
    expected = -logits[:1].log_softmax(-1)[0, [1, 3]].mean()
    torch.testing.assert_close(losses.answer_loss(logits[:1], two_right, exclusive=True), expected)


def test_answer_loss_leaves_out_questions_without_an_answer_in_the_list() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(torch.tensor([1, 4]), 5)
    loss = losses.answer_loss(logits, torch.tensor([1, -100, 4]))
    torch.testing.assert_close(loss, losses.answer_loss(logits[[0, 2]], one_hot))
    assert losses.answer_loss(logits, torch.full((3,), -100)) == 0


def test_class_loss_is_the_weighted_cross_entropy_of_the_known() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([0, -100, 2, 2]), torch.tensor([1.0, 2.0, 5.0])
    torch.testing.assert_close(losses.class_loss(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(losses.class_loss(logits, labels, weights), F.cross_entropy(logits, labels, weights))
    assert losses.class_loss(logits, torch.full((4,), -100), weights) == 0


def test_multi_label_loss_ignores_unknown_entries() -> None:
    logits = torch.tensor([[0.0, 3.0], [-1.0, 2.0]])
    labels = torch.tensor([[1, -100], [0, 1]])
    log = [math.log(2), math.log1p(math.exp(-1)), math.log1p(math.exp(-2))]
    assert losses.multi_label_loss(logits, labels).item() == pytest.approx(sum(log) / 3)
    weighted = losses.multi_label_loss(logits, labels, torch.tensor([1.0, 4.0]))
    assert weighted.item() == pytest.approx((log[0] + log[1] + 4 * log[2]) / 3)
    assert losses.multi_label_loss(logits, torch.full((2, 2), -100)) == 0


def test_ranking_loss_counts_rows_with_a_positive_and_their_candidates() -> None:
    scores = torch.tensor([[2.0, 1.0, -torch.inf], [5.0, -torch.inf, -torch.inf], [1.0, 1.0, 1.0]], requires_grad=True)
    loss = losses.ranking_loss(scores, torch.tensor([True, False, True]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + math.log(3)) / 2)
    loss.backward()
    assert scores.grad.isfinite().all() and not scores.grad[1].any()
