"""Static steps find what the usual ones find, and hold what a CUDA graph asks of them.

No graph is needed for that: a tape records the tensor operations of a step and replays them on the same storage without
any of its Python, which is what a graph does; and a step on tensors of the meta device, which have no values, fails at
whatever the host would have to wait for. With real graphs: test_graphs_gpu.py.
"""

import logging
from collections import deque

import pytest
import torch
from test_engine import TOKENIZER, assert_same, decoder, make_decoder, named, prompts, run  # noqa: F401
from tiny_lms import EOS, MODELS, WIDTH
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from espnet_llmst.search import engine as engine_module
from espnet_llmst.search import graphs as graphs_module
from espnet_llmst.search import pool as pool_module
from espnet_llmst.search.engine import Engine, Prompt, largest_error
from espnet_llmst.search.generate import Searcher, generate
from espnet_llmst.search.graphs import StepRunner
from espnet_llmst.search.options import SearchOptions

ATEN = torch.ops.aten
WAITS = {  # the host reads a value, or the device one of the host's
    ATEN._local_scalar_dense.default,
    ATEN.is_nonzero.default,
    ATEN.item.default,
    ATEN.equal.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN.lift_fresh.default,
    ATEN.where.ScalarOther,
    ATEN.where.ScalarSelf,
}


class Tape(TorchDispatchMode):
    """Records operations; `play` runs them again, from and into the tensors they had."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in WAITS, f"{function} in a captured step"
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def play(self):
        for function, args, kwargs, result in self.calls:
            fresh = function(*args, **kwargs)
            if function._schema.is_mutable:
                continue
            given = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            for old, new in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor) and storage(old) not in given:  # no view
                    old.copy_(new)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


class Captures(list):
    """Stands in for `capture_cuda`: what was recorded, and how often it was replayed."""

    def __call__(self, step, extent, memory, stream):
        tape, runs = Tape(), []
        with tape:
            result = step(extent)
        self.append((extent, runs))

        def replay():
            if runs:  # the recording was itself the first run
                tape.play()
            runs.append(1)

        return replay, result


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return make_decoder(MODELS["llama"]())


@pytest.fixture
def captures(monkeypatch):
    """Steps are taped; storage grows, and extents differ, in small paces."""
    monkeypatch.setattr(pool_module, "WIDTH", 16)
    monkeypatch.setattr(pool_module, "GROWTH", 6)
    captures = Captures()

    def make(step, device):
        runner = StepRunner(step, device)
        runner.capture = captures
        return runner

    monkeypatch.setattr(engine_module, "StepRunner", make)
    return captures


@pytest.mark.parametrize(("beams", "early", "penalty"), [(1, False, 1.0), (2, True, 0.0), (5, "never", 2.0)])
def test_static_steps_find_the_same(decoder, beams, early, penalty):  # noqa: F811
    options = SearchOptions(beam_size=beams, early_stopping=early, length_penalty=penalty, max_new_tokens=14)
    embeds = prompts(6)
    expected = [generate(decoder, TOKENIZER, [one], options)[0] for one in embeds]
    assert_same(run(decoder, options, embeds), expected)
    for rows in (1, 4, 16):
        assert_same(run(decoder, options, embeds, rows, graphs=True), expected)


@pytest.mark.parametrize("beams", [1, 4])
def test_replayed_steps_find_the_same(decoder, captures, beams):  # noqa: F811
    """With refills, rows that leave, growing storage, and without a step's Python."""
    options, embeds = SearchOptions(beam_size=beams, max_new_tokens=16), prompts(8)
    expected = run(decoder, options, embeds)
    for rows in (1, 4):
        assert_same(run(decoder, options, embeds, rows, graphs=True), expected)
    assert {1, 4} <= {extent.rows for extent, _ in captures} and len({extent.steps for extent, _ in captures}) > 2
    assert sum(len(runs) for _, runs in captures) > 2 * len(captures)


def test_shared_beginning_and_storage_of_the_last_decode(decoder, captures):  # noqa: F811
    """A second decode replays the first one's graphs; one with longer prompts has storage of its own."""
    options, embeds = SearchOptions(beam_size=3, max_new_tokens=10), sorted(prompts(8), key=len)
    shared = None
    if not decoder.lm.config.is_encoder_decoder:
        shared = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(2))
    engine = Engine(decoder, EOS, options, rows=4, graphs=True)
    for waves in (embeds[2:6], embeds[2:6], embeds[:4], embeds[4:]):
        before, work = len(captures), engine.kept
        found = dict(engine.decode(named(waves), shared))
        usual = dict(Engine(decoder, EOS, options, rows=4).decode(named(waves), shared))
        assert_same([found[key] for key in sorted(found)], [usual[key] for key in sorted(usual)])
        if work is not None:
            assert (engine.kept is work) == (len(waves[-1]) <= work.longest)
        if waves is embeds[2:6] and work is not None:
            assert len(captures) == before


def test_rows_without_work_stay_finite(decoder, captures):  # noqa: F811
    """They are computed too, and what they write is later multiplied by zero."""
    options = SearchOptions(beam_size=3, max_new_tokens=9, length_penalty=2.0)
    engine = Engine(decoder, EOS, options, rows=8, graphs=True)
    assert len(dict(engine.decode(named(prompts(11))))) == 11
    work = engine.kept
    tensors = [*work.pool.prompt_YNGPE, *work.pool.pool_YNGSE]
    for tensor in [*tensors, work.beams.running_NK, work.beams.finished_NK]:
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"beam_size": 3, "min_new_tokens": 4},
        {"beam_size": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "nbest": 2},
        {"beam_size": 1, "do_sample": True, "temperature": 1.5},
    ],
)
def test_searches_that_ask_the_host_replay_the_model_alone(llama, captures, settings):
    options, embeds = SearchOptions(max_new_tokens=10, **settings), prompts(6)
    assert_same(run(llama, options, embeds, graphs=True), run(llama, options, embeds))
    assert captures


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_a_step_asks_nothing_of_the_host(decoder, monkeypatch, beams):  # noqa: F811
    """It runs on tensors without values, as the usual step does not."""
    monkeypatch.setattr(engine_module, "StepRunner", lambda step, device: None)
    with torch.device("meta"):
        kind = next(name for name, make in MODELS.items() if type(decoder.lm).__name__ in make.__code__.co_names)
        engine = Engine(
            make_decoder(MODELS[kind]()), EOS, SearchOptions(beam_size=beams, max_new_tokens=9), rows=4, graphs=True
        )
        ready = deque(Prompt(str(n), torch.zeros(9, WIDTH)) for n in range(3))
        work = engine_module._Work(engine, ready, iter(()), None, 4)
        work.prefill(work._group(4))
        for _ in range(2):
            extent = work.pool.rounded()
            assert extent.rows == 4 > work.pool.live
            work.pool.reserve(extent.steps)
            work.static_step(extent)
            work.pool.count_step()
        if beams > 1:  # the usual step does ask
            work.beams.asks_host = True
            with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
                work._choose(work.step_logits())


def test_a_step_that_cannot_be_captured_runs_as_it_is(llama, captures, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted\nmore")

    monkeypatch.setattr(Captures, "__call__", fail)
    options, embeds = SearchOptions(beam_size=2, max_new_tokens=8), prompts(5)
    expected = run(llama, options, embeds)
    assert_same(run(llama, options, embeds, graphs=True), expected)
    assert caplog.text.count("could not be captured, none is from here on: operation not permitted") == 1
    caplog.clear()
    failures = []

    def no_memory(*_):
        failures.append(1)
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(
        Captures, "__call__", lambda self, *a: no_memory() if not failures else (_ for _ in ()).throw(RuntimeError("x"))
    )
    assert_same(run(llama, options, embeds, graphs=True), expected)
    assert "goes on with 2 utterances" in caplog.text


def test_only_so_many_graphs_are_kept(llama, captures, monkeypatch):
    monkeypatch.setattr(graphs_module, "MOST", 1)
    options, embeds = SearchOptions(beam_size=2, max_new_tokens=8), prompts(8)
    engine = Engine(llama, EOS, options, rows=4, graphs=True)
    found = dict(engine.decode(named(embeds)))
    assert_same([found[str(n)] for n in range(8)], run(llama, options, embeds))
    assert len(engine.kept.runner.captured) == 1 < len(captures)


def test_graphs_are_checked_before_use(llama, captures, caplog, monkeypatch):
    """A replay that does nothing is noticed; the engine then goes on without, and says so."""
    options, embeds = SearchOptions(beam_size=3, max_new_tokens=8), prompts(5)
    expected = run(llama, options, embeds)
    with caplog.at_level(logging.WARNING):
        found = dict(Searcher(llama, TOKENIZER, options, rows=4, graphs=True).decode(named(embeds)))
    assert_same([found[str(n)] for n in range(5)], expected)
    assert not caplog.records and captures
    error, _ = largest_error(Engine(llama, EOS, options, graphs=True))
    assert error < 1e-5
    monkeypatch.setattr(Tape, "play", lambda self: None)
    searcher = Searcher(llama, TOKENIZER, options, rows=4, graphs=True)
    with caplog.at_level(logging.WARNING):
        found = dict(searcher.decode(named(embeds)))
    assert "cuda_graphs: not used" in caplog.text and searcher.supported and not searcher.engine.graphs
    assert_same([found[str(n)] for n in range(5)], expected)
