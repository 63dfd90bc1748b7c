import pytest
import torch
from torch import Tensor

from m3ae.metrics import retrieval
from m3ae.metrics.retrieval import BothWays, Found, Ranking, Relevance, summarize_ranks


def ranks(scores: Tensor, relevant: Tensor) -> list[float]:
    """Ranks of different queries (rows) among different candidates."""
    queries, candidates = map(torch.arange, scores.shape)
    found = Found(scores.__getitem__, queries, candidates)
    return found.ranks(Relevance(relevant.nonzero(), queries, candidates)).tolist()


def test_ranks_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.2, 0.2]])
    assert ranks(scores, torch.eye(3, dtype=torch.bool)) == [1, 2, 3]
    found = summarize_ranks(
        torch.tensor(ranks(scores, torch.tensor([[True, False, False], [False] * 3, [False] * 3])))
    )
    assert found == {"recall@1": 1 / 3, "recall@5": 1 / 3, "recall@10": 1 / 3, "median_rank": torch.inf}


def test_any_relevant_candidate_counts() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    assert ranks(scores, torch.tensor([[True, False, True]])) == [2]


def test_recalls_of_ranks() -> None:
    assert summarize_ranks(torch.tensor([1.0, 2, 6, 13])) == {
        "recall@1": 0.25,
        "recall@5": 0.5,
        "recall@10": 0.75,
        "median_rank": 2.0,
    }


def test_nan_is_never_a_match() -> None:
    scores = torch.tensor([[torch.nan, 0.5, 0.1], [0.9, torch.nan, 0.1]])
    relevant = torch.tensor([[True, False, False], [True, False, False]])
    assert ranks(scores, relevant) == [3, 2]


def test_what_is_not_found_has_no_rank() -> None:
    scores = torch.tensor([[-torch.inf, 0.5, 0.1], [0.9, -torch.inf, 0.1]])
    assert ranks(scores, torch.tensor([[True, False, False], [True, True, False]])) == [torch.inf, 1]


# rows of the data: 0 has two texts, 1 and 2 the same text, 2 and 3 the same image
TEXTS = {"text_rows": torch.tensor([0, 0, 1, 2, 3]), "text_ids": torch.tensor([10, 11, 12, 12, 13])}
IMAGES = {"image_rows": torch.tensor([0, 1, 2, 3]), "image_ids": torch.tensor([20, 21, 22, 22])}


def right(relevance: Relevance, queries: int, candidates: Tensor) -> Tensor:
    """Return how many of the candidates equal to each distinct one are right for each query."""
    matrix = torch.zeros(queries, int(candidates.max()) + 1, dtype=torch.long)
    rows, kinds, counts = relevance.of(torch.arange(queries))
    return matrix.index_put_((rows, kinds), counts)


def distinct(ids: Tensor) -> Tensor:
    return ids.unique(return_inverse=True)[1]


def test_what_stands_together_anywhere_is_right() -> None:
    every = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    published = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    pairs = (TEXTS["text_rows"][:, None] == IMAGES["image_rows"]).nonzero()
    texts, images = distinct(TEXTS["text_ids"]), distinct(IMAGES["image_ids"])
    for rule, expected in (("every", every), ("published", published)):
        relevance = Relevance(pairs, texts, images, rule)
        assert [sorted(relevance.right_for(text)) for text in range(5)] == [
            [image for image, is_right in enumerate(row) if is_right] for row in expected
        ]


@pytest.mark.parametrize("at_once", [1, 40, 2**22])
@pytest.mark.parametrize("rule", ["every", "published"])
def test_ranks_among_distinct_candidates_are_those_among_all(rule, at_once, monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(20, (50,), generator=generator)
    texts, images = torch.randint(10, (50,), generator=generator), torch.arange(20) // 3
    same_row = rows[:, None] == torch.arange(20)
    if rule == "every":
        same_text, same_image = (ids[:, None] == ids for ids in (texts, images))
        matrix = (same_text.float() @ same_row.float() @ same_image.float()) > 0
    else:
        matrix = same_row
    pairs, texts = same_row.nonzero(), distinct(texts)
    for relevance, expected, queries, kinds in (
        (Relevance(pairs, texts, images, rule), matrix, texts, images),
        (Relevance(pairs.flip(1), images, texts, rule), matrix.T, images, texts),
    ):
        assert relevance.counts().tolist() == expected.sum(1).tolist()
        assert sorted(relevance.right_for(7)) == expected[7].nonzero()[:, 0].tolist()
        scores = torch.randint(4, (int(queries.max()) + 1, int(kinds.max()) + 1), generator=generator).float()
        among_all = scores[queries][:, kinds]
        best = among_all.masked_fill(~expected, -torch.inf).amax(1, keepdim=True)
        brute = ((among_all >= best) & ~expected).sum(1) + 1.0
        brute = brute.masked_fill(~expected.any(1), torch.inf)
        assert Found(scores.__getitem__, queries, kinds).ranks(relevance).tolist() == brute.tolist()


def test_relevance_by_hand() -> None:
    every = Relevance(torch.tensor([[0, 0], [1, 1], [2, 2]]), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert [every.right_for(query) for query in range(3)] == [[0, 1, 2], [0, 1, 2], [1, 2]]
    published = Relevance(torch.tensor([[0, 0], [1, 1]]), torch.tensor([0, 0]), torch.tensor([0, 0]), "published")
    assert right(published, 2, torch.tensor([0, 0])).tolist() == [[1], [1]], "an equal one of another row is wrong"


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
    texts, images = torch.arange(60), torch.arange(30)
    both = BothWays(Found(scores.__getitem__, texts, images), Found(scores.T.__getitem__, images, texts))
    found = Ranking.of(both, torch.stack([texts, text_rows], dim=1), "published").metrics()
    for k in (1, 5, 10):
        expected = published_recalls(scores.T, text_rows, image_rows, k)
        own = [found[f"text_to_image_recall@{k}"], found[f"image_to_text_recall@{k}"]]
        assert own == pytest.approx(expected)
