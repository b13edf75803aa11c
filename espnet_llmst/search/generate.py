"""Decoding by transformers' ``generate`` on ready-made prompt embeddings.

Shapes: B batch, L prompt length, D width, R returned hypotheses of the batch.
"""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig


@dataclass(frozen=True)
class SearchOptions:
    """How to search, with the meaning that transformers' ``generate`` gives these names."""

    beam_size: int = 5
    nbest: int = 1
    length_penalty: float = 1.0
    max_new_tokens: int = 256
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0


def pad_left(prompts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts (L, D) to a batch (B, L, D) that ends flush, and its attention mask (B, L)."""
    length = max(len(prompt) for prompt in prompts)
    embeds_BLD = prompts[0].new_zeros(len(prompts), length, prompts[0].size(-1))
    mask_BL = torch.zeros(len(prompts), length, dtype=torch.long, device=embeds_BLD.device)
    for row, prompt in enumerate(prompts):
        embeds_BLD[row, length - len(prompt) :] = prompt
        mask_BL[row, length - len(prompt) :] = 1
    return embeds_BLD, mask_BL


def generation_config(tokenizer, options: SearchOptions) -> GenerationConfig:
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
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=True,
    )


def search(
    lm: torch.nn.Module, tokenizer, prompts: list[torch.Tensor], options: SearchOptions
) -> list[list[tuple[list[int], float]]]:
    """The n-best of each prompt, best first.

    Args:
        lm: a transformers causal language model.
        tokenizer: its tokenizer.
        prompts: embeddings (L, D), one per utterance; a prompt's result does not depend on the others.

    Returns:
        For each prompt, (token ids without the end of sequence, score normalised by length).
    """
    embeds_BLD, mask_BL = pad_left(prompts)
    config = generation_config(tokenizer, options)
    output = lm.generate(inputs_embeds=embeds_BLD, attention_mask=mask_BL, generation_config=config)
    beams = getattr(output, "beam_indices", None)
    steps = lm.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=beams is None)
    results = []
    for row, ids in enumerate(output.sequences.tolist()):
        length = ids.index(config.eos_token_id) + 1 if config.eos_token_id in ids else len(ids)
        score = float(steps[row, :length].sum()) / max(1, length) ** options.length_penalty
        results.append(([i for i in ids[:length] if i != config.eos_token_id], score))
    return [results[i : i + options.nbest] for i in range(0, len(results), options.nbest)]
