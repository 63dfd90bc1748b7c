import pytest
import torch

from m3ae.models import masking


def test_mask_patches_keeps_the_lowest_noise() -> None:
    mask = masking.mask_patches(torch.tensor([[0.3, 0.1, 0.9, 0.2]]), mask_ratio=0.5)
    assert mask.ids_keep.tolist() == [[1, 3]]
    assert mask.mask.tolist() == [[True, False, True, False]]
    assert mask.ids_restore.tolist() == [[2, 0, 3, 1]]


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(16, 0.75, 4), (9, 0.75, 2), (4, 0.99, 1), (4, 0.0, 4)])
def test_mask_patches_keeps_the_published_number(patches: int, ratio: float, kept: int) -> None:
    mask = masking.mask_patches(torch.rand(3, patches), ratio)
    assert mask.ids_keep.shape == (3, kept)
    assert mask.mask.sum(1).tolist() == [patches - kept] * 3


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 0.99])
def test_padding_is_neither_visible_nor_masked(ratio: float) -> None:
    noise = torch.rand(17, 16, generator=torch.Generator().manual_seed(0))
    real = torch.arange(16) < torch.tensor([16, *range(1, 17)])[:, None]
    real = real.gather(1, noise.flip(0).argsort(1))  # anywhere in the image
    found, whole = masking.mask_patches(noise, ratio, real), masking.mask_patches(noise, ratio)
    kept = whole.ids_keep.shape[1]
    visible = real.gather(1, found.ids_keep)
    counts = (kept * real.sum(1) // 16).clamp(min=1)
    assert found.ids_keep.shape == (17, kept) and torch.equal(visible.sum(1), counts)
    assert torch.equal(found.mask.sum(1), real.sum(1) - counts) and not (found.mask & ~real).any()
    assert not found.mask.gather(1, found.ids_keep).any(), "no slot shows a patch that is to be predicted"
    assert torch.equal(found.ids_restore.gather(1, found.ids_keep), torch.arange(kept).expand(17, -1))
    assert torch.equal(found.ids_keep[0], whole.ids_keep[0]) and torch.equal(found.mask[0], whole.mask[0])
    shown, hidden = (noise.masked_fill(~chosen, fill) for chosen, fill in ((real & ~found.mask, -1), (found.mask, 2)))
    assert (shown.amax(1) < hidden.amin(1)).all(), "those of the lowest noise"


def mask_tokens(maskable: list[list[bool]], noise: torch.Tensor, probability: float = 0.5) -> masking.TokenMask:
    input_ids = torch.arange(10, 10 + noise.shape[1]).repeat(noise.shape[0], 1)
    return masking.mask_tokens(
        input_ids, torch.tensor(maskable), noise, probability, mask_token_id=99, vocab_size=1000
    )


def test_mask_tokens_replaces_by_mask_random_word_or_itself() -> None:
    rank = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.8, 0.7])
    fate = torch.tensor([0.5, 0.85, 0.95, 0.0, 0.0, 0.0])
    masked = mask_tokens([[True] * 6], torch.stack([rank, fate], -1)[None])
    assert masked.positions.tolist() == [[0, 1, 2]]
    assert masked.labels.tolist() == [[10, 11, 12]]
    assert masked.input_ids.tolist() == [[99, 500, 12, 13, 14, 15]]


def test_mask_tokens_masks_at_least_one_token_and_never_a_special_one() -> None:
    noise = torch.zeros(2, 6, 2)
    noise[..., 0] = torch.linspace(0, 0.5, 6)
    masked = mask_tokens([[False, True, False, False, False, False], [False] * 6], noise, probability=0.15)
    assert masked.input_ids.tolist() == [[10, 99, 12, 13, 14, 15], [10, 11, 12, 13, 14, 15]]
    assert masked.labels.tolist() == [[11], [-100]]


def test_mask_tokens_follows_the_probabilities() -> None:
    noise = torch.rand(2000, 20, 2, generator=torch.Generator().manual_seed(0))
    masked = mask_tokens([[True] * 20] * 2000, noise, probability=0.15)
    assert (masked.labels != -100).sum(1).unique().tolist() == [3]
    at = masked.input_ids.gather(1, masked.positions)
    assert (at == 99).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (at == masked.labels).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_mask_tokens_of_a_sample_do_not_depend_on_padding() -> None:
    noise = torch.rand(1, 16, 2, generator=torch.Generator().manual_seed(1))
    short = mask_tokens([[True] * 10], noise[:, :10])
    padded = mask_tokens([[True] * 10 + [False] * 6], noise)
    assert torch.equal(padded.input_ids[:, :10], short.input_ids)
    assert padded.labels[padded.labels != -100].tolist() == short.labels[short.labels != -100].tolist()


def mask_words(words: list[int], rank: list[float], fate: list[float] | None = None, probability: float = 0.5):
    maskable, ids = torch.tensor([[word >= 0 for word in words]]), torch.tensor([words])
    noise = torch.stack([torch.tensor(rank), torch.tensor(fate or [0.0] * len(rank))], -1)[None]
    input_ids = torch.arange(10, 10 + len(words))[None]
    masked = masking.mask_tokens(input_ids, maskable, noise, probability, 99, 1000, ids)
    chosen = masked.labels[0] != -100
    assert torch.equal(masked.labels[0][chosen], input_ids[0, masked.positions[0][chosen]])
    return sorted(masked.positions[0][chosen].tolist()), masked.input_ids[0].tolist()


def test_whole_words_are_masked_in_the_order_of_their_first_token() -> None:
    # words of 1, 3, 2 and 2 tokens between two special ones; 4 of 8 tokens are wanted
    words = [-1, 0, 1, 1, 1, 2, 2, 3, 3, -1]
    rank = [0.0, 0.5, 0.9, 0.0, 0.0, 0.1, 0.99, 0.3, 0.99, 0.0]
    assert mask_words(words, rank)[0] == [5, 6, 7, 8]
    rank[2] = 0.05  # the word of 3 tokens comes first: 3 or 5 are equally near to 4
    assert mask_words(words, rank)[0] == [2, 3, 4]
    rank[1] = 0.07  # then the single one: just 4
    assert mask_words(words, rank)[0] == [1, 2, 3, 4]


def test_a_word_shares_its_fate() -> None:
    words, rank = [0, 0, 0, 1, 1, 1], [0.1, 0, 0, 0.9, 0, 0]
    assert mask_words(words, rank, [0.5, 0.85, 0.95, 0, 0, 0])[1] == [99, 99, 99, 13, 14, 15]
    assert mask_words(words, rank, [0.95, 0.1, 0.85, 0, 0, 0]) == ([0, 1, 2], [10, 11, 12, 13, 14, 15])
    assert mask_words(words, rank, [0.85, 0.125, 0.9375, 0, 0, 0])[1] == [500, 250, 375, 13, 14, 15]


def test_words_too_long_for_the_share_wait_for_a_text_without_others() -> None:
    # 1 of 7 tokens is wanted: a word of 2 would do, one of 4 would not
    assert mask_words([0, 0, 0, 0, 1, 1, 2], [0.1, 0, 0, 0, 0.2, 0, 0.9], probability=0.15)[0] == [4, 5]
    assert mask_words([0, 0, 0, 0, 0, 0, 0], [0.1] * 7, probability=0.15)[0] == [0]
    assert mask_words([0, 0, 0, 0, 0, 0, -1], [0.1] * 7, probability=0.34)[0] == [0, 1]
    assert mask_words([-1, -1, -1], [0.1] * 3)[0] == []


def test_whole_words_mask_the_share_of_tokens() -> None:
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(0, 2, (500, 64), generator=draw).cumsum(1)
    noise = torch.rand(500, 64, 2, generator=draw)
    maskable = torch.ones(500, 64, dtype=torch.bool)
    masked = masking.mask_tokens(torch.arange(64).repeat(500, 1), maskable, noise, 0.15, 99, 1000, words)
    for ids, positions, labels in zip(words, masked.positions, masked.labels, strict=True):
        chosen = positions[labels != -100]
        assert torch.isin(ids, ids[chosen]).sum() == len(chosen)  # no word is masked in part
    shares = (masked.labels != -100).float().sum(1) / 64
    assert shares.mean().item() == pytest.approx(0.15, abs=0.003) and shares.min() > 0.09 and shares.max() < 0.25


def test_collect_labels() -> None:
    labels = torch.tensor([[-100, 7, -100, 8], [-100, -100, 9, -100]])
    positions, collected = masking.collect_labels(labels)
    assert positions[0].tolist() == [1, 3] and positions[1, 0] == 2
    assert collected.tolist() == [[7, 8], [9, -100]]


def test_patchify_and_back() -> None:
    images = torch.arange(2 * 3 * 4 * 4).float().reshape(2, 3, 4, 4)
    patches = masking.patchify(images, 2)
    assert patches.shape == (2, 4, 12)
    assert patches[0, 1, :6].tolist() == [images[0, c, 0, x].item() for x in (2, 3) for c in range(3)]
    assert torch.equal(masking.unpatchify(patches, 2, 3), images)


def test_normalize_patches() -> None:
    normalized = masking.normalize_patches(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(normalized, torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), atol=1e-5, rtol=0)


def test_masked_image_loss_counts_masked_patches_only() -> None:
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.0], [3.0, 1.0], [100.0, 100.0]]])
    loss = masking.masked_image_loss(prediction, target, torch.tensor([[True, True, False]]))
    assert loss.item() == (1 + 5) / 2
    assert masking.masked_image_loss(prediction, target, torch.zeros(1, 3, dtype=torch.bool)).item() == 0


def test_masked_language_loss_is_the_mean_over_labels() -> None:
    logits = torch.zeros(2, 2, 8)
    assert masking.masked_language_loss(logits, torch.tensor([[1, -100], [3, -100]])).item() == torch.tensor(8.0).log()
    none = masking.masked_language_loss(logits.requires_grad_(), torch.full((2, 2), -100))
    none.backward()
    assert none.item() == 0 and logits.grad is not None and logits.grad.abs().sum() == 0
