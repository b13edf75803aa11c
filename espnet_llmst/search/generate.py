"""The search that decoding uses: the engine, or transformers' ``generate`` for models that the engine cannot run.

Shapes: L prompt length, D width.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain, islice

import torch
from transformers import GenerationConfig

from espnet_llmst.cli import InputError
from espnet_llmst.search.engine import Engine, Prompt, largest_error, never_written, number_of
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.search.pool import UnsupportedModelError

Nbest = list[tuple[list[int], float]]
FALLBACK_BATCH = 8
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit; coarser types: 0.05


class Searcher:
    """Decodes prompts with one language model.

    The engine is checked once on a prompt of random tokens against the model's plain forward pass. A model whose
    attention it does not compute (ALiBi, windows shorter than the text) is decoded by ``generate``, and a warning
    says so.

    Args:
        decoder: one of `espnet_llmst.decoder`.
        tokenizer: its tokenizer.
        options: of the search.
        rows: most utterances at a time.
        kv_memory: bytes for keys and values, see `Engine`.
        context: opened around every use of the model, e.g. autocast.
        graphs: steps are captured as CUDA graphs. They are checked in the same way; where they do not give the plain
            forward pass's numbers, the engine goes on without, and a warning says so.
    """

    def __init__(
        self,
        decoder: torch.nn.Module,
        tokenizer,
        options: SearchOptions,
        rows: int = 16,
        kv_memory: int | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
        graphs: bool = False,
    ) -> None:
        self.decoder, self.tokenizer, self.options, self.context = decoder, tokenizer, options, context
        self.engine = Engine(decoder, tokenizer.eos_token_id, options, rows, kv_memory, context, graphs)
        self.supported: bool | None = None

    def decode(self, prompts: Iterable[Prompt], shared: torch.Tensor | None = None) -> Iterator[tuple[str, Nbest]]:
        """N-best lists (token ids without the end of sequence, score) as utterances finish, not in order.

        Args:
            prompts: longest first is fastest.
            shared: embeddings (L, D) that stand before every prompt and are not in it.
        """
        if self.supported is None:
            self.supported = self._check()
        waiting = iter(prompts)
        if not self.supported:
            yield from self._generate(waiting, shared)
            return
        taken: dict[str, Prompt] = {}
        try:
            for key, nbest in self.engine.decode(_remembered(waiting, taken), shared):
                del taken[key]
                yield key, nbest
        except UnsupportedModelError as reason:
            self._warn(str(reason))
            yield from self._generate(chain(list(taken.values()), waiting), shared)

    def _check(self) -> bool:
        reason = self._fault()
        if reason is not None and self.engine.graphs:
            self.engine.graphs = False
            fault, reason = reason, self._fault()
            if reason is None:
                logging.warning("cuda_graphs: not used, with them decoding is at fault: %s", fault)
        if reason is not None:
            self._warn(reason)
        return reason is None

    def _fault(self) -> str | None:
        """Why the engine cannot decode with this model, or None."""
        try:
            error, dtype = largest_error(self.engine)
        except (torch.OutOfMemoryError, InputError):
            raise
        except Exception as reason:  # models fail in many ways with a cache that is not theirs
            return (str(reason) or type(reason).__name__).splitlines()[0]
        if error <= TOLERANCE.get(dtype, 0.05):
            return None
        return f"its attention is not the engine's (logits differ by {error:.2g} of the largest)"

    def _warn(self, reason: str) -> None:
        name = type(self.decoder.lm).__name__
        logging.warning("%s is decoded by transformers' generate, which is slower: %s", name, reason)
        self.supported = False

    @torch.inference_mode()
    def _generate(self, prompts: Iterator[Prompt], shared: torch.Tensor | None) -> Iterator[tuple[str, Nbest]]:
        alone = self.options.do_sample or self.options.max_tokens_per_second  # each has a seed, or a limit, of its own
        while group := list(islice(prompts, 1 if alone else FALLBACK_BATCH)):
            before = [] if shared is None else [shared]
            embeds = [torch.cat([*before, prompt.embeds]) for prompt in group]
            if self.options.do_sample:
                torch.manual_seed(self.options.seed + number_of(group[0].key))
            with self.context():
                found = generate(self.decoder, self.tokenizer, embeds, _limited(self.options, group[0].limit))
            for prompt, nbest in zip(group, found, strict=True):
                yield prompt.key, nbest


def _limited(options: SearchOptions, limit: int | None) -> SearchOptions:
    if limit is None:
        return options
    most = min(limit, options.max_new_tokens)
    return replace(options, max_new_tokens=most, min_new_tokens=min(most, options.min_new_tokens))


def _remembered(prompts: Iterable[Prompt], taken: dict[str, Prompt]) -> Iterator[Prompt]:
    for prompt in prompts:
        taken[prompt.key] = prompt
        yield prompt


def search(decoder: torch.nn.Module, tokenizer, prompts: list[torch.Tensor], options: SearchOptions) -> list[Nbest]:
    """The n-best of each prompt (L, D), best first, in the prompts' order."""
    ready = [Prompt(str(n), prompt) for n, prompt in enumerate(decoder.states_of(prompts))]
    found = dict(Searcher(decoder, tokenizer, options).decode(sorted(ready, key=lambda prompt: -len(prompt.embeds))))
    return [found[str(n)] for n in range(len(prompts))]


def generation_config(lm, tokenizer, options: SearchOptions) -> GenerationConfig:
    """The whole configuration from our options; of a checkpoint's own settings only the tokens that it never writes."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    drawing = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return GenerationConfig(
        do_sample=options.do_sample,
        **(drawing if options.do_sample else {}),
        num_beams=options.beam_size,
        num_return_sequences=options.nbest,
        early_stopping=options.early_stopping,
        length_penalty=options.length_penalty,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        repetition_penalty=options.repetition_penalty,
        suppress_tokens=never_written(lm) or None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=eos if pad is None else pad,
        decoder_start_token_id=getattr(lm.config, "decoder_start_token_id", None),
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=True,
    )


def generate(decoder: torch.nn.Module, tokenizer, prompts: list[torch.Tensor], options: SearchOptions) -> list[Nbest]:
    """As `search`, by transformers' ``generate``; ``prompts`` as `states_of` of the decoder gives them."""
    config = generation_config(decoder.lm, tokenizer, options)
    own, decoder.lm.generation_config = decoder.lm.generation_config, GenerationConfig()  # it fills what we leave unset
    try:
        output = decoder.generate(prompts, config)
    finally:
        decoder.lm.generation_config = own
    beams = getattr(output, "beam_indices", None)
    steps = decoder.lm.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=beams is None)
    first = int(config.decoder_start_token_id is not None)  # a seq2seq output begins with its start token
    results = []
    for row, ids in enumerate(output.sequences[:, first:].tolist()):
        length = ids.index(config.eos_token_id) + 1 if config.eos_token_id in ids else len(ids)
        score = float(steps[row, :length].sum()) / max(1, length) ** options.length_penalty
        results.append(([i for i in ids[:length] if i != config.eos_token_id], score))
    return [results[i : i + options.nbest] for i in range(0, len(results), options.nbest)]
