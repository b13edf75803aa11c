"""Pads the examples of a batch on the right and adds their lengths."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


def collate(data: Sequence[tuple[str, dict[str, np.ndarray]]]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Examples ``(id, arrays (L, ...))`` to ids and, by name, tensors (B, L, ...) and ``<name>_lengths`` (B,)."""
    ids = [uid for uid, _ in data]
    batch = {}
    for name in data[0][1]:
        arrays = [torch.from_numpy(np.ascontiguousarray(example[name])) for _, example in data]
        batch[name] = pad_sequence(arrays, batch_first=True)
        batch[f"{name}_lengths"] = torch.tensor([len(array) for array in arrays])
    return ids, batch
