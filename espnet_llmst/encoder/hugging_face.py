"""Any transformers speech encoder as an ESPnet encoder: waveform in, hidden states out.

Shapes: B batch, S samples, T encoder frames, D width.
"""

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, PreTrainedModel
from typeguard import typechecked

from espnet_llmst.cli import InputError
from espnet_llmst.encoder import wav2vec2, whisper
from espnet_llmst.foundation import require_model
from espnet_llmst.lora import add_lora, keep_fixed


class HuggingFaceEncoder(AbsEncoder):
    """A speech foundation model from a hub id or a ``save_pretrained`` directory.

    Whisper, wav2vec 2.0, HuBERT or WavLM. Of a CTC or pre-training checkpoint the heads are dropped (LST
    reads a CTC-finetuned wav2vec 2.0). SpecAugment is never applied; dropout and layer drop only work where
    the module is trained.

    Args:
        model: hub id or local directory.
        pad_to_30s: Whisper only: pad each utterance to the checkpoint's own window (30 s for the published
            models) and attend to all of it, as published; the output is cut to the real length (LLaST
            section 2). Otherwise encode just the utterance: several times less work.
        attend_padding: with ``pad_to_30s``: give all states of the window to the connector, those of the padding
            too, so every utterance has the same number (LLM-SRT: 1,500).
        layer: take the states after so many layers (0: what enters the first), before any final
            normalisation, and leave the later ones out; None for the model's output.
        lora: ``{r, alpha, dropout, targets}``, see `espnet_llmst.lora.add_lora`; None for none.
        dtype: of the weights.

    Raises:
        InputError: a model that is not supported, lacks weights, or does not have that layer.
    """

    @typechecked
    def __init__(
        self,
        model: str,
        pad_to_30s: bool = False,
        attend_padding: bool = False,
        layer: int | None = None,
        lora: dict | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        require_model(model)
        config = AutoConfig.from_pretrained(model)
        self.is_whisper = config.model_type == "whisper"
        check_supported(model, config, pad_to_30s)
        self.features = AutoFeatureExtractor.from_pretrained(model)
        if self.features.sampling_rate != 16000:
            raise InputError(f"encoder_conf.model={model}: reads {self.features.sampling_rate} Hz; speech is 16000 Hz")
        self.encoder = load_encoder(model, getattr(torch, dtype))
        if attend_padding and not pad_to_30s:
            raise InputError(
                "encoder_conf.attend_padding: needs pad_to_30s: true, else there is no padding to attend to"
            )
        self.pad_to_30s, self.attend_padding = pad_to_30s, attend_padding
        if layer is not None:
            stack = self.encoder if self.is_whisper else self.encoder.encoder
            cut_layers(stack, layer, self.is_whisper or config.do_stable_layer_norm)
        if self.is_whisper:
            keep_fixed(self.encoder, self.encoder.embed_positions.parameters())  # sinusoids
        if lora:
            add_lora(self.encoder, **lora)

    def output_size(self) -> int:
        """Width D of the states."""
        return self.encoder.config.hidden_size

    def forward(self, xs_pad: torch.Tensor, ilens: torch.Tensor, prev_states: torch.Tensor | None = None):
        """Waveforms (B, S) at 16 kHz with lengths (B,) to states (B, T, D), lengths (B,) and None."""
        trains = any(p.requires_grad for p in self.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            if self.is_whisper:
                hidden_BTD, lengths_B = whisper.states(
                    self.encoder, self.features, xs_pad, ilens, self.pad_to_30s, self.attend_padding
                )
            else:
                hidden_BTD, lengths_B = wav2vec2.states(self.encoder, self.features.do_normalize, xs_pad, ilens)
        return hidden_BTD, lengths_B, None


def check_supported(model: str, config, pad_to_30s: bool) -> None:
    """Raise InputError for a model type or a setting that the encoder cannot honour."""
    name, supported = f"encoder_conf.model={model}", ("whisper", *wav2vec2.MODEL_TYPES)
    if config.model_type not in supported:
        raise InputError(f"{name}: '{config.model_type}' models are not supported: {', '.join(supported)}")
    if pad_to_30s and config.model_type != "whisper":
        raise InputError(f"{name}: encoder_conf.pad_to_30s is for Whisper, not for '{config.model_type}'; remove it")
    if getattr(config, "add_adapter", False):
        raise InputError(f"{name}: has a convolutional adapter (add_adapter), which is not supported")


def load_encoder(model: str, dtype: torch.dtype) -> PreTrainedModel:
    """The bare encoder of a checkpoint, without decoder and heads.

    Raises:
        InputError: the checkpoint lacks weights of it (transformers would leave them random).
    """
    whole, info = AutoModel.from_pretrained(model, dtype=dtype, output_loading_info=True)
    encoder = whole.encoder if whole.config.model_type == "whisper" else whole
    names = {f"encoder.{name}" if encoder is not whole else name for name in encoder.state_dict()}
    lost = sorted(names & set(info["missing_keys"]) - {"masked_spec_embed"})
    if lost:
        raise InputError(f"encoder_conf.model={model}: weights are missing, as {lost[0]} ({len(lost)} in all)")
    if hasattr(encoder, "masked_spec_embed"):
        # SpecAugment's filler: never read, and DDP objects to a trainable parameter without gradient.
        encoder.masked_spec_embed = None
    if encoder.config.model_type == "wavlm":
        wav2vec2.route_projections(encoder)
    return encoder


def cut_layers(stack: torch.nn.Module, layer: int, norm_at_end: bool) -> None:
    """Keep the first ``layer`` layers of a transformer, in place; a normalisation at its end goes too.

    Raises:
        InputError: it has fewer.
    """
    if not 0 <= layer <= len(stack.layers):
        raise InputError(f"encoder_conf.layer={layer}: must lie between 0 and {len(stack.layers)}")
    stack.layers = stack.layers[:layer]
    if norm_at_end:
        stack.layer_norm = torch.nn.Identity()
