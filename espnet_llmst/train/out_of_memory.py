"""When a batch does not fit into the GPU: which it was, and what to set instead."""

from collections.abc import Iterable, Iterator

import torch

from espnet_llmst.train.shapes import SAMPLES_PER_FRAME
from espnet_llmst.train.state import Training
from espnet_llmst.train.token_batches import TOKENS

SMALLER = 0.8


def noted(training: Training, batches: Iterable, role: str = "train") -> Iterator:
    """The same batches; the one in work is ``training.current``, for `memory_advice`; ``role``: train or valid."""
    training.role = role
    for batch in batches:
        training.current = batch
        yield batch
    training.current = None


def memory_advice(training: Training) -> str:
    """One line that names the batch in work, the budget and a smaller one."""
    advice = "the same command goes on from the last checkpoint; for other batches train in a new folder (--expdir)"
    if training.current is None:
        return f"{training.directory}: GPU out of memory; {advice}"
    return f"{training.directory}: GPU out of memory with {describe(*training.current)}; {_smaller(training)}; {advice}"


def describe(utts: list[str], batch: dict[str, torch.Tensor]) -> str:
    """What a batch holds: its number of utterances, the longest, padded sizes."""
    longest = utts[int(batch["speech_lengths"].argmax())]
    samples = batch["speech"].size(1) * (SAMPLES_PER_FRAME // 2 if batch["speech"].dim() == 3 else 1)  # 10 ms each
    tokens = sum(batch[name].size(1) for name in ("prefix", "suffix", "text"))
    frames = max(1, samples // SAMPLES_PER_FRAME)
    return (
        f"a batch of {len(utts)} utterances, the longest {longest}, padded to {samples / 16000:.1f} s and {tokens} "
        f"tokens each ({len(utts) * frames} speech frames of 20 ms, {len(utts) * tokens} tokens)"
    )


def _smaller(training: Training) -> str:
    options, role = training.options, training.role
    names = {TOKENS: ("batch_bins", "batch_frames"), "numel": ("batch_bins",), "length": ("batch_bins",)}

    def own(name: str) -> str:  # validation has options of its own, and training's where they are not given
        return f"{role}_{name}" if getattr(options, f"{role}_{name}", None) is not None else name

    chosen = map(own, names.get(getattr(options, own("batch_type")), ("batch_size",)))
    budget = {name: getattr(options, name) for name in chosen}
    tries = [f"{name} {int(SMALLER * now)} instead of {now}" for name, now in budget.items() if now and now > 1]
    if not tries or len(training.current[0]) == 1:
        return "leave long utterances out (max_wav_duration, stage 3), or see llmst_plan"
    return f"try {' and '.join(tries)}, or see llmst_plan"
