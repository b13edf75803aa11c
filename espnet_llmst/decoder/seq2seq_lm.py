"""A transformers translator (Marian, T5) as an ESPnet decoder that reads speech (arXiv 2411.18294, section 3).

Shapes: B batch, L prompt length, Y target length, D width, N target tokens of the batch, V vocabulary.
"""

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig
from transformers.modeling_outputs import BaseModelOutput
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.foundation import require_model
from espnet_llmst.lora import add_lora, keep_fixed


class Seq2SeqLMDecoder(AbsDecoder):
    """Marian, T5 and every other ``AutoModelForSeq2SeqLM``.

    Args:
        model: hub id or local ``save_pretrained`` directory.
        entry: where the speech vectors enter. "decoder" (ECD): they are the encoder states that the
            decoder attends to, the text encoder is not used and never trained. "encoder" (ECED): they are the input
            embeddings of the text encoder, unscaled, after an embedded text prefix if the prompt has one.
        lora: ``{r, alpha, dropout, targets}``, see `espnet_llmst.lora.add_lora`; None for none.
        dtype: of the weights.
        random_init: take the model's shape only and start from random weights, for a baseline without a
            foundation model; what is used of it must be trained.

    Raises:
        InputError: an unknown ``entry``.
    """

    @typechecked
    def __init__(
        self,
        model: str,
        entry: str = "encoder",
        lora: dict | None = None,
        dtype: str = "float32",
        random_init: bool = False,
    ) -> None:
        super().__init__()
        if entry not in ("encoder", "decoder"):
            raise InputError(f"decoder_conf.entry: '{entry}' must be encoder (ECED) or decoder (ECD)")
        require_model(model)
        if random_init:
            config = AutoConfig.from_pretrained(model)
            self.lm = AutoModelForSeq2SeqLM.from_config(config, dtype=getattr(torch, dtype))
        else:
            self.lm = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self.entry, self.random_init = entry, random_init
        if lora:
            add_lora(self.lm, **lora)
        encoder, decoder = self.lm.get_encoder(), self.lm.get_decoder()
        keep_fixed(self.lm, (p for m in self.lm.modules() if "Sinusoidal" in type(m).__name__ for p in m.parameters()))
        if entry == "decoder":
            keep_fixed(encoder, set(encoder.parameters()) - set(decoder.parameters()))

    @property
    def hidden_size(self) -> int:
        """Width D of the embeddings and of the encoder states."""
        return self.lm.get_input_embeddings().embedding_dim

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) to embeddings (..., D)."""
        return self.lm.get_input_embeddings()(ids)

    def scale_text(self, prompt_LD: torch.Tensor) -> torch.Tensor:
        """Embeddings of a prompt without speech as the text encoder reads its own text: scaled, with Marian.

        Raises:
            InputError: with ``entry: decoder``, where the text encoder is not used.
        """
        if self.entry == "decoder":
            raise InputError("decoder_conf.entry: decoder reads no text; the task mt needs entry: encoder")
        return prompt_LD * getattr(self.lm.get_encoder(), "embed_scale", 1.0)

    def _states(self, prompts_BLD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[BaseModelOutput, torch.Tensor]:
        mask_BL = (torch.arange(prompts_BLD.size(1), device=lengths_B.device) < lengths_B[:, None]).long()
        if self.entry == "decoder":
            return BaseModelOutput(last_hidden_state=prompts_BLD), mask_BL
        most = getattr(self.lm.config, "max_position_embeddings", None)
        if most and prompts_BLD.size(1) > most:
            raise InputError(
                f"{type(self.lm).__name__} reads at most {most} positions, not {prompts_BLD.size(1)}: leave out"
                " the longest (--max_wav_duration), or take a connector with fewer vectors per second"
            )
        return self.lm.get_encoder()(inputs_embeds=prompts_BLD, attention_mask=mask_BL), mask_BL

    def forward(
        self, hs_pad: torch.Tensor, hlens: torch.Tensor, ys_in_pad: torch.Tensor, ys_in_lens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the target tokens; arguments and result as of `CausalLMDecoder.forward`."""
        states, mask_BL = self._states(hs_pad, hlens)
        start = ys_in_pad.new_full((len(ys_in_pad), 1), self.lm.config.decoder_start_token_id)
        inputs_BY = torch.cat([start, ys_in_pad[:, :-1]], dim=1)
        output = self.lm(encoder_outputs=states, attention_mask=mask_BL, decoder_input_ids=inputs_BY, use_cache=False)
        targets_BY = torch.arange(ys_in_pad.size(1), device=ys_in_lens.device) < ys_in_lens[:, None]
        return output.logits[targets_BY], ys_in_lens

    def states_of(self, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the search starts from: for each prompt (L, D) the states that the decoder attends to."""
        if self.entry == "decoder":
            return prompts
        lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
        states, _ = self._states(pad_sequence(prompts, batch_first=True), lengths_B)
        return [row[:length] for row, length in zip(states.last_hidden_state, lengths_B.tolist(), strict=True)]

    def generate(self, states: list[torch.Tensor], config: GenerationConfig):
        """transformers' ``generate`` from the states (L, D) of each utterance."""
        lengths_B = torch.tensor([len(one) for one in states], device=states[0].device)
        padded = BaseModelOutput(last_hidden_state=pad_sequence(states, batch_first=True))
        mask_BL = (torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None]).long()
        return self.lm.generate(encoder_outputs=padded, attention_mask=mask_BL, generation_config=config)
