"""Q-Former: learned queries read the whole utterance; LLM-SRT's (arXiv 2409.19510) and Aligned's (2411.18294).

Shapes: B batch, T frames, Q queries, D width.
"""

import torch
from espnet2.asr.postencoder.abs_postencoder import AbsPostEncoder
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.connector.subsampling import frame_mask


class QFormerConnector(AbsPostEncoder):
    """A fixed number of vectors whatever the utterance's length; the defaults are LLM-SRT's.

    Aligned takes ``num_queries=100, num_layers=6, width=256, heads=4, ffn=2048,
    cross_attention_frequency=1, query_init="zeros", head="linear", layer_norm=False, activation="gelu_new"``.

    Args:
        input_size: width of the encoder states.
        output_size: width of the language model's embeddings.
        num_queries: vectors per utterance.
        num_layers: transformer layers.
        width: of the transformer and its queries.
        heads: of its attention.
        ffn: width of its feed-forward layers.
        cross_attention_frequency: every how many layers, from the first on, the queries look at the speech.
        query_init: "normal" (mean 0, variance 1) or "zeros". Zeros differ from one another only through dropout,
            and normalising them makes the first gradients huge: clip gradients, and not in float16.
        head: "linear", or "mlp": LLM-SRT's two layers around a ReLU, whose inner width follows
            ``output_size`` (one layer up to 1536).
        layer_norm: normalise the vectors given to the language model.
        activation: of the feed-forward layers, as transformers names it.
        dropout: of states and attention.
    """

    @typechecked
    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_queries: int = 80,
        num_layers: int = 8,
        width: int = 768,
        heads: int = 12,
        ffn: int = 3072,
        cross_attention_frequency: int = 2,
        query_init: str = "normal",
        head: str = "mlp",
        layer_norm: bool = True,
        activation: str = "gelu",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            encoder_hidden_size=input_size,
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=heads,
            intermediate_size=ffn,
            cross_attention_frequency=cross_attention_frequency,
            hidden_act=activation,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        self.query = torch.nn.Parameter(_queries(query_init, num_queries, width))
        self.qformer = Blip2QFormerModel(config)
        self.head = _head(head, width, output_size)
        self.norm = torch.nn.LayerNorm(output_size, eps=1e-5) if layer_norm else torch.nn.Identity()
        self.width_out = output_size

    def output_size(self) -> int:
        """Width of the vectors given to the language model."""
        return self.width_out

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States (B, T, D) and lengths (B,) to vectors (B, Q, output size) and lengths (B,), all Q."""
        mask_BT = frame_mask(input_lengths, input.size(1))
        hidden_BQD = self.qformer(
            query_embeds=self.query.expand(len(input), -1, -1),
            encoder_hidden_states=input.to(self.query.dtype),
            encoder_attention_mask=mask_BT,
        ).last_hidden_state
        return self.norm(self.head(hidden_BQD)), torch.full_like(input_lengths, self.query.size(0))


def _queries(init: str, num_queries: int, width: int) -> torch.Tensor:
    kinds = {"normal": torch.randn, "zeros": torch.zeros}
    if init not in kinds:
        raise InputError(f"postencoder_conf.query_init={init}: choose one of {', '.join(kinds)}")
    return kinds[init](num_queries, width)


def _head(kind: str, width: int, output_size: int) -> torch.nn.Module:
    if kind not in ("linear", "mlp"):
        raise InputError(f"postencoder_conf.head={kind}: choose one of linear, mlp")
    if kind == "linear" or output_size <= 1536:
        return torch.nn.Linear(width, output_size)
    middle = 1536 if output_size <= 2560 else 2560
    return torch.nn.Sequential(torch.nn.Linear(width, middle), torch.nn.ReLU(), torch.nn.Linear(middle, output_size))
