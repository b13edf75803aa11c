"""Q-Former: sizes of both papers, parity with transformers, a fixed number of vectors, padding stays out."""

import pytest
import torch
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from espnet_llmst.cli import InputError
from espnet_llmst.connector.qformer import QFormerConnector
from espnet_llmst.connector.subsampling import frame_mask

ALIGNED = {
    "num_queries": 100,
    "num_layers": 6,
    "width": 256,
    "heads": 4,
    "ffn": 2048,
    "cross_attention_frequency": 1,
    "query_init": "zeros",
    "head": "linear",
    "layer_norm": False,
    "activation": "gelu_new",
}
TINY = {"num_queries": 5, "num_layers": 3, "width": 16, "heads": 4, "ffn": 24}
FORMS = {"llm_srt": TINY, "aligned": {**ALIGNED, **TINY}}


def build(**changes):
    torch.manual_seed(0)
    return QFormerConnector(6, 10, **{**TINY, **changes}).eval()


def count(*args, **kwargs):
    with torch.device("meta"):
        return sum(p.numel() for p in QFormerConnector(*args, **kwargs).parameters())


def trained(connector):
    """All parameters but the keys' biases: softmax cancels them, their gradient is rounding."""
    return [p for name, p in connector.named_parameters() if not name.endswith("key.bias")]


def test_parameters_of_llm_srt():
    # Qwen2.5 1.5B (one linear layer), 3B, 7B and 32B behind Whisper large-v3
    counts = {width: count(1280, width) for width in (1536, 2048, 3584, 5120)}
    assert counts == {1536: 70_551_552, 2048: 73_700_352, 3584: 80_521_728, 5120: 84_458_496}


@pytest.mark.parametrize(
    ("input_size", "smallest", "largest"),
    [(256, 9_564_416, 9_761_792), (512, 10_350_848, 10_548_224), (768, 11_137_280, 11_334_656)],
)
def test_parameters_of_aligned(input_size, smallest, largest):
    assert [count(input_size, width, **ALIGNED) for width in (256, 1024)] == [smallest, largest]
    with_128 = count(input_size, 1024, **{**ALIGNED, "num_queries": 128})  # as the paper's text has it
    assert with_128 == largest + 28 * 256


@pytest.mark.parametrize("form", FORMS)
def test_a_fixed_number_of_vectors(form):
    connector = build(**FORMS[form])
    for num_frames in (3, 50):
        vectors, lengths = connector(torch.randn(2, num_frames, 6), torch.tensor([num_frames, 2]))
        assert vectors.shape == (2, 5, connector.output_size()) and lengths.tolist() == [5, 5]


def test_query_init():
    assert not build(query_init="zeros").query.any()
    normal = build(num_queries=500).query
    assert normal.mean().abs() < 0.05 and (normal.std() - 1).abs() < 0.05


@pytest.mark.parametrize("form", FORMS)
def test_batch_equals_single(form):
    connector = build(**FORMS[form])
    torch.nn.init.normal_(connector.query)  # the same zeros everywhere would hide a difference
    lengths = torch.tensor([40, 39, 7, 1])
    states = torch.randn(4, 40, 6).masked_fill(~frame_mask(lengths, 40)[..., None], 1e3)
    batch, _ = connector(states, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = connector(states[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(batch[row], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_core_equals_plain_transformers(form):
    connector = build(**FORMS[form])
    config = Blip2QFormerConfig(
        encoder_hidden_size=6,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        cross_attention_frequency={"llm_srt": 2, "aligned": 1}[form],
        hidden_act={"llm_srt": "gelu", "aligned": "gelu_new"}[form],
        attn_implementation="eager",
    )
    reference = Blip2QFormerModel(config).eval()
    reference.load_state_dict(connector.qformer.state_dict())
    states, lengths = torch.randn(2, 11, 6), torch.tensor([11, 6])
    mask = frame_mask(lengths, 11).long()
    query = connector.query.expand(2, -1, -1)
    core = reference(query, encoder_hidden_states=states, encoder_attention_mask=mask).last_hidden_state
    vectors, _ = connector(states, lengths)
    torch.testing.assert_close(vectors, connector.norm(connector.head(core)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("output_size", [10, 2048, 2576])  # one layer; two around 1536; two around 2560
def test_head_by_width(output_size):
    connector = QFormerConnector(6, output_size, **TINY)
    inner = [layer.out_features for layer in connector.head.modules() if isinstance(layer, torch.nn.Linear)]
    assert inner == {10: [10], 2048: [1536, 2048], 2576: [2560, 2576]}[output_size]
    vectors, _ = connector(torch.randn(1, 4, 6), torch.tensor([4]))
    torch.testing.assert_close(vectors.var(-1, unbiased=False), torch.ones(1, 5), atol=1e-2, rtol=0)  # normalised


def test_gradient_reaches_everything_but_padding():
    connector = build()
    states = torch.randn(2, 8, 6, requires_grad=True)
    vectors, _ = connector.train()(states, torch.tensor([8, 3]))
    (vectors * torch.randn_like(vectors)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in trained(connector))
    assert states.grad[1, :3].abs().min() > 0 and not states.grad[1, 3:].any()


def test_queries_of_zeros_become_different():
    connector = build(**FORMS["aligned"]).train()
    optimizer = torch.optim.AdamW(connector.parameters(), lr=1e-3)
    states, lengths, wanted = torch.randn(2, 9, 6), torch.tensor([9, 4]), torch.randn(2, 5, 10)
    for _ in range(3):
        optimizer.zero_grad()
        (connector(states, lengths)[0] - wanted).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in connector.parameters())
        optimizer.step()
    assert torch.pdist(connector.query).min() > 0
    assert all(p.grad.abs().sum() > 0 for p in trained(connector))


@pytest.mark.parametrize(("name", "value"), [("query_init", "uniform"), ("head", "conv")])
def test_unknown_choice_is_one_clear_line(name, value):
    with pytest.raises(InputError, match=f"postencoder_conf.{name}={value}: choose one of"):
        build(**{name: value})
