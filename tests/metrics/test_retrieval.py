import pytest
import torch

from m3ae.metrics import RetrievalMetrics, relevant_images, retrieval_metrics
from m3ae.metrics.retrieval import ranks_of_best_match, recall_at_k


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2]])
    assert ranks_of_best_match(scores, torch.eye(3, dtype=torch.bool)).tolist() == [1, 2, 3]


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
