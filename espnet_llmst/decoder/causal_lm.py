"""Any transformers causal language model as an ESPnet decoder that reads embeddings.

Shapes: B batch, L sequence length, D width, N target positions of the batch, V vocabulary.
"""

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from transformers import AutoModelForCausalLM
from typeguard import typechecked

from espnet_llmst.lora import add_lora


class CausalLMDecoder(AbsDecoder):
    """Llama, TinyLlama, Qwen and every other ``AutoModelForCausalLM``.

    Args:
        model: hub id or local ``save_pretrained`` directory.
        lora: ``{r, alpha, dropout, targets}``, see `espnet_llmst.lora.add_lora`; None for none.
        dtype: of the weights.
    """

    @typechecked
    def __init__(self, model: str, lora: dict | None = None, dtype: str = "float32") -> None:
        super().__init__()
        self.lm = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        if lora:
            add_lora(self.lm, **lora)

    @property
    def hidden_size(self) -> int:
        """Width D of the embeddings."""
        return self.lm.get_input_embeddings().embedding_dim

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to embeddings (..., D)."""
        return self.lm.get_input_embeddings()(ids)

    def forward(
        self, hs_pad: torch.Tensor, hlens: torch.Tensor, ys_in_pad: torch.Tensor, ys_in_lens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits at the positions that predict a target token, and nowhere else.

        Args:
            hs_pad: embeddings of prompt, speech and target (B, L, D), padded on the right. Causal
                attention never looks right, so no mask is needed.
            hlens: their lengths (B,).
            ys_in_pad: bool (B, L), True where the next token is a target.
            ys_in_lens: number of targets of each row (B,).

        Returns:
            Logits (N, V), rows in reading order of ``ys_in_pad``, and ``ys_in_lens``.
        """
        output = self.lm(inputs_embeds=hs_pad, use_cache=False, logits_to_keep=ys_in_pad)
        return output.logits, ys_in_lens
