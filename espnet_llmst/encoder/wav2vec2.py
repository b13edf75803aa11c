"""wav2vec 2.0, HuBERT and WavLM: normalised waveform, frame counts, and states that padding never changes.

Shapes: B batch, S samples, C channels of the convolutions, T frames, D width, H heads, X batch times heads.
"""

import types

import torch
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

MODEL_TYPES = ("wav2vec2", "hubert", "wavlm")


def frame_lengths(num_samples_B: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Frames the convolutions make of so many samples: floor((n - kernel) / stride) + 1, one after the other."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples_B = (num_samples_B - kernel) // stride + 1
    return num_samples_B


def shortest_input(config: PreTrainedConfig) -> int:
    """Samples that one frame needs (400, that is 25 ms, for every published model)."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def normalise(speech_BS: torch.Tensor, num_samples_B: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over each utterance's own samples, in float32; zero beyond its end."""
    speech_BS, count_B1 = speech_BS.float(), num_samples_B[:, None]
    inside_BS = torch.arange(speech_BS.size(1), device=speech_BS.device) < count_B1
    centred_BS = (speech_BS - (speech_BS * inside_BS).sum(1, keepdim=True) / count_B1) * inside_BS
    variance_B1 = centred_BS.square().sum(1, keepdim=True) / count_B1
    return centred_BS / (variance_B1 + 1e-7).sqrt()


def conv_features(model: PreTrainedModel, speech_BS: torch.Tensor, num_samples_B: torch.Tensor) -> torch.Tensor:
    """Output (B, T, C) of the convolutions; frames within an utterance's length do not see its padding.

    In models of ``feat_extract_norm: group`` (the base sizes) the first layer normalises over time, padding
    included. It is therefore applied to each utterance alone: the rest works on the whole batch.
    """
    hidden_BCT = speech_BS[:, None]
    for layer in model.feature_extractor.conv_layers:
        if not isinstance(getattr(layer, "layer_norm", None), torch.nn.GroupNorm):
            hidden_BCT = layer(hidden_BCT)
            continue
        hidden_BCT = layer.conv(hidden_BCT)
        total = hidden_BCT.size(2)
        lengths = ((num_samples_B - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1).tolist()
        rows = [layer.layer_norm(row[:, :, :n]) for row, n in zip(hidden_BCT.split(1), lengths, strict=True)]
        hidden_BCT = layer.activation(torch.cat([functional.pad(row, (0, total - row.size(2))) for row in rows]))
    return hidden_BCT.transpose(1, 2)


def states(
    model: PreTrainedModel, do_normalize: bool, speech_BS: torch.Tensor, num_samples_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms to states (B, T, D) and their lengths (B,).

    A row of a batch equals the utterance alone, with every model: padded frames are zeroed and masked also
    for models that were published without an attention mask. SpecAugment is never applied. An utterance
    shorter than one frame is zero-padded to one.
    """
    shortest = shortest_input(model.config)
    speech_BS = speech_BS[:, : int(num_samples_B.max())]
    if do_normalize:
        with torch.autocast(speech_BS.device.type, enabled=False):
            speech_BS = normalise(speech_BS, num_samples_B)
    speech_BS = functional.pad(speech_BS, (0, max(0, shortest - speech_BS.size(1))))
    num_samples_B = num_samples_B.clamp(min=shortest)
    lengths_B = frame_lengths(num_samples_B, model.config)
    speech_BS = speech_BS.to(model.feature_extractor.conv_layers[0].conv.weight.dtype)
    projected = model.feature_projection(conv_features(model, speech_BS, num_samples_B))
    # HuBERT's projection returns one tensor, those of the others a pair.
    hidden_BTD = projected[0] if isinstance(projected, tuple) else projected
    inside_BT = torch.arange(hidden_BTD.size(1), device=hidden_BTD.device) < lengths_B[:, None]
    mask_BT = None if bool(inside_BT.all()) else inside_BT
    return model.encoder(hidden_BTD, attention_mask=mask_BT).last_hidden_state, lengths_B


def route_projections(model: PreTrainedModel) -> None:
    """Let WavLM's attention call its projection layers.

    transformers hands their bare weights to a function of torch, so LoRA adapters on them would neither act
    nor get gradients. This way they do, and fused attention saves the weights' memory.
    """
    for layer in model.encoder.layers:
        attention = layer.attention
        attention.torch_multi_head_self_attention = types.MethodType(_gated_attention, attention)


def _gated_attention(attention, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None, bias_XTT: torch.Tensor):
    """WavLM's attention with its gated position bias; stands in for ``torch_multi_head_self_attention``."""
    heads = (*hidden_BTD.shape[:2], attention.num_heads, attention.head_dim)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (linear(hidden_BTD).view(heads).transpose(1, 2) for linear in projections)
    bias_BHTT = bias_XTT.view(*query.shape[:3], -1).to(query.dtype)
    if mask_BT is not None:
        bias_BHTT = bias_BHTT.masked_fill(~mask_BT[:, None, None], torch.finfo(query.dtype).min)
    dropout = attention.dropout if attention.training else 0.0
    mixed = functional.scaled_dot_product_attention(query, key, value, bias_BHTT, dropout)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2)), None
