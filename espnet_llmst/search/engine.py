"""The decoding engine: beam search over long prompts, exact, in batches that refill as utterances finish.

Each utterance's hypotheses are those of transformers' ``generate`` run on it alone, whatever the others are. What
makes it fast: a prompt is computed and kept once instead of once per beam, nothing is re-ordered or copied from step
to step, and a finished utterance makes room at once.

Shapes: N utterances (rows), K beams, L prompt length, D width, V vocabulary.
"""

import gc
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from espnet_llmst.cli import InputError
from espnet_llmst.search.beams import Beams
from espnet_llmst.search.graphs import StepRunner
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.search.pool import CrossStates, Extent, KVPool, at_work, row_positions, shared_states

PREFILL_TOKENS = 8192  # prompt positions, padding included, that are computed at a time
PREFILL_PADDING = 0.1  # most of these that may be padding


@dataclass(frozen=True)
class Prompt:
    """One utterance to decode.

    Args:
        key: returned with the result.
        embeds: the prompt's embeddings (L, D); for a seq2seq model what its decoder attends to.
        limit: most new tokens; None for the options' own.
    """

    key: str
    embeds: torch.Tensor
    limit: int | None = None


class Engine:
    """Decodes prompts with one language model.

    Args:
        decoder: one of `espnet_llmst.decoder`.
        eos: end of sequence.
        options: of the search.
        rows: most utterances at a time.
        kv_memory: bytes that the keys and values of all rows may take; it lowers ``rows``; None for no limit.
        context: opened around every use of the model, e.g. autocast.
        graphs: steps are static, and on a GPU captured as CUDA graphs (see `StepRunner`). Storage and graphs are then
            kept for the next decode.
    """

    def __init__(
        self,
        decoder: torch.nn.Module,
        eos: int,
        options: SearchOptions,
        rows: int = 16,
        kv_memory: int | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
        graphs: bool = False,
    ) -> None:
        self.lm, self.eos, self.options, self.context = decoder.lm, eos, options, context
        self.rows, self.kv_memory, self.graphs = rows, kv_memory, graphs
        self.kept: _Work | None = None
        self.is_seq2seq = bool(self.lm.config.is_encoder_decoder)
        self.core = self.lm.get_decoder() if self.is_seq2seq else self.lm
        configs = [module.config for module in self.lm.modules() if hasattr(module, "config")]
        self.configs = list({id(config): config for config in configs}.values())
        self.peak_bytes = 0

    @torch.inference_mode()
    def decode(
        self, prompts: Iterable[Prompt], shared: torch.Tensor | None = None
    ) -> Iterator[tuple[str, list[tuple[list[int], float]]]]:
        """N-best lists as utterances finish, not in the order given.

        Args:
            prompts: longest first is fastest.
            shared: embeddings (L, D) that stand before every prompt (not in it): computed once.
        """
        waiting, prompts = deque(), iter(prompts)
        waiting.extend(islice(prompts, 4 * self.rows))
        rows = self.rows
        while waiting:
            work = self._work(waiting, prompts, shared, rows)
            try:
                yield from work.run()
                if self.graphs:
                    self.kept = work
                else:
                    work.pool.release()
                continue
            except torch.OutOfMemoryError:
                rows = work.rows // 2
            if not rows:
                raise InputError("out of memory with one utterance at a time: give more, or shorter speech")
            logging.warning("out of memory: decoding goes on with %d utterances at a time", rows)
            waiting.extendleft(reversed([prompt for prompt in work.own if prompt is not None]))
            work.pool.release()
            del work
            gc.collect()
            torch.cuda.empty_cache()

    def _work(self, waiting: deque, prompts: Iterator[Prompt], shared: torch.Tensor | None, rows: int) -> "_Work":
        """Rows to work with; those of the last decode when they are large enough."""
        kept, self.kept = self.kept, None
        if kept is None or not kept.holds(waiting, shared, rows):
            return _Work(self, waiting, prompts, shared, rows)
        kept.begin(waiting, prompts, shared)
        return kept

    def bytes_per_position(self) -> int:
        """What the keys and values of one text position take."""
        config = self.core.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * self.num_layers() * heads * width * self.lm.get_input_embeddings().weight.element_size()

    def num_layers(self) -> int:
        """Layers of the language model, or of its decoder."""
        config = self.core.config
        names = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
        return next(getattr(config, name) for name in names if getattr(config, name, None))


def never_written(lm: torch.nn.Module) -> list[int]:
    """Tokens that the checkpoint's own generation settings forbid, as OPUS-MT's do the padding."""
    config = getattr(lm, "generation_config", None)
    words = [ids[0] for ids in getattr(config, "bad_words_ids", None) or [] if len(ids) == 1]
    return sorted({*words, *(getattr(config, "suppress_tokens", None) or [])})


class _Work:
    """The rows at work between two out-of-memory errors."""

    def __init__(self, engine: Engine, waiting: deque, prompts: Iterator[Prompt], shared, rows: int) -> None:
        self.engine, self.options, self.device = engine, engine.options, waiting[0].embeds.device
        self.longest = max(len(prompt.embeds) for prompt in waiting)
        self.rows = self._affordable(rows, self.longest)
        size = 1 if engine.is_seq2seq else self.longest
        beams = self.options.beam_size
        self.pool = KVPool(engine.num_layers(), self.rows, beams, size, self.device)
        self.start = engine.lm.config.decoder_start_token_id if engine.is_seq2seq else None
        before = [self.start] if engine.is_seq2seq else []
        self.beams = Beams(self.rows, self.options, engine.eos, before, self.device, never_written(engine.lm))
        if engine.is_seq2seq:
            self.pool.cross = CrossStates(engine.num_layers(), self.rows, self.longest)
        self.runner = StepRunner(self.static_step, self.device) if engine.graphs else None
        self.has_static_search = not (self.options.looks_back or self.options.do_sample)
        self.beams.asks_host = not (engine.graphs and self.has_static_search)
        self.begin(waiting, prompts, shared)

    def begin(self, waiting: deque, prompts: Iterator[Prompt], shared: torch.Tensor | None) -> None:
        """Have no row at work yet."""
        self.waiting, self.prompts, self.shared = waiting, prompts, shared
        self.own: list[Prompt | None] = [None] * self.rows
        self.pool.live = 0

    def holds(self, waiting: deque, shared: torch.Tensor | None, rows: int) -> bool:
        """Whether this storage serves other prompts as well as new storage would."""
        longest = max(len(prompt.embeds) for prompt in waiting)
        same_beginning = self.pool.shared_size == (0 if shared is None else len(shared))
        return longest <= self.longest and self._affordable(rows, longest) <= self.rows and same_beginning

    def _affordable(self, rows: int, longest: int) -> int:
        if self.engine.kv_memory is None:
            return rows
        positions = longest + self.options.beam_size * self.options.max_new_tokens
        return max(1, min(rows, self.engine.kv_memory // (positions * self.engine.bytes_per_position())))

    def run(self) -> Iterator[tuple[str, list[tuple[list[int], float]]]]:
        """Decode until nothing fits or nothing is left; results as they come."""
        if self.shared is not None and len(self.shared):
            self.share()
        while self.waiting or self.pool.live:
            free = self.rows - self.pool.live
            if self._next_fits() and (free >= max(1, self.rows // 4) or not self.pool.live):
                while self._next_fits() and (free := self.rows - self.pool.live):
                    self.prefill(self._group(free))
            elif self.pool.live:
                self.step()
            else:
                return  # a longer prompt than this storage was made for
            yield from self._retire()

    def _next_fits(self) -> bool:
        return bool(self.waiting) and len(self.waiting[0].embeds) <= self.longest

    def _group(self, free: int) -> list[Prompt]:
        """The next prompts that are computed together."""
        group: list[Prompt] = []
        size = total = 0
        while self._next_fits() and len(group) < free:
            length = len(self.waiting[0].embeds)
            size, total = max(size, length), total + length
            padded = size * (len(group) + 1)
            if group and (padded > PREFILL_TOKENS or total < (1 - PREFILL_PADDING) * padded):
                break
            prompt = self.waiting.popleft()
            self.own[self.pool.live + len(group)] = prompt
            group.append(prompt)
            self.waiting.extend(islice(self.prompts, 1))
        return group

    def call(self, **inputs) -> torch.Tensor:
        """Logits of the language model, its attention replaced by the pool's."""
        with at_work(self.pool, self.engine.configs), self.engine.context():
            return self.engine.lm(use_cache=True, **inputs).logits

    def share(self) -> None:
        """Compute the beginning that all prompts have in common (causal models)."""
        self.pool.phase = "share"
        self.call(inputs_embeds=self.shared[None], past_key_values=self.pool, logits_to_keep=1)
        self.pool.shared_size = len(self.shared)

    def prefill(self, group: list[Prompt]) -> None:
        """Compute the prompts of a group into the rows behind those at work, and their first tokens."""
        pool, first = self.pool, self.pool.live
        rows = slice(first, first + len(group))
        sizes = [len(prompt.embeds) for prompt in group]
        embeds_NLD = pad_sequence([prompt.embeds for prompt in group], batch_first=True)
        pool.phase, pool.target = "prefill", rows
        fill = self._fill_seq2seq if self.engine.is_seq2seq else self._fill_causal
        logits_N1V = fill(embeds_NLD, torch.tensor(sizes, device=self.device), sizes)
        limits = [min(prompt.limit or self.options.max_new_tokens, self.options.max_new_tokens) for prompt in group]
        seeds = [self.options.seed + number_of(prompt.key) for prompt in group]
        self.beams.admit(rows, torch.tensor(limits, device=self.device), seeds)
        self.beams.select(logits_N1V, rows)

    def _fill_causal(self, embeds_NLD: torch.Tensor, lengths: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        positions = self.pool.shared_size + torch.arange(embeds_NLD.size(1), device=self.device)
        logits_N1V = self.call(
            inputs_embeds=embeds_NLD,
            position_ids=positions[None].expand(len(embeds_NLD), -1),
            past_key_values=self.pool,
            logits_to_keep=lengths[:, None] - 1,
        )
        self.pool.admit(sizes)
        return logits_N1V

    def _fill_seq2seq(self, states_NLD: torch.Tensor, lengths: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The encoder states' keys and values, and the start token."""
        pool, cross = self.pool, DynamicCache()
        pool.padding_NP = torch.arange(states_NLD.size(1), device=self.device) >= lengths[:, None]
        logits_N1V = self.call(
            decoder_input_ids=torch.full((len(lengths), 1), self.start, device=self.device),
            encoder_outputs=BaseModelOutput(last_hidden_state=states_NLD),
            past_key_values=EncoderDecoderCache(pool, cross),
        )
        pool.cross.store(pool.target, [(layer.keys, layer.values) for layer in cross.layers], lengths, sizes)
        pool.admit([1] * len(lengths))
        return logits_N1V

    def step(self) -> None:
        """One token for every beam at work."""
        if self.runner is None:
            self._choose(self.step_logits())
        else:
            self._run_static()
        self.pool.count_step()

    def _choose(self, logits_NKV: torch.Tensor) -> None:
        self.pool.advance(self.beams.select(logits_NKV, slice(0, len(logits_NKV))))

    def _run_static(self) -> None:
        """A static step, and the search after it where that cannot be a part of it."""
        pool, extent = self.pool, self.pool.rounded()
        pool.check_window()
        if pool.reserve(extent.steps):
            self.runner.forget()
        pool.live_1.fill_(pool.live)
        logits_NKV = self.runner.run(extent)
        if logits_NKV is not None:
            pool.used = extent  # a replay does not say so itself
            self._choose(logits_NKV[: pool.live])

    def static_step(self, extent: Extent) -> torch.Tensor | None:
        """One token for every beam by tensors alone; or only the logits (N, K, V) if the search asks the host."""
        self.pool.begin_static_step(extent)
        logits_NKV = self._logits()
        if not self.has_static_search:
            return logits_NKV
        self._choose(logits_NKV)

    def step_logits(self) -> torch.Tensor:
        """Logits (N, K, V) of the beams at work after their last tokens."""
        self.pool.begin_step()
        return self._logits()

    def _logits(self) -> torch.Tensor:
        pool = self.pool
        token_NK = self.beams.token_NK[: pool.used.rows]
        if not self.engine.is_seq2seq:
            return self.call(input_ids=token_NK, position_ids=pool.position_NK, past_key_values=pool)
        with row_positions(self.engine.core, pool):
            return self.call(
                decoder_input_ids=token_NK,
                encoder_outputs=BaseModelOutput(last_hidden_state=pool.cross.stand_in),
                past_key_values=shared_states(pool),
            )

    def _retire(self) -> Iterator[tuple[str, list[tuple[list[int], float]]]]:
        """Results of the utterances that are done; the last row takes a free one's place."""
        done = [row for row, is_done in enumerate(self.beams.done_N[: self.pool.live].tolist()) if is_done]
        if done:  # until here the rows at work only grew
            self.engine.peak_bytes = max(self.engine.peak_bytes, self.pool.bytes_in_use())
        for row in reversed(done):
            prompt, last = self.own[row], self.pool.live - 1
            result = self.beams.nbest(row)
            if row != last:
                self.pool.move(last, row)
                self.beams.move(last, row)
                self.own[row] = self.own[last]
            self.own[last] = None
            self.pool.live = last
            yield prompt.key, result


@torch.inference_mode()
def largest_error(engine: Engine) -> tuple[float, torch.dtype]:
    """How far the engine's logits are from the plain forward pass, as a share of the largest, and the type computed in.

    Two prompts of different length, computed together, go a few steps with two beams and are then compared beam by
    beam: the next logits, and the running scores, which are sums over the steps before (of those, the mean error).
    With graphs the first step runs as it is, the second is captured and replayed, the rest are replayed.
    """
    table = engine.lm.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    device = table.weight.device
    ids = [torch.randint(1, table.num_embeddings, (size,), generator=generator).to(device) for size in (10, 9)]
    options = SearchOptions(beam_size=2, max_new_tokens=8, min_new_tokens=7)
    trial = Engine(engine, engine.eos, options, rows=2, context=engine.context, graphs=engine.graphs)
    prompts = deque(Prompt(str(n), table(one)) for n, one in enumerate(ids))
    work = _Work(trial, prompts, iter(()), None, 2)
    work.prefill(work._group(2))
    steps = 4 if engine.graphs else 2
    for _ in range(steps):
        work.step()
    logits_NKV, errors = work.step_logits(), []
    for n, prompt in enumerate(work.own):
        for text_T, score, logits_V in zip(
            work.beams.running_NKT[n, :, : steps + 1], work.beams.running_NK[n], logits_NKV[n], strict=True
        ):
            plain_TV = _plain_logits(engine, prompt.embeds, text_T)
            plain_score = plain_TV[:-1].log_softmax(dim=-1).gather(1, text_T[:, None]).sum()
            errors += [(logits_V.float() - plain_TV[-1]).abs().max(), (score - plain_score).abs() / len(text_T)]
    with engine.context():
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else logits_NKV.dtype
    return float(torch.stack(errors).max() / logits_NKV.float().abs().max()), dtype


def _plain_logits(engine: Engine, embeds_LD: torch.Tensor, text_T: torch.Tensor) -> torch.Tensor:
    """Logits (T + 1, V) from the end of a prompt to the end of a text, without cache."""
    with engine.context():
        if engine.is_seq2seq:
            ids = torch.cat([text_T.new_tensor([engine.lm.config.decoder_start_token_id]), text_T])[None]
            states = BaseModelOutput(last_hidden_state=embeds_LD[None])
            return engine.lm(encoder_outputs=states, decoder_input_ids=ids, use_cache=False).logits[0].float()
        whole = torch.cat([embeds_LD, engine.lm.get_input_embeddings()(text_T)])[None]
        return engine.lm(inputs_embeds=whole, use_cache=False).logits[0, len(embeds_LD) - 1 :].float()


def number_of(key: str) -> int:
    """A number for a key: another seed for every utterance, the same in every run."""
    return zlib.crc32(key.encode())
