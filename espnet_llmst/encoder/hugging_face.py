"""Any transformers speech encoder as an ESPnet encoder: waveform in, hidden states out.

Shapes: B batch, S samples, T encoder frames, D width.
"""

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from transformers import AutoConfig, AutoFeatureExtractor, WhisperModel
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.encoder import whisper
from espnet_llmst.lora import add_lora


class HuggingFaceEncoder(AbsEncoder):
    """A speech foundation model from a hub id or a ``save_pretrained`` directory.

    Args:
        model: hub id or local directory of a Whisper checkpoint.
        pad_to_30s: pad each utterance to the checkpoint's own window (30 s for the published Whisper
            models) and attend to all of it, as published; the output is cut to the real length (LLaST
            section 2). Otherwise encode just the utterance: several times less work.
        lora: ``{r, alpha, dropout, targets}``, see `espnet_llmst.lora.add_lora`; None for none.
        dtype: of the weights.

    Raises:
        InputError: a model type that is not supported.
    """

    @typechecked
    def __init__(self, model: str, pad_to_30s: bool = False, lora: dict | None = None, dtype: str = "float32") -> None:
        super().__init__()
        config = AutoConfig.from_pretrained(model)
        if config.model_type != "whisper":
            raise InputError(f"encoder_conf.model={model}: '{config.model_type}' models are not supported: whisper")
        self.features = AutoFeatureExtractor.from_pretrained(model)
        self.encoder = WhisperModel.from_pretrained(model, dtype=getattr(torch, dtype)).encoder
        self.pad_to_30s = pad_to_30s
        if lora:
            add_lora(self.encoder, **lora)

    def output_size(self) -> int:
        """Width D of the states."""
        return self.encoder.config.d_model

    def forward(self, xs_pad: torch.Tensor, ilens: torch.Tensor, prev_states: torch.Tensor | None = None):
        """Waveforms (B, S) at 16 kHz with lengths (B,) to states (B, T, D), lengths (B,) and None."""
        trains = any(p.requires_grad for p in self.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            hidden_BTD, lengths_B = whisper.states(self.encoder, self.features, xs_pad, ilens, self.pad_to_30s)
        return hidden_BTD, lengths_B, None
