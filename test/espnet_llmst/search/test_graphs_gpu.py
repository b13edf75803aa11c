"""Captured steps find what usual steps find, with real CUDA graphs. It needs a GPU, torch and transformers alone:

python -m pytest --noconftest test/espnet_llmst/search/test_graphs_gpu.py
"""

from types import SimpleNamespace

import pytest
import torch
from tiny_lms import EOS, MODELS, WIDTH, make_lively

from espnet_llmst.search.engine import Engine, Prompt, largest_error
from espnet_llmst.search.options import SearchOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: real CUDA graphs")


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("kind", MODELS)
def test_graphs_equal_usual_steps(kind, beams, caplog):
    torch.manual_seed(0)
    model = MODELS[kind]()
    make_lively(model)
    decoder = SimpleNamespace(lm=model.eval().to("cuda"))
    sizes = torch.randint(1, 40, (12,)).tolist()
    prompts = [Prompt(str(n), 2 * torch.randn(size, WIDTH, device="cuda")) for n, size in enumerate(sizes)]
    options = SearchOptions(beam_size=beams, max_new_tokens=40, min_new_tokens=20)
    usual = dict(Engine(decoder, EOS, options, rows=4).decode(prompts))
    for rows in (1, 4, 16):
        engine = Engine(decoder, EOS, options, rows=rows, graphs=True)
        for _ in range(2):  # the second decode replays the first one's graphs
            found = dict(engine.decode(prompts))
            for key, nbest in usual.items():
                assert [ids for ids, _ in found[key]] == [ids for ids, _ in nbest]
                assert [score for _, score in found[key]] == pytest.approx([score for _, score in nbest], abs=1e-3)
        assert engine.kept.runner.captured and engine.kept.runner.capture is not None
    error, _ = largest_error(engine)
    assert error < 1e-3 and not caplog.records
