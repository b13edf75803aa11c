"""The state of a foundation model's training, saved so that a killed one goes on with the same result."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch


def fingerprint(batch: dict) -> str:
    """Of the numbers of a batch: with the settings, what tells one training from another."""
    digest = hashlib.sha256()
    for name in sorted(batch):
        if isinstance(batch[name], torch.Tensor):
            digest.update(batch[name].numpy().tobytes())
    return digest.hexdigest()[:12]


def random_state() -> dict:
    """Where torch's and numpy's generators stand: dropout draws from the one, transformers' masks from the other."""
    kind, words, position, *gauss = np.random.get_state()
    numbers = {"kind": kind, "words": torch.from_numpy(words.astype(np.int64)), "rest": [position, *gauss]}
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(), "numpy": numbers}


def set_random_state(state: dict) -> None:
    """Put the generators back to where ``random_state`` saw them."""
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])
    numbers = state["numpy"]
    np.random.set_state((numbers["kind"], numbers["words"].numpy().astype(np.uint32), *numbers["rest"]))


def save_state(path: Path, model: torch.nn.Module, optims: list, step: int, average: float) -> None:
    """All that a training needs to go on as if nothing had happened."""
    state = {"model": model.state_dict(), "optims": [optim.state_dict() for optim in optims]}
    state |= {"step": step, "average": average, "random": random_state()}
    unfinished = path.with_name(path.name + ".tmp")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


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
    set_random_state(state["random"])
    return state["step"], state["average"]
