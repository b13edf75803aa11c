"""``batch_type: tokens``: batches filled by positions of the language model and frames of the speech encoder.

ESPnet's samplers close a batch after its limit is passed, and take the length of its last utterance for its longest;
here the limits hold.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from espnet2.samplers.build_batch_sampler import BATCH_TYPES

from espnet_llmst.cli import InputError
from espnet_llmst.datadir.kaldi import read_table

TOKENS = "tokens"
BATCH_TYPES[TOKENS] = (  # read when the parser is built
    "At most batch_bins positions of the language model (speech vectors and text tokens), padding included, and at "
    "most batch_frames frames of the speech encoder. Needs a shape file of lines 'utterance positions,frames'."
)


def read_sizes(shape_file: str | Path) -> dict[str, tuple[int, int]]:
    """(positions, encoder frames) of each utterance, from the ``position_shape`` of stage 5.

    Raises:
        InputError: another kind of shape file.
    """
    sizes = {}
    for utt, line in read_table(shape_file).items():
        numbers = line.split(",")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise InputError(
                f"{shape_file}: utterance {utt}: 'positions,frames' are expected; write 'batch_type: {TOKENS}' into "
                "the phase's YAML and run stages 5 and 6"
            )
        sizes[utt] = (int(numbers[0]), int(numbers[1]))
    return sizes


def fill_batches(
    sizes: Mapping[str, tuple[int, int]], batch_bins: int, batch_frames: int | None = None, ranks: int = 1
) -> list[tuple[str, ...]]:
    """Utterances of like size together, from the smallest on; the longest of a batch comes first.

    Like is what costs alike: positions and frames count as shares of their means, for with a Q-Former every utterance
    has as many vectors, but not as many frames. Every rank takes each ``ranks``-th utterance of a batch, so a batch has
    one for each, and the limits hold for equal parts.

    Args:
        sizes: (positions, frames) of each utterance.
        batch_bins: utterances of a batch times its most positions are at most this.
        batch_frames: likewise for frames; None for no limit.
        ranks: processes of the training.

    Raises:
        InputError: fewer utterances than ranks.
    """
    if len(sizes) < ranks:
        raise InputError(f"{len(sizes)} utterances are too few for {ranks} processes")
    utts, limits = list(sizes), (batch_bins, batch_frames or float("inf"))
    size_N2 = np.array([sizes[utt] for utt in utts], dtype=float)
    share_N = (size_N2 / size_N2.mean(0).clip(1)).sum(1)
    batches: list[list[str]] = [[]]
    most = (0, 0)
    for n in np.argsort(share_N, kind="stable"):
        utt = utts[n]
        grown = tuple(map(max, most, sizes[utt]))
        if len(batches[-1]) >= ranks and not _fits(len(batches[-1]) + 1, grown, limits, ranks):
            batches.append([])
            grown = sizes[utt]
        batches[-1].append(utt)
        most = grown
    _fill_last(batches, ranks)
    _warn_of_long(batches, sizes, limits, ranks)
    return [tuple(reversed(batch)) for batch in batches]


def _fits(rows: int, most: Sequence[int], limits: Sequence[float], ranks: int) -> bool:
    rows = -(-rows // ranks) * ranks  # the largest part counts
    return all(rows * size <= limit for size, limit in zip(most, limits, strict=True))


def _fill_last(batches: list[list[str]], ranks: int) -> None:
    """Give the last batch an utterance for every rank: each takes what it lacks from the one before.

    What the first then lacks makes the two of the shortest utterances one.
    """
    for after, batch in zip(reversed(batches), reversed(batches[:-1]), strict=False):
        lacking = max(0, ranks - len(after))
        after[:0] = batch[len(batch) - lacking :]
        del batch[len(batch) - lacking :]
    if len(batches) > 1 and len(batches[0]) < ranks:
        batches[:2] = [batches[0] + batches[1]]


def _warn_of_long(batches: Sequence[Sequence[str]], sizes: Mapping, limits: Sequence[float], ranks: int) -> None:
    """A batch may be over its limits only where an utterance for each process is, or where the first two are one."""
    most = ([max(sizes[utt][n] for utt in batch) for n in range(2)] for batch in batches)
    over = [batch for batch, size in zip(batches, most, strict=True) if not _fits(len(batch), size, limits, ranks)]
    if over:
        logging.warning(
            f"{len(over)} batches are over batch_bins or batch_frames with an utterance for each process, as "
            f"{over[-1][-1]}; "
            "if memory does not suffice, leave long ones out (max_wav_duration, stage 3)"
        )
