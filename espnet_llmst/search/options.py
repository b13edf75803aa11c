"""How to search, with the meaning that transformers' ``generate`` gives these names."""

from dataclasses import dataclass

from espnet_llmst.cli import InputError


@dataclass(frozen=True)
class SearchOptions:
    """Settings of a search.

    Args:
        beam_size: 1 is greedy, or sampling with ``do_sample``.
        nbest: hypotheses returned, best first.
        length_penalty: scores are divided by the length to its power.
        max_new_tokens: most tokens of a hypothesis, the end of sequence included.
        min_new_tokens: fewest tokens before the end of sequence.
        max_tokens_per_second: further limit by the length of the speech; None for none.
        no_repeat_ngram_size: no sequence of so many tokens occurs twice; 0 for no limit.
        repetition_penalty: above 1, tokens that occurred become less likely.
        early_stopping: False (stop when no better hypothesis is likely), True (as soon as ``beam_size`` are
            finished) or "never" (when no better hypothesis is possible).
        do_sample: draw tokens instead, with ``temperature``, ``top_k`` (0: all) and ``top_p``, by ``seed``.

    Raises:
        InputError: values that contradict each other.
    """

    beam_size: int = 5
    nbest: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    max_tokens_per_second: float | None = None
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.nbest <= self.beam_size or self.max_new_tokens < max(1, self.min_new_tokens):
            raise InputError("search: needs 1 <= nbest <= beam_size and max_new_tokens >= min_new_tokens, at least 1")
        if self.early_stopping not in (True, False, "never"):
            raise InputError(f"early_stopping: '{self.early_stopping}' must be true, false or never")
        if self.do_sample and self.beam_size != 1:
            raise InputError("do_sample: needs beam_size 1")
        counts = (self.min_new_tokens, self.no_repeat_ngram_size, self.top_k, self.max_tokens_per_second or 0)
        if min(counts) < 0:
            raise InputError(
                "search: min_new_tokens, no_repeat_ngram_size, top_k, max_tokens_per_second must not be negative"
            )
        if self.temperature <= 0 or self.repetition_penalty <= 0 or not 0 < self.top_p <= 1:
            raise InputError("search: temperature and repetition_penalty must be above 0, top_p in (0, 1]")

    @property
    def changes_scores(self) -> bool:
        """Whether a model's scores are changed before the choice."""
        return self.looks_back or self.min_new_tokens > 0

    @property
    def looks_back(self) -> bool:
        """Whether they are changed by what the text so far holds."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram_size > 0
