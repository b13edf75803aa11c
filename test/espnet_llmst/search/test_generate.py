"""Decoding through `generate`: a batch gives what single utterances give, and what transformers gives."""

import pytest
import torch
from transformers import AutoTokenizer

from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.search.generate import SearchOptions, search


@pytest.fixture
def setup(llama_dir):
    decoder = CausalLMDecoder(llama_dir).eval()
    with torch.no_grad():  # a random model repeats one token: make it lively
        for parameter in decoder.parameters():
            parameter.mul_(3)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 300, (n,), generator=generator) for n in (12, 3, 7, 20)]
    return decoder, AutoTokenizer.from_pretrained(llama_dir), ids, [decoder.embed(i).detach() for i in ids]


@pytest.mark.parametrize("beam_size", [1, 4])
def test_batch_equals_single(setup, beam_size):
    decoder, tokenizer, _, prompts = setup
    options = SearchOptions(beam_size=beam_size, nbest=min(2, beam_size), max_new_tokens=15)
    batch = search(decoder, tokenizer, prompts, options)
    for prompt, found in zip(prompts, batch, strict=True):
        (alone,) = search(decoder, tokenizer, [prompt], options)
        assert [ids for ids, _ in found] == [ids for ids, _ in alone] and len(found) == options.nbest
        assert [s for _, s in found] == pytest.approx([s for _, s in alone], abs=1e-4)
    assert len({tuple(found[0][0]) for found in batch}) > 1


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_equals_transformers_on_token_ids(setup, length_penalty):
    decoder, tokenizer, ids, prompts = setup
    options = SearchOptions(beam_size=3, max_new_tokens=10, length_penalty=length_penalty)
    for one, prompt in zip(ids, prompts, strict=True):
        output = decoder.lm.generate(
            one[None],
            attention_mask=torch.ones(1, len(one), dtype=torch.long),
            num_beams=3,
            do_sample=False,
            max_new_tokens=10,
            length_penalty=length_penalty,
            return_dict_in_generate=True,
            output_scores=True,
        )
        expected = [i for i in output.sequences[0, len(one) :].tolist() if i != tokenizer.eos_token_id]
        ((best, score),) = search(decoder, tokenizer, [prompt], options)[0]
        assert best == expected
        assert score == pytest.approx(output.sequences_scores.item(), abs=1e-4)
