import pytest
import torch

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
