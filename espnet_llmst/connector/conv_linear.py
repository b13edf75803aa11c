"""LST's connector: strided convolutions, then a linear layer (arXiv 2310.02050).

Shapes: B batch, T frames, D width.
"""

from collections.abc import Sequence

import torch
from espnet2.asr.postencoder.abs_postencoder import AbsPostEncoder
from typeguard import typechecked

from espnet_llmst.connector.subsampling import ConvSubsampler


class ConvLinearConnector(AbsPostEncoder):
    """Length adapter (convolutions that keep the encoder's width) and modality adapter (linear).

    Args:
        input_size: width of the encoder states.
        output_size: width of the language model's embeddings.
        channels: of the inner convolutions, before their gated linear unit.
        kernel_sizes: one per convolution; each halves the number of frames.
    """

    @typechecked
    def __init__(
        self, input_size: int, output_size: int, channels: int = 1024, kernel_sizes: Sequence[int] = (3, 3)
    ) -> None:
        super().__init__()
        self.subsampler = ConvSubsampler(input_size, input_size, channels, kernel_sizes)
        self.linear = torch.nn.Linear(input_size, output_size)

    def output_size(self) -> int:
        """Width of the vectors given to the language model."""
        return self.linear.out_features

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, T, D) and lengths (B,) to vectors (B, T', output size) and their lengths."""
        hidden_BTD, lengths_B = self.subsampler(input, input_lengths)
        return self.linear(hidden_BTD), lengths_B
