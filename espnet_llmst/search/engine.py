"""The decoding engine: beam search over long prompts, exact, in batches that refill as utterances finish.

Each utterance's hypotheses are those of transformers' ``generate`` run on it alone, whatever the others are. What
makes it fast: a prompt is computed and kept once instead of once per beam, nothing is re-ordered or copied from step
to step, and a finished utterance makes room at once.

Shapes: N utterances (rows), K beams, L prompt length, D width, V vocabulary.
"""

import logging
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
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.search.pool import CrossStates, KVPool, at_work, row_positions, shared_states

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
    """

    def __init__(
        self,
        decoder: torch.nn.Module,
        eos: int,
        options: SearchOptions,
        rows: int = 16,
        kv_memory: int | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        self.lm, self.eos, self.options, self.context = decoder.lm, eos, options, context
        self.rows, self.kv_memory = rows, kv_memory
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
            try:
                work = _Work(self, waiting, prompts, shared, rows)
                yield from work.run()
            except torch.OutOfMemoryError:
                rows = work.rows // 2
                if not rows:
                    raise InputError(
                        "out of memory with one utterance at a time: give more, or shorter speech"
                    ) from None
                logging.warning("out of memory: decoding goes on with %d utterances at a time", rows)
                waiting.extendleft(reversed([prompt for prompt in work.own if prompt is not None]))
                del work
                torch.cuda.empty_cache()

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


class _Work:
    """The rows at work between two out-of-memory errors."""

    def __init__(self, engine: Engine, waiting: deque, prompts: Iterator[Prompt], shared, rows: int) -> None:
        self.engine, self.waiting, self.prompts, self.shared = engine, waiting, prompts, shared
        self.options, self.device = engine.options, waiting[0].embeds.device
        self.longest = max(len(prompt.embeds) for prompt in waiting)
        self.rows = self._affordable(rows)
        size = 1 if engine.is_seq2seq else self.longest
        beams = self.options.beam_size
        self.pool = KVPool(engine.num_layers(), self.rows, beams, size, self.device)
        self.start = engine.lm.config.decoder_start_token_id if engine.is_seq2seq else None
        before = [self.start] if engine.is_seq2seq else []
        self.beams = Beams(self.rows, self.options, engine.eos, before, self.device)
        self.own: list[Prompt | None] = [None] * self.rows
        if engine.is_seq2seq:
            self.pool.cross = CrossStates(engine.num_layers(), self.rows, self.longest)

    def _affordable(self, rows: int) -> int:
        if self.engine.kv_memory is None:
            return rows
        positions = self.longest + self.options.beam_size * self.options.max_new_tokens
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
        lengths = torch.tensor([len(prompt.embeds) for prompt in group], device=self.device)
        embeds_NLD = pad_sequence([prompt.embeds for prompt in group], batch_first=True)
        pool.phase, pool.target = "prefill", rows
        fill = self._fill_seq2seq if self.engine.is_seq2seq else self._fill_causal
        logits_N1V = fill(embeds_NLD, lengths)
        limits = [min(prompt.limit or self.options.max_new_tokens, self.options.max_new_tokens) for prompt in group]
        seeds = [self.options.seed + _number(prompt.key) for prompt in group]
        self.beams.admit(rows, torch.tensor(limits, device=self.device), seeds)
        self.beams.select(logits_N1V, rows)

    def _fill_causal(self, embeds_NLD: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        positions = self.pool.shared_size + torch.arange(embeds_NLD.size(1), device=self.device)
        logits_N1V = self.call(
            inputs_embeds=embeds_NLD,
            position_ids=positions[None].expand(len(embeds_NLD), -1),
            past_key_values=self.pool,
            logits_to_keep=lengths[:, None] - 1,
        )
        self.pool.admit(lengths.tolist())
        return logits_N1V

    def _fill_seq2seq(self, states_NLD: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The encoder states' keys and values, and the start token."""
        pool, cross = self.pool, DynamicCache()
        pool.padding_NP = torch.arange(states_NLD.size(1), device=self.device) >= lengths[:, None]
        logits_N1V = self.call(
            decoder_input_ids=torch.full((len(lengths), 1), self.start, device=self.device),
            encoder_outputs=BaseModelOutput(last_hidden_state=states_NLD),
            past_key_values=EncoderDecoderCache(pool, cross),
        )
        pool.cross.store(pool.target, [(layer.keys, layer.values) for layer in cross.layers], lengths)
        pool.admit([1] * len(lengths))
        return logits_N1V

    def step(self) -> None:
        """One token for every beam at work."""
        pool, rows = self.pool, slice(0, self.pool.live)
        logits_NKV = self.step_logits()
        pool.advance(self.beams.select(logits_NKV, rows))

    def step_logits(self) -> torch.Tensor:
        """Logits (N, K, V) of the beams at work after their last tokens."""
        pool = self.pool
        pool.begin_step()
        token_NK = self.beams.token_NK[: pool.live]
        if not self.engine.is_seq2seq:
            return self.call(input_ids=token_NK, position_ids=pool.position_NK, past_key_values=pool)
        pool.cross.show(pool.live)
        with row_positions(self.engine.core, pool):
            return self.call(
                decoder_input_ids=token_NK,
                encoder_outputs=BaseModelOutput(last_hidden_state=pool.cross.stand_in),
                past_key_values=shared_states(pool),
            )

    def _retire(self) -> Iterator[tuple[str, list[tuple[list[int], float]]]]:
        """Results of the utterances that are done; the last row takes a free one's place."""
        done = self.beams.done_N[: self.pool.live].nonzero()[:, 0].tolist()
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

    Two prompts of different length, computed together, go two steps with two beams and are then compared beam by beam.
    """
    table = engine.lm.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    device = table.weight.device
    ids = [torch.randint(1, table.num_embeddings, (size,), generator=generator).to(device) for size in (10, 9)]
    options = SearchOptions(beam_size=2, max_new_tokens=8, min_new_tokens=7)
    trial = Engine(engine, engine.eos, options, rows=2, context=engine.context)
    prompts = deque(Prompt(str(n), table(one)) for n, one in enumerate(ids))
    work = _Work(trial, prompts, iter(()), None, 2)
    work.prefill(work._group(2))
    for _ in range(2):
        work.step()
    logits_NKV = work.step_logits()
    errors = [
        (logits_NKV[n, k].float() - _plain_logits(engine, prompt.embeds, work.beams.running_NKT[n, k, :3])).abs().max()
        for n, prompt in enumerate(work.own)
        for k in range(2)
    ]
    with engine.context():
        mixed = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if mixed else logits_NKV.dtype
    return float(torch.stack(errors).max() / logits_NKV.float().abs().max()), dtype


def _plain_logits(engine: Engine, embeds_LD: torch.Tensor, text_T: torch.Tensor) -> torch.Tensor:
    """Logits (V,) after a prompt and a text, without cache."""
    with engine.context():
        if engine.is_seq2seq:
            ids = torch.cat([text_T.new_tensor([engine.lm.config.decoder_start_token_id]), text_T])[None]
            states = BaseModelOutput(last_hidden_state=embeds_LD[None])
            return engine.lm(encoder_outputs=states, decoder_input_ids=ids, use_cache=False).logits[0, -1].float()
        whole = torch.cat([embeds_LD, engine.lm.get_input_embeddings()(text_T)])[None]
        return engine.lm(inputs_embeds=whole, use_cache=False).logits[0, -1].float()


def _number(key: str) -> int:
    return int.from_bytes(key.encode()[-4:], "little")  # another seed for every utterance, the same in every run
