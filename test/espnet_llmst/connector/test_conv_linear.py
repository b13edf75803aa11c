"""LST's connector: sizes of the paper, rates, and rows that do not see each other."""

import pytest
import torch
from transformers import Speech2TextConfig
from transformers.models.speech_to_text.modeling_speech_to_text import Conv1dSubsampler

from espnet_llmst.connector.conv_linear import ConvLinearConnector
from espnet_llmst.connector.subsampling import ConvSubsampler, frame_mask


def test_parameters_of_the_published_sizes():
    for width, linear in ((4096, 4_198_400), (5120, 5_248_000)):  # Llama 2 7B and 13B behind wav2vec 2.0 large
        with torch.device("meta"):
            connector = ConvLinearConnector(1024, width)
        assert sum(p.numel() for p in connector.subsampler.parameters()) == 6_294_528
        assert sum(p.numel() for p in connector.parameters()) == 6_294_528 + linear


def test_vectors_per_second_and_lengths():
    connector = ConvLinearConnector(4, 6, channels=8).eval()
    vectors, lengths = connector(torch.randn(4, 1500, 4), torch.tensor([1500, 800, 7, 1]))  # 50 states a second
    assert vectors.shape == (4, 375, connector.output_size())
    assert lengths.tolist() == [375, 200, 2, 1]
    assert lengths[0] / 30 == 12.5


@pytest.mark.parametrize("kernel_sizes", [(3, 3), (5, 5), (4, 2), (3,)])
def test_batch_equals_single(kernel_sizes):
    torch.manual_seed(0)
    connector = ConvLinearConnector(4, 6, channels=8, kernel_sizes=kernel_sizes).eval()
    lengths = torch.tensor([37, 36, 20, 9, 8])
    states = torch.randn(5, 37, 4).masked_fill(~frame_mask(lengths, 37)[..., None], float("nan"))
    batch, out_lengths = connector(states, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_length = connector(states[row : row + 1, :length], lengths[row : row + 1])
        assert alone.size(1) == alone_length == out_lengths[row]
        torch.testing.assert_close(batch[row, : alone.size(1)], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [3, 5])
def test_convolutions_equal_the_published_subsampler(kernel):
    config = Speech2TextConfig(
        num_conv_layers=2, input_feat_per_channel=4, conv_channels=8, d_model=6, conv_kernel_sizes=[kernel, kernel]
    )
    reference = Conv1dSubsampler(config)
    subsampler = ConvSubsampler(4, 6, channels=8, kernel_sizes=(kernel, kernel))
    weights = {name.replace("conv_layers", "convs"): value for name, value in reference.state_dict().items()}
    subsampler.load_state_dict(weights)
    states = torch.randn(2, 23, 4)
    short, lengths = subsampler(states, torch.tensor([23, 23]))
    torch.testing.assert_close(short, reference(states))
    assert lengths.tolist() == [short.size(1)] * 2


def test_gradient_reaches_everything_but_padding():
    connector = ConvLinearConnector(4, 6, channels=8)
    states = torch.randn(2, 12, 4, requires_grad=True)
    vectors, lengths = connector(states, torch.tensor([12, 5]))
    vectors[frame_mask(lengths, vectors.size(1))].square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in connector.parameters())
    assert states.grad[1, :5].abs().min() > 0 and not states.grad[1, 5:].any()
