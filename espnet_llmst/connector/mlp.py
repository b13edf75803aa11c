"""LLaST's connector: a multi-layer perceptron on every encoder frame (arXiv 2407.15415, section 2).

Shapes: B batch, T frames, D width.
"""

import torch
from espnet2.asr.postencoder.abs_postencoder import AbsPostEncoder
from typeguard import typechecked


class MLPConnector(AbsPostEncoder):
    """Linear to the language model's width, then (GELU, Linear) until ``num_layers`` linears stand.

    Args:
        input_size: width of the encoder states.
        output_size: width of the language model's embeddings.
        num_layers: number of linear layers.
    """

    @typechecked
    def __init__(self, input_size: int, output_size: int, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = [torch.nn.Linear(input_size, output_size)]
        for _ in range(num_layers - 1):
            layers += [torch.nn.GELU(), torch.nn.Linear(output_size, output_size)]
        self.layers = torch.nn.Sequential(*layers)

    def output_size(self) -> int:
        """Width of the vectors given to the language model."""
        return self.layers[-1].out_features

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, T, D) and lengths (B,) to vectors (B, T, output size) and the same lengths."""
        return self.layers(input.to(self.layers[0].weight.dtype)), input_lengths
