"""Whisper's log-mel features and encoder states in torch, padded to its window or not.

Shapes: B batch, S samples, M mel bands, F mel frames, T encoder frames, D width.
"""

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder


def frame_lengths(num_samples_B: torch.Tensor, hop_length: int, window_frames: int) -> torch.Tensor:
    """Encoder frames of each utterance: its mel frames halved, at least 1, at most the model's window."""
    return (num_samples_B // (2 * hop_length)).clamp(1, window_frames)


def log_mel(speech_BS: torch.Tensor, num_frames: int, mel_filters: torch.Tensor, n_fft: int, hop_length: int):
    """Whisper's log-mel spectrogram (B, M, ``num_frames``), in float32.

    ``speech_BS`` is zero beyond each utterance's end and is cut or zero-padded to ``num_frames``; a row
    does not depend on how long the others are.
    """
    wanted = num_frames * hop_length + n_fft
    speech_BS = functional.pad(speech_BS.float(), (0, max(0, wanted - speech_BS.size(1))))[:, :wanted]
    window = torch.hann_window(n_fft, device=speech_BS.device)
    spectrum_BMF = torch.stft(speech_BS, n_fft, hop_length, window=window, return_complex=True)
    power_BMF = spectrum_BMF[..., :num_frames].abs().square()
    log_BMF = (mel_filters.T @ power_BMF).clamp(min=1e-10).log10()
    log_BMF = torch.maximum(log_BMF, log_BMF.amax(dim=(1, 2), keepdim=True) - 8.0)
    return (log_BMF + 4.0) / 4.0


def encode(encoder: WhisperEncoder, mel_BMF: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
    """States (B, T, D) of mel frames of any even count up to the model's window.

    With ``lengths_B`` (encoder frames of each utterance) positions are cropped, frames beyond an
    utterance's end are zeroed before each convolution and masked in attention: a row of a batch equals
    the utterance alone. With None every frame is attended, as Whisper was published.
    """
    mask = None
    if lengths_B is not None:
        inside_BF = torch.arange(mel_BMF.size(2), device=mel_BMF.device) < 2 * lengths_B[:, None]
        mel_BMF = mel_BMF * inside_BF[:, None]
    hidden_BDF = functional.gelu(encoder.conv1(mel_BMF))
    if lengths_B is not None:
        hidden_BDF = hidden_BDF * inside_BF[:, None]
        mask = inside_BF[:, None, None, ::2]
    hidden_BTD = functional.gelu(encoder.conv2(hidden_BDF)).transpose(1, 2)
    hidden_BTD = hidden_BTD + encoder.embed_positions.weight[: hidden_BTD.size(1)]
    hidden_BTD = functional.dropout(hidden_BTD, encoder.dropout, encoder.training)
    for layer in encoder.layers:
        hidden_BTD = layer(hidden_BTD, mask)
    return encoder.layer_norm(hidden_BTD)


def states(
    encoder: WhisperEncoder,
    features: WhisperFeatureExtractor,
    speech_BS: torch.Tensor,
    num_samples_B: torch.Tensor,
    pad_to_window: bool,
    keep_window: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms to states (B, T, D) and their lengths (B,).

    Cut to the longest utterance of the batch, or with ``keep_window`` the whole window for each. Beyond an
    utterance's length the states have no meaning.
    """
    window_frames = encoder.max_source_positions
    lengths_B = frame_lengths(num_samples_B, features.hop_length, window_frames)
    longest = int(lengths_B.max())
    num_frames = 2 * (window_frames if pad_to_window else longest)
    filters = torch.as_tensor(features.mel_filters, dtype=torch.float32, device=speech_BS.device)
    with torch.autocast(speech_BS.device.type, enabled=False):
        mel_BMF = log_mel(speech_BS, num_frames, filters, features.n_fft, features.hop_length)
    mel_BMF = mel_BMF.to(encoder.conv1.weight.dtype)
    if pad_to_window:
        hidden_BTD = encode(encoder, mel_BMF, None)
    elif mel_BMF.is_cpu and not any(p.requires_grad for p in encoder.parameters()):
        # A CPU gains nothing by batches, and padding costs. One that is trained may be split over processes (FSDP),
        # which must then all call it as often.
        rows = zip(mel_BMF.split(1), lengths_B.tolist(), strict=True)
        hidden_BTD = pad_sequence([encode(encoder, row[..., : 2 * length], None)[0] for row, length in rows], True)
    else:
        hidden_BTD = encode(encoder, mel_BMF, lengths_B)
    if keep_window:
        return hidden_BTD, torch.full_like(lengths_B, window_frames)
    return hidden_BTD[:, :longest], lengths_B
