"""Top-k accuracy as whole numbers, so that sums over batches and ranks are exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_correct(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> Tensor:
    """How many images have their label among the k highest logits, for each k. int64, as many as `ks`, on the device.

    `logits` is N K, `labels` N (int64). Of equal logits the lower class counts as the higher, on every device
    (`torch.topk` leaves that open). With fewer than k classes every image is correct. A NaN anywhere in an image's
    logits makes it wrong for every k.
    """
    own = logits.gather(1, labels[:, None])  # N 1
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    # NaN compares as false, which would put a NaN label first: such rows are placed behind every class.
    place = torch.where(logits.isnan().any(1), torch.iinfo(torch.int64).max, ahead.sum(1))
    # Not compared with a tensor of all k: the host would wait for a GPU to bring it there.
    return torch.stack([(place < k).sum() for k in ks])
