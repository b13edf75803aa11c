"""The subsampler-transformer encoder (STE) that aligns pre-trained models (arXiv 2411.18294).

Shapes: B batch, T frames, D width.
"""

from collections.abc import Sequence

import torch
from espnet2.asr.postencoder.abs_postencoder import AbsPostEncoder
from torch.nn import functional
from transformers import MarianConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.marian.modeling_marian import MarianEncoder
from typeguard import typechecked

from espnet_llmst.connector.subsampling import ConvSubsampler, frame_mask


class SubsamplerTransformerConnector(AbsPostEncoder):
    """Strided convolutions, a Marian encoder and a linear layer.

    Args:
        input_size: width of the encoder states.
        output_size: width of the language model's embeddings.
        num_layers: transformer layers.
        width: of the transformer.
        heads: of its attention.
        ffn: width of its feed-forward layers.
        channels: of the inner convolutions, before their gated linear unit.
        kernel_sizes: one per convolution; each halves the number of frames.
        activation: of the feed-forward layers, as transformers names it.
        dropout: of states, attention and feed-forward activations.
    """

    @typechecked
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_layers: int = 6,
        width: int = 256,
        heads: int = 4,
        ffn: int = 2048,
        channels: int = 1024,
        kernel_sizes: Sequence[int] = (5, 5),
        activation: str = "gelu_new",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.subsampler = ConvSubsampler(input_size, width, channels, kernel_sizes)
        config = MarianConfig(
            d_model=width,
            encoder_layers=num_layers,
            encoder_attention_heads=heads,
            encoder_ffn_dim=ffn,
            activation_function=activation,
            dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            # The tables of words and positions stay behind: inputs are vectors, positions are computed.
            vocab_size=1,
            pad_token_id=0,
            decoder_start_token_id=0,
            max_position_embeddings=1,
        )
        encoder = MarianEncoder(config)
        self.config, self.layers = encoder.config, encoder.layers
        self.linear = torch.nn.Linear(width, output_size)

    def output_size(self) -> int:
        """Width of the vectors given to the language model."""
        return self.linear.out_features

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, T, D) and lengths (B,) to vectors (B, T', output size) and their lengths."""
        hidden_BTD, lengths_B = self.subsampler(input, input_lengths)
        mask_BT = frame_mask(lengths_B, hidden_BTD.size(1))
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden_BTD, attention_mask=mask_BT)
        positions_TD = sinusoids(hidden_BTD.size(1), hidden_BTD.size(2), hidden_BTD.device)
        hidden_BTD = hidden_BTD + positions_TD.to(self.linear.weight.dtype)
        hidden_BTD = functional.dropout(hidden_BTD, self.config.dropout, self.training)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, mask)
        return self.linear(hidden_BTD), lengths_B


def sinusoids(num_positions: int, width: int, device: torch.device) -> torch.Tensor:
    """Marian's position vectors (T, D), sines before cosines; computed, so that speech may have any length."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    angles = torch.arange(num_positions, device=device, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
