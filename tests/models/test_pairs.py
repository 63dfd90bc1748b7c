import torch

from m3ae.models.pairs import match_pairs


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
