"""The state of a foundation model's training, saved so that a killed one goes on with the same result."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from espnet_llmst.train.checkpoint import write_atomically
from espnet_llmst.train.rng import get_rng_state, set_rng_state


def fingerprint(batch: dict) -> str:
    """Of the numbers of a batch: with the settings, what tells one training from another."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        if isinstance(batch[name], torch.Tensor):
            digest.update(batch[name].numpy().tobytes())
    return digest.hexdigest()[:12]


def save_state(path: Path, model: torch.nn.Module, optims: list, step: int, average: float) -> None:
    """All that a training needs to go on as if nothing had happened."""
    state = {"model": model.state_dict(), "optims": [optim.state_dict() for optim in optims]}
    write_atomically(path, state | {"step": step, "average": average, "rng": get_rng_state()})


def load_state(path: Path, model: torch.nn.Module, optims: list, batches: Iterator[dict]) -> tuple[int, float | None]:
    """The step that a saved training had reached and its mean loss; 0 and None without one.

    The batches until then are drawn, and dropped.
    """
    if not path.exists():
        return 0, None
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optims"], strict=True):
        optim.load_state_dict(saved)
    for _ in range(state["step"]):
        next(batches)
    set_rng_state(state["rng"])
    return state["step"], state["average"]
