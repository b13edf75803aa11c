"""Aligned's STE: sizes of the paper, rates, parity with transformers, rows that do not see each other."""

import pytest
import torch
from transformers.models.marian.modeling_marian import MarianConfig, MarianEncoder

from espnet_llmst.connector.subsampler_transformer import SubsamplerTransformerConnector
from espnet_llmst.connector.subsampling import frame_mask

LAYERS = {"num_layers": 2, "width": 16, "heads": 4, "ffn": 24, "channels": 12}


@pytest.fixture
def connector():
    torch.manual_seed(0)
    return SubsamplerTransformerConnector(6, 10, **LAYERS).eval()


@pytest.mark.parametrize(
    ("input_size", "smallest", "largest"),
    [(256, 10_579_200, 10_776_576), (512, 11_889_920, 12_087_296), (768, 13_200_640, 13_398_016)],
)
def test_parameters_of_the_published_sizes(input_size, smallest, largest):
    counts = []
    for width in (256, 1024):  # Marian of How2, OPUS tc-big
        with torch.device("meta"):
            counts.append(sum(p.numel() for p in SubsamplerTransformerConnector(input_size, width).parameters()))
    assert counts == [smallest, largest]


def test_vectors_per_second_and_lengths(connector):
    vectors, lengths = connector(torch.randn(3, 400, 6), torch.tensor([400, 399, 1]))  # 16 s, 25 states a second
    assert vectors.shape == (3, 100, connector.output_size()) and lengths.tolist() == [100, 100, 1]
    assert lengths[0] / 16 == 6.25


def test_batch_equals_single(connector):
    lengths = torch.tensor([41, 40, 18, 3])
    states = torch.randn(4, 41, 6).masked_fill(~frame_mask(lengths, 41)[..., None], float("nan"))
    batch, out_lengths = connector(states, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_length = connector(states[row : row + 1, :length], lengths[row : row + 1])
        assert alone.size(1) == alone_length == out_lengths[row]
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-5)


def test_transformer_equals_marian(connector):
    config = MarianConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=24,
        activation_function="gelu_new",
        attn_implementation="eager",
    )
    marian = MarianEncoder(config).eval()
    marian.layers.load_state_dict(connector.layers.state_dict())
    states, lengths = torch.randn(2, 50, 6), torch.tensor([50, 30])
    short, short_lengths = connector.subsampler(states, lengths)
    mask = frame_mask(short_lengths, short.size(1))
    expected = connector.linear(marian(inputs_embeds=short, attention_mask=mask.long()).last_hidden_state)
    vectors, _ = connector(states, lengths)
    torch.testing.assert_close(vectors[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_speech_longer_than_marian_allows():
    connector = SubsamplerTransformerConnector(2, 4, num_layers=1, width=4, heads=1, ffn=4, channels=2).eval()
    vectors, lengths = connector(torch.randn(1, 4400, 2), torch.tensor([4400]))
    assert vectors.isfinite().all() and lengths.tolist() == [1100]  # Marian's own table ends at 1024


def test_gradient_reaches_everything_but_padding(connector):
    states = torch.randn(2, 20, 6, requires_grad=True)
    vectors, lengths = connector.train()(states, torch.tensor([20, 9]))
    vectors[frame_mask(lengths, vectors.size(1))].square().sum().backward()
    # Softmax cancels the keys' biases: their gradient is rounding.
    assert all(p.grad.abs().sum() > 0 for name, p in connector.named_parameters() if not name.endswith("k_proj.bias"))
    assert states.grad[1, :9].abs().sum() > 0 and not states.grad[1, 9:].any()


def test_state_is_what_is_trained(connector):
    assert set(connector.state_dict()) == {name for name, p in connector.named_parameters() if p.requires_grad}
