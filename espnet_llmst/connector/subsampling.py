"""Strided convolutions that shorten speech, and the mask of real frames; shared by the connectors.

Shapes: B batch, T frames, D width.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import glu

STRIDE = 2


def frame_mask(lengths_B: torch.Tensor, num_frames: int) -> torch.Tensor:
    """True (B, T) at each utterance's own frames, False at its padding."""
    return torch.arange(num_frames, device=lengths_B.device) < lengths_B[:, None]


class ConvSubsampler(torch.nn.Module):
    """Convolutions over time with stride 2, each followed by a gated linear unit that halves the channels.

    Args:
        input_size: width of the encoder states.
        output_size: width after the last gated linear unit.
        channels: of every convolution but the last, before its gated linear unit.
        kernel_sizes: one per convolution; each halves the number of frames.
    """

    def __init__(self, input_size: int, output_size: int, channels: int, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        last = len(kernel_sizes) - 1
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv1d(
                channels // 2 if i else input_size,
                2 * output_size if i == last else channels,
                kernel,
                stride=STRIDE,
                padding=kernel // 2,
            )
            for i, kernel in enumerate(kernel_sizes)
        )

    def forward(self, states_BTD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, T, input size) and lengths (B,) to shorter ones (B, T', output size) and their lengths.

        Padding is zeroed before each convolution, which itself pads with zeros: a row of a batch equals
        the utterance alone.
        """
        hidden_BDT = states_BTD.to(self.convs[0].weight.dtype).transpose(1, 2)
        for conv in self.convs:
            padding_BT = ~frame_mask(lengths_B, hidden_BDT.size(2))
            hidden_BDT = glu(conv(hidden_BDT.masked_fill(padding_BT[:, None], 0.0)), dim=1)
            lengths_B = (lengths_B + 2 * conv.padding[0] - conv.kernel_size[0]) // STRIDE + 1
        return hidden_BDT.transpose(1, 2), lengths_B
