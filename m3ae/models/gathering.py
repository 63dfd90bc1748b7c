"""What a loss needs of the other processes when it compares every sample with every other."""

import torch
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from m3ae.models.masking import same_samples


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (B, …) of all P processes, (P·B, …), this one's first; gradients flow back to each process.

    A loss over all rows, in whatever order, is the same number in every process, and the mean over processes of its
    gradients, which every engine takes, is the gradient of one process with all the samples. The processes have to
    call this together, each with the same number of rows.
    """
    if not _is_distributed():
        return rows
    own = torch.distributed.get_rank()
    parts = list(all_gather(rows))
    return torch.cat(parts[own:] + parts[:own])


def gather_pairs(image_ids: Tensor, text_ids: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `contrastive_loss` needs to know of the samples of all P processes.

    Args:
        image_ids: (B,) or (B, F): equal entries are the same image.
        text_ids: (B,): equal numbers are the same text.
        valid: (B,) bool: the sample has both modalities.

    Returns:
        `same` (P·B, P·B) and `valid` (P·B,), in the order of `gather_rows`.

    Raises:
        ValueError: The texts have no ids, and their tokens are of different lengths in each process.
    """
    if text_ids.dim() > 1 and _is_distributed():
        raise ValueError("text_ids: got None, expected numbers (B,): contrast across processes needs them in training")
    return same_samples(gather_rows(image_ids), gather_rows(text_ids)), gather_rows(valid)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
