"""The engine finds what transformers' ``generate`` finds for each utterance alone.

``LLMST_PARITY=full`` runs the whole grid of settings on 64 prompts; by default a part of it on 12.
"""

import copy
import itertools
import logging
import os
import types

import pytest
import torch
from tiny_lms import CAUSAL, ENDS, EOS, MODELS, SIZES, WIDTH, make_lively
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from espnet_llmst.cli import InputError
from espnet_llmst.decoder.causal_lm import CausalLMDecoder
from espnet_llmst.decoder.seq2seq_lm import Seq2SeqLMDecoder
from espnet_llmst.search import engine as engine_module
from espnet_llmst.search.beams import banned_tokens, is_loop
from espnet_llmst.search.engine import Engine, Prompt, largest_error
from espnet_llmst.search.generate import Searcher, generate
from espnet_llmst.search.options import SearchOptions
from espnet_llmst.search.pool import KVPool, UnsupportedModelError

FULL = os.environ.get("LLMST_PARITY") == "full"
EARLY, PENALTIES = (False, True, "never"), (0.0, 0.6, 1.0, 2.0)
PART = [(1, False, 1.0), (2, False, 0.0), (2, True, 1.0), (5, False, 1.0), (5, True, 0.6), (5, "never", 2.0)]
GRID = list(itertools.product((1, 2, 5), EARLY, PENALTIES)) if FULL else PART


def make_decoder(model):
    """A decoder of ours around a model with random weights, lively enough not to repeat one token."""
    make_lively(model)
    kind = Seq2SeqLMDecoder if model.config.is_encoder_decoder else CausalLMDecoder
    decoder = kind.__new__(kind)
    torch.nn.Module.__init__(decoder)
    decoder.lm, decoder.added, decoder.entry = model.eval(), None, "decoder"
    return decoder


@pytest.fixture(scope="module", params=MODELS)
def decoder(request):
    torch.manual_seed(0)
    return make_decoder(MODELS[request.param]())


TOKENIZER = types.SimpleNamespace(eos_token_id=EOS, pad_token_id=0, bos_token_id=1)


def prompts(count=64 if FULL else 12):
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [2 * torch.randn(size, WIDTH, generator=generator) for size in sizes]


def named(embeds):
    return [Prompt(str(n), one) for n, one in enumerate(embeds)]


def run(decoder, options, embeds, rows=4, order=None, **more):
    ready = named(embeds)
    ready = sorted(ready, key=lambda prompt: -len(prompt.embeds)) if order is None else [ready[n] for n in order]
    found = dict(Engine(decoder, EOS, options, rows=rows, **more).decode(ready))
    return [found[str(n)] for n in range(len(embeds))]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=1e-4)


@pytest.mark.parametrize(("beams", "early", "penalty"), GRID)
def test_equals_generate_one_by_one(decoder, beams, early, penalty):
    options = SearchOptions(beam_size=beams, early_stopping=early, length_penalty=penalty, max_new_tokens=14)
    embeds = prompts()
    expected = [generate(decoder, TOKENIZER, [one], options)[0] for one in embeds]
    for rows in (1, 4, 16):
        assert_same(run(decoder, options, embeds, rows), expected)
    assert_same(run(decoder, options, embeds, 3, order=range(len(embeds))), expected)
    assert len({tuple(nbest[0][0]) for nbest in expected}) > len(embeds) // 3


@pytest.mark.parametrize("beams", [1, 4])
def test_limits_and_penalties_equal_generate(decoder, beams):
    options = SearchOptions(
        beam_size=beams,
        nbest=min(beams, 3),
        max_new_tokens=12,
        min_new_tokens=5,
        no_repeat_ngram_size=2,
        repetition_penalty=1.3,
    )
    embeds = prompts(8)
    expected = [generate(decoder, TOKENIZER, [one], options)[0] for one in embeds]
    assert_same(run(decoder, options, embeds, 4), expected)


def test_logits_equal_a_plain_forward_pass(decoder):
    error, dtype = largest_error(Engine(decoder, EOS, SearchOptions()))
    assert error < 1e-5 and dtype == torch.float32


def test_bfloat16_autocast_is_the_engines_too(decoder, caplog):
    """Keys and values are then of another type than the queries; nothing falls back to ``generate``."""
    options = SearchOptions(beam_size=3, max_new_tokens=8)
    searcher = Searcher(decoder, TOKENIZER, options, context=lambda: torch.autocast("cpu", torch.bfloat16))
    with searcher.context():
        states = decoder.states_of(prompts(4))
    found = dict(searcher.decode(named(states)))
    assert searcher.supported and not caplog.records and len(found) == 4


def test_a_common_beginning_is_computed_once(decoder):
    if decoder.lm.config.is_encoder_decoder:
        pytest.skip("a translator's prompts have no beginning of their own")
    options, embeds = SearchOptions(beam_size=3, max_new_tokens=10), prompts(6)
    shared = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(2))
    expected = run(decoder, options, [torch.cat([shared, one]) for one in embeds])
    found = dict(Engine(decoder, EOS, options, rows=4).decode(named(embeds), shared))
    assert_same([found[str(n)] for n in range(len(embeds))], expected)


def test_out_of_memory_loses_nothing(decoder, monkeypatch, caplog):
    options, embeds = SearchOptions(beam_size=2, max_new_tokens=8), prompts(10)
    expected, step, calls = run(decoder, options, embeds), engine_module._Work.step, []

    def fail_at_times(self):
        calls.append(self.rows)
        if self.rows > 2 and len(calls) % 5 == 0:
            raise torch.OutOfMemoryError("no memory")
        return step(self)

    monkeypatch.setattr(engine_module._Work, "step", fail_at_times)
    with caplog.at_level(logging.WARNING):
        assert_same(run(decoder, options, embeds, rows=8), expected)
    assert "goes on with 4 utterances" in caplog.text and "goes on with 2 utterances" in caplog.text
    monkeypatch.setattr(engine_module._Work, "step", lambda self: (_ for _ in ()).throw(torch.OutOfMemoryError("x")))
    with pytest.raises(InputError, match="out of memory with one utterance"):
        run(decoder, options, embeds, rows=2)


def test_storage_is_given_back(decoder, monkeypatch):
    """At once: a GPU would be full before garbage is collected."""
    engine = Engine(decoder, EOS, SearchOptions(beam_size=2, max_new_tokens=4), rows=2)
    pools, begin = [], KVPool.__init__
    monkeypatch.setattr(KVPool, "__init__", lambda self, *args: [begin(self, *args), pools.append(self)][0])
    assert len(dict(engine.decode(named(prompts(3))))) == 3
    assert pools and not any(pool.pool_YNGSE or pool.prompt_YNGPE or pool.cross for pool in pools)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_the_checkpoint_forbids_is_never_written(decoder, beams):
    """As OPUS-MT's settings forbid the padding."""
    options, embeds = SearchOptions(beam_size=beams, max_new_tokens=8), prompts(6)
    free = run(decoder, options, embeds)
    written = sorted({token for nbest in free for token in nbest[0][0]})[:4]
    own, config = decoder.lm.generation_config, copy.deepcopy(decoder.lm.generation_config)
    config.bad_words_ids, config.suppress_tokens = [[written[0]], [written[1]]], written[2:]
    try:
        decoder.lm.generation_config = config
        found = run(decoder, options, embeds)
        assert not {token for nbest in found for token in nbest[0][0]} & set(written)
        assert_same(found, [generate(decoder, TOKENIZER, [one], options)[0] for one in embeds])
        assert decoder.lm.generation_config is config
    finally:
        decoder.lm.generation_config = own


def test_memory_limits_the_rows(decoder):
    options, embeds = SearchOptions(beam_size=2, max_new_tokens=8), prompts(6)
    engine = Engine(decoder, EOS, options, rows=16, kv_memory=3 * (39 + 16) * 10**9)
    assert len(dict(engine.decode(named(embeds)))) == 6
    position = engine.bytes_per_position()
    small = Engine(decoder, EOS, options, rows=16, kv_memory=2 * (39 + 16) * position)
    assert_same([v for _, v in sorted(small.decode(named(embeds)))], run(decoder, options, embeds))
    assert small.peak_bytes <= 2 * (39 + 16) * position


def test_each_utterance_has_a_limit_of_its_own(decoder):
    options, embeds = SearchOptions(beam_size=2, max_new_tokens=12, min_new_tokens=11), prompts(3)
    limited = [Prompt(str(n), one, limit=n + 3) for n, one in enumerate(embeds)]
    found = dict(Engine(decoder, EOS, options, rows=2).decode(limited))
    assert [len(found[str(n)][0][0]) for n in range(3)] == [3, 4, 5]


def test_sampling_depends_on_seed_and_utterance_alone(decoder):
    embeds = prompts(5)
    options = SearchOptions(beam_size=1, do_sample=True, max_new_tokens=10, temperature=1.5, top_k=50, top_p=0.95)
    first = run(decoder, options, embeds, rows=1)
    assert first == run(decoder, options, embeds, rows=4) or _nearly(first, run(decoder, options, embeds, rows=4))
    other = SearchOptions(beam_size=1, do_sample=True, max_new_tokens=10, temperature=1.5, seed=1)
    assert [n[0][0] for n in first] != [n[0][0] for n in run(decoder, other, embeds, rows=4)]


def _nearly(first, second):
    return [n[0][0] for n in first] == [n[0][0] for n in second]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: BloomForCausalLM(BloomConfig(**SIZES, n_head=4, n_layer=2, **ENDS)), "attention is not the engine's"),
        (
            lambda: MistralForCausalLM(MistralConfig(**CAUSAL, **ENDS, num_key_value_heads=2, sliding_window=6)),
            "sliding window of 6",
        ),
        (
            lambda: MistralForCausalLM(MistralConfig(**CAUSAL, **ENDS, num_key_value_heads=2, sliding_window=30)),
            "sliding window of 30",
        ),
        (
            lambda: Lfm2ForCausalLM(
                Lfm2Config(**CAUSAL, **ENDS, num_key_value_heads=2, layer_types=["conv", "full_attention"])
            ),
            "conv",
        ),
    ],
)
def test_other_attention_falls_back_to_generate_and_says_so(model, reason, caplog):
    torch.manual_seed(0)
    decoder, options, embeds = make_decoder(model()), SearchOptions(beam_size=3, max_new_tokens=8), prompts(10)
    with caplog.at_level(logging.WARNING):
        found = dict(Searcher(decoder, TOKENIZER, options, rows=4).decode(named(embeds)))
    assert "decoded by transformers' generate" in caplog.text and reason in caplog.text
    expected = [generate(decoder, TOKENIZER, [one], options)[0] for one in embeds]
    assert_same([found[str(n)] for n in range(len(embeds))], expected)


def test_the_fallback_keeps_to_limits_and_seeds():
    torch.manual_seed(0)
    decoder, embeds = make_decoder(BloomForCausalLM(BloomConfig(**SIZES, n_head=4, n_layer=2, **ENDS))), prompts(4)
    ready = [Prompt(str(n), one, limit=n + 1) for n, one in enumerate(embeds)]
    options = SearchOptions(beam_size=1, max_new_tokens=8, min_new_tokens=8, max_tokens_per_second=3.0)
    found = dict(Searcher(decoder, TOKENIZER, options).decode(ready))
    assert [len(found[str(n)][0][0]) for n in range(4)] == [1, 2, 3, 4]
    drawn = SearchOptions(beam_size=1, do_sample=True, temperature=1.5, max_new_tokens=8, seed=7)
    assert dict(Searcher(decoder, TOKENIZER, drawn).decode(named(embeds))) == dict(
        Searcher(decoder, TOKENIZER, drawn).decode(named(embeds))
    )


def test_generate_computes_a_prompt_once(decoder):
    """The fallback equals plain transformers, which computes it for every beam."""
    if decoder.lm.config.is_encoder_decoder:
        pytest.skip("encoder states are computed once anyway")
    options, embeds = SearchOptions(beam_size=3, max_new_tokens=8), prompts(4)
    for one, ((ids, score),) in zip(embeds, generate(decoder, TOKENIZER, embeds, options), strict=True):
        plain = decoder.lm.generate(
            inputs_embeds=one[None],
            attention_mask=torch.ones(1, len(one)),
            num_beams=3,
            max_new_tokens=8,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert (
            ids == [i for i in plain.sequences[0].tolist() if i not in (EOS, 0)] or ids == plain.sequences[0].tolist()
        )
        assert score == pytest.approx(plain.sequences_scores.item(), abs=1e-4)


def test_repetition_is_found():
    assert banned_tokens([1, 2, 3, 1, 2], 3) == [3] and banned_tokens([1, 2], 3) == []
    assert banned_tokens([4, 7, 4], 2) == [7] and banned_tokens([4], 1) == [4]
    assert is_loop([9, 1, 2, 1, 2, 1, 2, 1, 2]) and is_loop([3] * 4) and not is_loop([1, 2, 1, 2, 1, 2])


@pytest.mark.parametrize(
    "wrong",
    [{"beam_size": 0}, {"top_k": -1}, {"nbest": 6}, {"early_stopping": "later"}, {"do_sample": True}, {"top_p": 0.0}],
)
def test_bad_options_are_one_clear_line(wrong):
    with pytest.raises(InputError):
        SearchOptions(**wrong)


@pytest.mark.parametrize("other", [((1, 1, 3, 4), (1, 1, 3, 4)), ((1, 2, 3, 4), (1, 2, 3, 6))], ids=["number", "size"])
def test_layers_of_different_heads_are_refused(other):
    pool = KVPool(num_layers=2, rows=1, beams=2, prompt_size=3, device=torch.device("cpu"))
    pool.target = slice(0, 1)
    pool.write(0, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    with pytest.raises(UnsupportedModelError, match="heads"):
        pool.write(1, *map(torch.ones, other))
