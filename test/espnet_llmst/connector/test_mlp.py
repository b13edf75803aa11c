"""LLaST's MLP: sizes of the paper, padding stays out."""

import torch

from espnet_llmst.connector.mlp import MLPConnector


def test_parameters_of_the_published_sizes():
    counts = {}
    for width in (2048, 4096, 5120):  # TinyLlama, Llama 2 7B and 13B behind Whisper large-v2
        with torch.device("meta"):
            counts[width] = sum(p.numel() for p in MLPConnector(1280, width).parameters())
    assert {width: round(count / 1e6, 1) for width, count in counts.items()} == {
        2048: 11.0,
        4096: 38.8,
        5120: 59.0,
    }


def test_frames_are_independent():
    connector = MLPConnector(8, 16).eval()
    states = torch.randn(2, 5, 8)
    vectors, lengths = connector(states, torch.tensor([5, 3]))
    assert vectors.shape == (2, 5, connector.output_size()) and lengths.tolist() == [5, 3]
    torch.testing.assert_close(vectors[1, :3], connector(states[1:, :3], torch.tensor([3]))[0][0])
