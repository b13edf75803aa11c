"""Decoding by transformers' ``generate`` on ready-made prompt embeddings.

Shapes: L prompt length, D width.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from espnet_llmst.cli import InputError


@dataclass(frozen=True)
class SearchOptions:
    """How to search, with the meaning that transformers' ``generate`` gives these names."""

    beam_size: int = 5
    nbest: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.nbest <= self.beam_size or self.max_new_tokens < max(1, self.min_new_tokens):
            raise InputError("search: needs 1 <= nbest <= beam_size and max_new_tokens >= min_new_tokens, at least 1")


def generation_config(lm, tokenizer, options: SearchOptions) -> GenerationConfig:
    """The whole configuration from our options: a checkpoint's own sampling defaults do not leak in."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=options.beam_size,
        num_return_sequences=options.nbest,
        length_penalty=options.length_penalty,
        max_new_tokens=options.max_new_tokens,
        min_new_tokens=options.min_new_tokens or None,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=eos if pad is None else pad,
        decoder_start_token_id=getattr(lm.config, "decoder_start_token_id", None),
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=True,
    )


def search(
    decoder: torch.nn.Module, tokenizer, prompts: list[torch.Tensor], options: SearchOptions
) -> list[list[tuple[list[int], float]]]:
    """The n-best of each prompt, best first.

    Args:
        decoder: one of `espnet_llmst.decoder`.
        tokenizer: its tokenizer.
        prompts: embeddings (L, D), one per utterance; a prompt's result does not depend on the others.

    Returns:
        For each prompt, (token ids without the end of sequence, score normalised by length).
    """
    config = generation_config(decoder.lm, tokenizer, options)
    output = decoder.generate(prompts, config)
    beams = getattr(output, "beam_indices", None)
    steps = decoder.lm.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=beams is None)
    first = int(config.decoder_start_token_id is not None)  # a seq2seq output begins with its start token
    results = []
    for row, ids in enumerate(output.sequences[:, first:].tolist()):
        length = ids.index(config.eos_token_id) + 1 if config.eos_token_id in ids else len(ids)
        score = float(steps[row, :length].sum()) / max(1, length) ** options.length_penalty
        results.append(([i for i in ids[:length] if i != config.eos_token_id], score))
    return [results[i : i + options.nbest] for i in range(0, len(results), options.nbest)]
