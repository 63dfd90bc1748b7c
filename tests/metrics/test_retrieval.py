import pytest
import torch

from m3ae.metrics import RetrievalMetrics, relevant_images, retrieval_metrics
from m3ae.metrics.retrieval import Relevance, ranks_of_best_match, recall_at_k


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2]])
    assert ranks_of_best_match(scores, torch.eye(3, dtype=torch.bool)).tolist() == [1, 2, 3]
    found = recall_at_k(scores, torch.tensor([[True, False, False], [False] * 3, [False] * 3]))
    assert found == {"recall@1": 1 / 3, "recall@5": 1 / 3, "recall@10": 1 / 3, "median_rank": torch.inf}


def test_any_relevant_candidate_counts() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    assert ranks_of_best_match(scores, torch.tensor([[True, False, True]])).tolist() == [2]


def test_recall_at_k() -> None:
    scores = torch.zeros(4, 20)
    relevant = torch.zeros(4, 20, dtype=torch.bool)
    relevant[:, 0] = True
    for query, ahead in enumerate([0, 1, 5, 12]):
        scores[query, 1 : ahead + 1] = 1.0
        scores[query, ahead + 1 :] = -1.0
    assert recall_at_k(scores, relevant) == {
        "recall@1": 0.25,
        "recall@5": 0.5,
        "recall@10": 0.75,
        "median_rank": pytest.approx(2.0),
    }


def test_nan_is_never_a_match() -> None:
    scores = torch.tensor([[torch.nan, 0.5, 0.1], [0.9, torch.nan, 0.1]])
    relevant = torch.tensor([[True, False, False], [True, False, False]])
    assert ranks_of_best_match(scores, relevant).tolist() == [3, 2]


# rows of the data: 0 has two texts, 1 and 2 the same text, 2 and 3 the same image
TEXTS = {"text_rows": torch.tensor([0, 0, 1, 2, 3]), "text_ids": torch.tensor([10, 11, 12, 12, 13])}
IMAGES = {"image_rows": torch.tensor([0, 1, 2, 3]), "image_ids": torch.tensor([20, 21, 22, 22])}


def test_what_stands_together_anywhere_is_right() -> None:
    every = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    published = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert relevant_images(**TEXTS, **IMAGES).int().tolist() == every
    assert relevant_images(**TEXTS, **IMAGES, rule="published").int().tolist() == published


@pytest.mark.parametrize("rule", ["every", "published"])
def test_relevance_of_pairs_is_that_of_the_matrix(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(20, (50,), generator=generator)
    text_ids, image_ids = torch.randint(90, 100, (50,), generator=generator), torch.arange(20) // 3
    matrix = relevant_images(rows, torch.arange(20), text_ids, image_ids, rule)
    pairs = torch.stack([torch.arange(50), rows], dim=1)
    texts, images = text_ids.unique(return_inverse=True)[1], image_ids
    for relevance, expected, kinds in (
        (Relevance(pairs, texts, images, rule), matrix, images),
        (Relevance(pairs.flip(1), images, texts, rule), matrix.T, texts),
    ):
        assert relevance.counts().tolist() == expected.sum(1).tolist()
        assert sorted(relevance.right_for(7)) == expected[7].nonzero()[:, 0].tolist()
        scores = torch.randint(4, (len(expected), int(kinds.max()) + 1), generator=generator).float()
        every = torch.arange(scores.shape[1]).expand(scores.shape)
        right, others = relevance.copies(torch.arange(len(expected)), every)
        assert torch.equal(right[:, kinds] > 0, expected) if rule == "every" else right.sum() == expected.sum()
        assert torch.equal(right + others, kinds.bincount().expand(scores.shape))
        # Of equal candidates one stands for all: the ranks are those among all of them.
        ranks = ranks_of_best_match(scores, right > 0, others)
        assert torch.equal(ranks, ranks_of_best_match(scores[:, kinds], expected))


def test_relevance_by_hand() -> None:
    every = Relevance(torch.tensor([[0, 0], [1, 1], [2, 2]]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert [every.right_for(query) for query in range(3)] == [[0, 1, 2], [0, 1, 2], [1, 2]]
    published = Relevance(torch.tensor([[0, 0], [1, 1]]), torch.tensor([0, 0]), torch.tensor([0, 0]), "published")
    right, others = published.copies(torch.arange(2), torch.tensor([[0], [0]]))
    assert (right.tolist(), others.tolist()) == ([[1], [1]], [[1], [1]]), "an equal one of another row is wrong"


def published_recalls(scores: torch.Tensor, text_rows: torch.Tensor, image_rows: torch.Tensor, k: int) -> list[float]:
    """`compute_irtr_recall` of ViLT and M3AE: text to image, image to text; scores are images × texts there."""
    images_of_texts = text_rows[scores.topk(k, dim=1).indices]
    texts_of_images = image_rows[scores.topk(k, dim=0).indices]
    to_text = (image_rows.unsqueeze(1) == images_of_texts).float().max(dim=1)[0].mean()
    to_image = (text_rows.unsqueeze(0) == texts_of_images).float().max(dim=0)[0].mean()
    return [float(to_image), float(to_text)]


def test_the_published_rule_gives_the_published_recalls() -> None:
    generator = torch.Generator().manual_seed(0)
    text_rows, image_rows = torch.arange(60) // 2, torch.arange(30)
    scores = torch.randn(60, 30, generator=generator) + 1.5 * (text_rows[:, None] == image_rows)
    relevant = relevant_images(text_rows, image_rows, torch.zeros(60), torch.zeros(30), rule="published")
    found = retrieval_metrics(scores, relevant)
    for k in (1, 5, 10):
        expected = published_recalls(scores.T, text_rows, image_rows, k)
        own = [found[f"text_to_image_recall@{k}"], found[f"image_to_text_recall@{k}"]]
        assert own == pytest.approx(expected)


def test_both_ways_by_hand_and_what_has_no_match_is_no_query() -> None:
    scores = [[0.9, 0.8, 0.1], [0.7, 0.9, 0.2], [0.8, 0.1, 0.3]]
    found = RetrievalMetrics().compute(predictions=scores, references=[[0, 1], [0], []])
    assert {name: value for name, value in found.items() if "@5" not in name and "@10" not in name} == {
        "text_to_image_recall@1": 0.5,
        "text_to_image_median_rank": 1,
        "text_to_image_queries": 2,
        "image_to_text_recall@1": 0.5,
        "image_to_text_median_rank": 1,
        "image_to_text_queries": 2,
    }


@pytest.mark.parametrize(
    ("scores", "references", "message"),
    [
        (
            [[0.1, 0.2], [0.3]],
            [[0], [0]],
            "predictions must be equally long for all samples, got lengths from 1 to 2",
        ),
        ([[0.1, 0.2]], [[2]], "references of text 0: no image 2 among the 2 scored"),
        ([[0.1, 0.2]], [[]], "none of the 1 texts has a right image among the 2"),
    ],
)
def test_what_does_not_fit_is_refused(scores: list[list[float]], references: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalMetrics().compute(predictions=scores, references=references)
