"""What a decode returns for one utterance."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """One of an utterance's n-best.

    Args:
        ids: token ids, without the end of sequence.
        score: sum of log-probabilities divided by length to the power of the length penalty.
        tokens: the same as strings of the vocabulary.
        text: detokenised.
    """

    ids: list[int]
    score: float
    tokens: list[str]
    text: str
