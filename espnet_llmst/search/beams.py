"""The bookkeeping of beam search for many utterances at once, each as transformers' ``generate`` would search it alone.

Shapes: N utterances (rows), K beams, V vocabulary, T tokens, C candidates (2K: K may all be finished by one step).
"""

from collections.abc import Sequence

import torch

from espnet_llmst.search.options import SearchOptions

NEVER = -1.0e9  # score of what is not there


class Beams:
    """Running and finished hypotheses of the rows at work.

    Args:
        rows: utterances at a time.
        options: of the search.
        eos: end of sequence.
        start: tokens that stand before the answer in the model's eyes (a seq2seq model's start token); the
            repetition penalty and the n-gram limit count them, as transformers does.
        device: of everything.
        banned: tokens that are never written, see `never_written`.
    """

    def __init__(
        self,
        rows: int,
        options: SearchOptions,
        eos: int,
        start: list[int],
        device: torch.device,
        banned: Sequence[int] = (),
    ) -> None:
        self.options, self.eos, self.device = options, eos, device
        self.banned = torch.tensor(list(banned), dtype=torch.long, device=device)
        self.changes_scores = options.changes_scores or bool(banned)
        self.start = torch.tensor(start, dtype=torch.long, device=device)
        beams, size = options.beam_size, options.max_new_tokens

        def new(*shape: int, value=0, dtype=torch.long) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.running_NKT, self.finished_NKT = new(rows, beams, size), new(rows, beams, size)
        self.running_NK = new(rows, beams, value=0.0, dtype=torch.float32)  # sums of log-probabilities
        self.finished_NK = new(rows, beams, value=NEVER, dtype=torch.float32)  # normalised by length
        self.is_finished_NK = new(rows, beams, value=False, dtype=torch.bool)
        self.size_NK = new(rows, beams)  # tokens of the finished, the end of sequence included
        self.token_NK = new(rows, beams)  # to be fed next
        self.length_N, self.limit_N = new(rows), new(rows)
        self.done_N = new(rows, value=False, dtype=torch.bool)
        self.generators: list[torch.Generator | None] = [None] * rows
        self.asks_host = True  # False: `select` is captured, so nothing may depend on what the host reads

    def admit(self, rows: slice, limits: torch.Tensor, seeds: list[int]) -> None:
        """Begin new utterances; ``limits`` (rows,) are their most tokens."""
        self.running_NK[rows], self.finished_NK[rows] = 0.0, NEVER
        self.is_finished_NK[rows], self.done_N[rows], self.length_N[rows] = False, False, 0
        self.limit_N[rows] = limits
        if self.options.do_sample:
            for row, seed in zip(range(rows.start, rows.stop), seeds, strict=True):
                self.generators[row] = torch.Generator(self.device).manual_seed(seed)

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for value in vars(self).values():
            if isinstance(value, torch.Tensor) and value is not self.start and value is not self.banned:
                value[target] = value[source].clone()
        self.generators[target] = self.generators[source]

    def select(self, logits_NKV: torch.Tensor, rows: slice) -> torch.Tensor:
        """Take one step with the logits of the running beams (one row of them in the first step).

        Returns:
            The parent (N, K) of each beam that goes on.
        """
        if self.options.beam_size == 1:
            return self._greedy(logits_NKV[:, 0].float(), rows)
        score_NC, parent_NC, token_NC = self._candidates(logits_NKV.float(), rows)
        length_N = self._next_length(rows)
        ends_NC = (token_NC == self.eos) | (length_N >= self.limit_N[rows])[:, None]
        self._finish(score_NC, parent_NC, token_NC, ends_NC, length_N, rows)
        running_NK, index_NK = (score_NC + ends_NC * NEVER).topk(self.options.beam_size, dim=1)
        parent_NK, token_NK = parent_NC.gather(1, index_NK), token_NC.gather(1, index_NK)
        self.running_NKT[rows] = _extended(self.running_NKT[rows], parent_NK, token_NK, length_N)
        self.running_NK[rows], self.token_NK[rows], self.length_N[rows] = running_NK, token_NK, length_N
        self.done_N[rows] = self._is_done(rows) | ends_NC.all(dim=1)
        return parent_NK

    def _next_length(self, rows: slice) -> torch.Tensor:
        return (self.length_N[rows] + 1).clamp(max=self.running_NKT.size(2))  # of a row not at work it may be any

    def _candidates(self, logits_NKV, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The 2K best continuations of each utterance: score, parent, token, each (N, C)."""
        norm_NK = logits_NKV.logsumexp(dim=-1)
        wanted = 2 * self.options.beam_size
        if self.changes_scores:
            self._change(logits_NKV, norm_NK, rows)
        # The best of every beam first: the vocabulary is normalised only where it matters.
        best_NKC, token_NKC = logits_NKV.topk(min(wanted, logits_NKV.size(-1)), dim=-1)
        running_NK = self.running_NK[rows][:, : logits_NKV.size(1)]
        total_NKC = best_NKC - norm_NK[..., None] + running_NK[..., None]
        score_NC, index_NC = total_NKC.flatten(1).topk(min(wanted, total_NKC[0].numel()), dim=1)
        token_NC = token_NKC.flatten(1).gather(1, index_NC)
        parent_NC = index_NC // token_NKC.size(-1)
        short = wanted - score_NC.size(1)
        if short:  # a vocabulary smaller than 2K
            pad = torch.nn.functional.pad
            return pad(score_NC, (0, short), value=2 * NEVER), pad(parent_NC, (0, short)), pad(token_NC, (0, short))
        return score_NC, parent_NC, token_NC

    def _change(self, logits_NKV: torch.Tensor, norm_NK: torch.Tensor, rows: slice) -> None:
        """Repetition penalty, n-gram limit, minimum length and banned tokens, in place and in transformers' order.

        They are defined on log-probabilities, logits less ``norm_NK``; only those of tokens concerned are computed.
        """
        options, beams = self.options, logits_NKV.size(1)
        for n, length in enumerate(self.length_N[rows].tolist() if options.looks_back else []):
            texts_KT = torch.cat([self.start.expand(beams, -1), self.running_NKT[rows][n, :beams, :length]], dim=1)
            if options.repetition_penalty != 1.0 and texts_KT.size(1):
                norm_K1, penalty = norm_NK[n, :, None], options.repetition_penalty
                seen_KT = logits_NKV[n].gather(1, texts_KT) - norm_K1
                seen_KT = torch.where(seen_KT < 0, seen_KT * penalty, seen_KT / penalty)
                logits_NKV[n].scatter_(1, texts_KT, seen_KT + norm_K1)
            if options.no_repeat_ngram_size:
                for k, text in enumerate(texts_KT.tolist()):
                    logits_NKV[n, k, banned_tokens(text, options.no_repeat_ngram_size)] = -torch.inf
        if options.min_new_tokens:
            logits_NKV[:, :, self.eos].masked_fill_((self.length_N[rows] < options.min_new_tokens)[:, None], -torch.inf)
        if len(self.banned):
            logits_NKV.index_fill_(-1, self.banned, -torch.inf)

    def _finish(self, score_NC, parent_NC, token_NC, ends_NC, length_N, rows: slice) -> None:
        """Keep the K best of the finished so far and of those of the K best candidates that end now."""
        options = self.options
        ends_NC = ends_NC.clone()
        ends_NC[:, options.beam_size :].fill_(False)
        if self.asks_host and not bool(ends_NC.any()):
            return
        new_NC = score_NC / length_N[:, None].to(score_NC.dtype) ** options.length_penalty
        new_NC = new_NC.masked_fill(~ends_NC, NEVER)
        if options.early_stopping is True:
            new_NC = new_NC.masked_fill(self.is_finished_NK[rows].all(dim=1, keepdim=True), NEVER)
        texts_NCT = _extended(self.running_NKT[rows], parent_NC, token_NC, length_N)
        both = torch.cat([self.finished_NK[rows], new_NC], dim=1)
        self.finished_NK[rows], index_NK = both.topk(options.beam_size, dim=1)
        texts = torch.cat([self.finished_NKT[rows], texts_NCT], dim=1)
        self.finished_NKT[rows] = texts.gather(1, index_NK[:, :, None].expand(-1, -1, texts.size(2)))
        self.is_finished_NK[rows] = torch.cat([self.is_finished_NK[rows], ends_NC], dim=1).gather(1, index_NK)
        sizes = torch.cat([self.size_NK[rows], length_N[:, None].expand_as(new_NC)], dim=1)
        self.size_NK[rows] = sizes.gather(1, index_NK)

    def _is_done(self, rows: slice) -> torch.Tensor:
        """Whether an utterance (N,) can end: no running beam is likely to beat the worst finished one."""
        options, length_N = self.options, self.length_N[rows]
        if options.early_stopping == "never" and options.length_penalty > 0:
            length_N = self.limit_N[rows]
        best_N = self.running_NK[rows][:, 0] / length_N.to(torch.float32) ** options.length_penalty
        worst_N1 = self.finished_NK[rows].min(dim=1, keepdim=True).values
        worst_NK = worst_N1.expand_as(self.finished_NK[rows]).masked_fill(~self.is_finished_NK[rows], NEVER)
        done_N = ~(best_N[:, None] > worst_NK).any(dim=1)
        if options.early_stopping is True:
            done_N |= self.is_finished_NK[rows].all(dim=1)
        return done_N

    def _greedy(self, logits_NV: torch.Tensor, rows: slice) -> torch.Tensor:
        """One token for each utterance, the most likely or a drawn one; the first end of sequence ends it."""
        if self.changes_scores:  # of beams alone transformers takes the raw logits
            logits_NV = logits_NV.clone()
            self._change(logits_NV[:, None], torch.zeros_like(logits_NV[:, :1]), rows)
        if self.options.do_sample:
            logits_NV = warped(logits_NV, self.options)
            drawn = [
                torch.multinomial(row.softmax(dim=-1), 1, generator=self.generators[rows.start + n])
                for n, row in enumerate(logits_NV)
            ]
            token_N1 = torch.stack(drawn)
        else:
            token_N1 = logits_NV.argmax(dim=-1, keepdim=True)
        score_N1 = logits_NV.gather(1, token_N1) - logits_NV.logsumexp(dim=-1, keepdim=True)
        length_N = self._next_length(rows)
        parent_N1 = torch.zeros_like(token_N1)
        self.running_NKT[rows] = _extended(self.running_NKT[rows], parent_N1, token_N1, length_N)
        self.running_NK[rows] += score_N1
        self.token_NK[rows], self.length_N[rows] = token_N1, length_N
        self.done_N[rows] = (token_N1[:, 0] == self.eos) | (length_N >= self.limit_N[rows])
        self.finished_NKT[rows] = self.running_NKT[rows]
        self.is_finished_NK[rows].fill_(True)
        self.size_NK[rows] = length_N[:, None]
        self.finished_NK[rows] = self.running_NK[rows] / length_N[:, None] ** self.options.length_penalty
        return parent_N1

    def nbest(self, row: int) -> list[tuple[list[int], float]]:
        """Token ids without the end of sequence, and score, of an utterance's best hypotheses."""
        results = []
        for rank in range(self.options.nbest):
            if rank == 0 or bool(self.is_finished_NK[row, rank]):
                ids = self.finished_NKT[row, rank, : int(self.size_NK[row, rank])].tolist()
                results.append(([i for i in ids if i != self.eos], float(self.finished_NK[row, rank])))
        return results


def _extended(texts_NKT: torch.Tensor, parent_NC: torch.Tensor, token_NC: torch.Tensor, length_N: torch.Tensor):
    """The parents' texts (N, C, T), each with its new token as the last of ``length_N``."""
    texts_NCT = texts_NKT.gather(1, parent_NC[:, :, None].expand(-1, -1, texts_NKT.size(2)))
    place = (length_N - 1)[:, None, None].expand(-1, parent_NC.size(1), 1)
    return texts_NCT.scatter(2, place, token_NC[:, :, None])


def banned_tokens(text: list[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of ``size`` tokens which ``text`` already holds."""
    if len(text) + 1 < size:
        return []
    last = text[len(text) - size + 1 :]
    starts = range(len(text) - size + 1)
    return [text[i + size - 1] for i in starts if text[i : i + size - 1] == last]


def warped(logits_NV: torch.Tensor, options: SearchOptions) -> torch.Tensor:
    """Logits by temperature, the ``top_k`` highest and the smallest set of probability ``top_p``."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits_NV = TemperatureLogitsWarper(options.temperature)(None, logits_NV)
    if options.top_k:
        logits_NV = TopKLogitsWarper(options.top_k)(None, logits_NV)
    return TopPLogitsWarper(options.top_p)(None, logits_NV) if options.top_p < 1 else logits_NV


def is_loop(ids: list[int], repeats: int = 4, longest: int = 8) -> bool:
    """Whether a hypothesis ends in the same few tokens ``repeats`` times or more: a decoder that lost its way."""
    for size in range(1, longest + 1):
        tail = ids[-size * repeats :]
        if len(tail) == size * repeats and tail == tail[:size] * repeats:
            return True
    return False
