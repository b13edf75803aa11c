"""The encoder of an ESPnet ASR experiment as an encoder of ours: waveform or features in, hidden states out.

Shapes: B batch, S samples, F feature frames, M features of a frame, C channels, T encoder frames, D width.
"""

import contextlib
import importlib
import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch.nn.utils.rnn import pad_sequence
from typeguard import TypeCheckError, typechecked

from espnet_llmst.cli import InputError

# By ESPnet's names. Its own tables stand in espnet2.tasks.asr, which takes 18 s to import and tries to download
# nltk data; these are imported when they are used.
CLASSES = {
    "frontend": {"default": "espnet2.asr.frontend.default:DefaultFrontend"},
    "normalize": {
        "global_mvn": "espnet2.layers.global_mvn:GlobalMVN",
        "utterance_mvn": "espnet2.layers.utterance_mvn:UtteranceMVN",
    },
    "preencoder": {"linear": "espnet2.asr.preencoder.linear:LinearProjection"},
    "encoder": {
        "e_branchformer": "espnet2.asr.encoder.e_branchformer_encoder:EBranchformerEncoder",
        "branchformer": "espnet2.asr.encoder.branchformer_encoder:BranchformerEncoder",
        "conformer": "espnet2.asr.encoder.conformer_encoder:ConformerEncoder",
        "transformer": "espnet2.asr.encoder.transformer_encoder:TransformerEncoder",
    },
    "decoder": {"transformer": "espnet2.asr.decoder.transformer_decoder:TransformerDecoder"},  # of a cascade
}
DEFAULTS = {"frontend": "default", "normalize": "utterance_mvn", "preencoder": None, "encoder": "rnn"}  # ESPnet's
SAMPLE_RATE = 16000


class ESPnetASREncoder(AbsEncoder):
    """Front-end, normalisation and encoder of an ASR model that ESPnet trained.

    States come at the rate of the experiment: 25 per second for 10 ms features and ``input_layer: conv2d``.
    SpecAugment, decoder, CTC and a postencoder of the experiment are left out. An utterance alone gives what
    ESPnet's decoder sees. A row of a batch equals the utterance alone, which is not so in ESPnet itself:
    there the features' last frames, the frame count and the convolutions feel the padding.

    An experiment with ``input_size`` was trained on ready-made features, such as Kaldi's filter banks and pitch: it
    has no front-end, and reads such features here, too (``reads_features``).

    Args:
        model: directory with ``config.yaml`` and the weights: ``valid.acc.ave.pth``, else
            ``valid.acc.best.pth``, else the only ``*.pth``.
        asr_config: instead of ``model``: the experiment's ``config.yaml``, together with
        asr_model: its weights.

    Raises:
        InputError: files are missing, weights do not fit, or the experiment uses a part that is not
            supported; the message names file and setting.
    """

    @typechecked
    def __init__(self, model: str | None = None, asr_config: str | None = None, asr_model: str | None = None) -> None:
        super().__init__()
        config_file, weights_file = find_experiment(model, asr_config, asr_model)
        with open(config_file, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        check_supported(config, config_file)
        self.input_size: int | None = config.get("input_size")
        weights = read_weights(weights_file)
        for name, part in build_parts(config, config_file, weights).items():
            self.add_module(name, part)  # under ESPnet's names, None for a part it does not have
        load_parts(self, weights, weights_file)
        if self.frontend is not None and self.frontend.logmel.mel_options["sr"] != SAMPLE_RATE:
            raise InputError(f"{config_file}: frontend_conf.fs must be {SAMPLE_RATE}, the rate of the speech")
        # The old relative positions depend on how long the longest utterance is.
        self.one_length_at_a_time = any("Legacy" in type(module).__name__ for module in self.encoder.modules())

    @property
    def reads_features(self) -> bool:
        """Whether the input is features (B, F, M) instead of waveforms (B, S)."""
        return self.input_size is not None

    def output_size(self) -> int:
        """Width D of the states."""
        return self.encoder.output_size()

    def forward(self, xs_pad: torch.Tensor, ilens: torch.Tensor, prev_states: torch.Tensor | None = None):
        """Speech with lengths (B,) to states (B, T, D), lengths (B,) and None.

        Args:
            xs_pad: waveforms (B, S) at 16 kHz; or features (B, F, M), if ``reads_features``.
            ilens: samples or frames of each.
        Raises:
            InputError: waveforms where features are read, or the other way round.
        """
        check_input(xs_pad, self.input_size)
        trains = any(p.requires_grad for p in self.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            with torch.autocast(xs_pad.device.type, enabled=False):
                feats_BFM, frames_B = self.extract(xs_pad.float(), ilens)
            if self.preencoder is not None:
                feats_BFM, frames_B = self.preencoder(feats_BFM, frames_B)
            # In training as ESPnet does, whole batches: batch normalisation needs them.
            alone = self.one_length_at_a_time and not self.encoder.training
            states_BTD = (encode_by_length if alone else encode_batch)(self.encoder, feats_BFM, frames_B)
        return states_BTD, subsampled(self.encoder.embed, frames_B), None

    def extract(self, speech: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised features (B, F, M) and their lengths; too short an utterance is zero-padded to one state."""
        read = self._pad_features if self.reads_features else self._extract_features
        feats_BFM, frames_B = read(speech, lengths_B)
        return (feats_BFM, frames_B) if self.normalize is None else self.normalize(feats_BFM, frames_B)

    def _pad_features(self, feats_BFM: torch.Tensor, frames_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frames_B = frames_B.clamp(min=needed_frames(self.encoder.embed))
        size = int(frames_B.max())
        # In any case a copy: ESPnet's normalisation works in place.
        return torch.nn.functional.pad(feats_BFM[:, :size], (0, 0, 0, max(0, size - feats_BFM.size(1)))), frames_B

    def _extract_features(
        self, speech_BS: torch.Tensor, num_samples_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stft = self.frontend.stft
        shortest = (needed_frames(self.encoder.embed) - 1) * stft.hop_length + (0 if stft.center else stft.n_fft)
        num_samples_B = num_samples_B.clamp(min=shortest)
        if stft.center:
            speech_BS = mirror_ends(speech_BS, num_samples_B, stft.n_fft // 2)
        feats_BFM, frames_B = self.frontend(speech_BS, num_samples_B)
        return feats_BFM[:, : int(frames_B.max())], frames_B


def find_experiment(model: str | None, asr_config: str | None, asr_model: str | None) -> tuple[Path, Path]:
    """The files with settings and weights; arguments and errors as in `ESPnetASREncoder`."""
    if (model is None) == (asr_config is None) or (asr_config is None) != (asr_model is None):
        raise InputError("encoder_conf: give either model (a directory) or both asr_config and asr_model")
    if model is None:
        config_file, weights_file = Path(asr_config), Path(asr_model)
    else:
        config_file, weights_file = Path(model, "config.yaml"), choose_weights(Path(model))
    for file in (config_file, weights_file):
        if not file.is_file():
            raise InputError(f"{file}: no such file; an ESPnet ASR experiment holds config.yaml and *.pth")
    return config_file, weights_file


def choose_weights(directory: Path) -> Path:
    """The model among the ``*.pth`` of an experiment (``checkpoint.pth`` is the trainer's state)."""
    for name in ("valid.acc.ave.pth", "valid.acc.best.pth"):
        if (directory / name).exists():
            return directory / name
    found = sorted(file for file in directory.glob("*.pth") if file.name != "checkpoint.pth")
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"{directory}: cannot choose among *.pth ({names}); give asr_config and asr_model")
    return found[0]


def check_supported(config: dict, config_file: Path) -> None:
    """Raise InputError for settings under which the encoder cannot be taken out of its model."""
    conf = config.get("encoder_conf") or {}
    for name in ("interctc_use_conditioning", "ctc_trim"):
        if conf.get(name):
            raise InputError(f"{config_file}: encoder_conf.{name} lets the encoder read CTC output: not supported")
    if config.get("input_size") is None and config.get("frontend", "default") is None:
        raise InputError(f"{config_file}: neither frontend nor input_size: what does this model read?")


def check_input(speech: torch.Tensor, input_size: int | None) -> None:
    """Raise InputError for waveforms where features are read, or the other way round."""
    if input_size is None and speech.dim() == 3:
        raise InputError(f"speech: {speech.size(2)} features a frame, but this encoder reads waveforms; use another")
    if input_size is not None and speech.dim() == 2:
        raise InputError(f"speech: waveforms, but this encoder reads {input_size} features a frame; use another")
    if input_size is not None and speech.size(2) != input_size:
        raise InputError(f"speech: {speech.size(2)} features a frame, but this encoder reads {input_size}; use another")


def read_weights(weights_file: Path) -> dict[str, torch.Tensor]:
    """The state dict in a ``*.pth`` of an experiment."""
    try:
        return torch.load(weights_file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise InputError(f"{weights_file}: not a model's weights (is it the trainer's checkpoint.pth?)") from error


def get_class(config: dict, config_file: Path, part: str, default: str | None) -> type | None:
    """The class that the experiment's settings choose for a part; None when it has no such part."""
    name = config.get(part, default)
    if name is None:
        return None
    if name not in CLASSES[part]:
        raise InputError(f"{config_file}: {part} '{name}' is not supported: {', '.join(CLASSES[part])}")
    module, _, attribute = CLASSES[part][name].partition(":")
    with contextlib.redirect_stdout(sys.stderr):  # ESPnet prints on import that it found no flash_attn
        return getattr(importlib.import_module(module), attribute)


def build_parts(config: dict, config_file: Path, weights: dict[str, torch.Tensor]) -> dict:
    """The parts of the model up to its encoder, by their names in ESPnet; None where there is none."""
    parts = {}
    size = config.get("input_size")
    for part, default in DEFAULTS.items():
        chosen = get_class(config, config_file, part, default)
        if part == "frontend" and size is not None:
            chosen = None  # its name may still stand in the settings
        conf = dict(config.get(f"{part}_conf") or {})
        if part == "encoder":
            before = parts["preencoder"] or parts["frontend"]
            conf["input_size"] = before.output_size() if before else size
            conf.pop("gradient_checkpoint_layers", None)  # recomputation would miss `padding_masked`
        with built_from(config_file, part), tempfile.TemporaryDirectory() as scratch:
            if "stats_file" in conf:
                conf["stats_file"] = write_statistics(weights, scratch)
            parts[part] = None if chosen is None else chosen(**conf)
    return parts


@contextlib.contextmanager
def built_from(config_file: Path, part: str) -> Iterator[None]:
    """While open, settings that do not fit the part are an InputError naming them."""
    try:
        yield
    except (KeyError, TypeError, TypeCheckError) as error:
        raise InputError(f"{config_file}: {part} cannot be built from {part}_conf: {error!r}") from error


def write_statistics(weights: dict[str, torch.Tensor], directory: str) -> str:
    """A statistics file for ESPnet's GlobalMVN, from the checkpoint: the experiment's own may be far away."""
    mean, std = (weights[f"normalize.{name}"].numpy() for name in ("mean", "std"))
    path = f"{directory}/feats_stats.npz"
    np.savez(path, count=1, sum=mean, sum_square=std**2 + mean**2)
    return path


def load_parts(module: torch.nn.Module, weights: dict[str, torch.Tensor], weights_file: Path) -> None:
    """Load what belongs to the parts of ``module``; anything missing, left over or misshapen is an InputError."""
    names = tuple(f"{name}." for name, _ in module.named_children())
    wanted = {key: value for key, value in weights.items() if key.startswith(names)}
    try:
        module.load_state_dict(wanted, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{weights_file}: the weights do not fit the experiment's config.yaml: {reason}") from error


def mirror_ends(speech_BS: torch.Tensor, num_samples_B: torch.Tensor, margin: int) -> torch.Tensor:
    """Continue each utterance by ``margin`` of its last samples, mirrored, as the STFT does at a lone one's end."""
    size = int(num_samples_B.max())
    speech_BS = torch.nn.functional.pad(speech_BS, (0, max(0, size - speech_BS.size(1))))[:, :size]
    last_B1 = num_samples_B[:, None] - 1
    at = torch.arange(size + margin, device=speech_BS.device)
    source = torch.where(at <= last_B1, at, 2 * last_B1 - at).clamp(min=0)
    return speech_BS.gather(1, source)


def _convolutions(embed: torch.nn.Module | None) -> list[tuple[int, int]]:
    """Kernel and stride in time of each convolution of the encoder's input layer (none pads)."""
    layers = getattr(embed, "conv", [])
    return [(layer.kernel_size[0], layer.stride[0]) for layer in layers if hasattr(layer, "stride")]


def subsampled(embed: torch.nn.Module | None, frames_B: torch.Tensor) -> torch.Tensor:
    """States that the input layer makes of so many feature frames."""
    for kernel, stride in _convolutions(embed):
        frames_B = (frames_B - kernel) // stride + 1
    return frames_B


def needed_frames(embed: torch.nn.Module | None) -> int:
    """Feature frames that one state needs."""
    frames = 1
    for kernel, stride in reversed(_convolutions(embed)):
        frames = (frames - 1) * stride + kernel
    return frames


def encode_batch(encoder: AbsEncoder, feats_BFM: torch.Tensor, frames_B: torch.Tensor) -> torch.Tensor:
    """States (B, T, D) of a padded batch in one go."""
    with padding_masked(encoder, subsampled(encoder.embed, frames_B)):
        states_BTD = encoder(feats_BFM, frames_B)[0]
    # A model trained with intermediate CTC gives its inner layers' states too.
    return states_BTD[0] if isinstance(states_BTD, tuple) else states_BTD


def encode_by_length(encoder: AbsEncoder, feats_BFM: torch.Tensor, frames_B: torch.Tensor) -> torch.Tensor:
    """States (B, T, D), utterances of equal length together, so that none is padded: slower, always exact."""
    rows = [None] * len(frames_B)
    for length in frames_B.unique():
        chosen = (frames_B == length).nonzero()[:, 0]
        states_BTD = encode_batch(encoder, feats_BFM[chosen, :length], frames_B[chosen])
        for row, states_TD in zip(chosen.tolist(), states_BTD, strict=True):
            rows[row] = states_TD
    return pad_sequence(rows, batch_first=True)


@contextlib.contextmanager
def padding_masked(encoder: AbsEncoder, lengths_B: torch.Tensor) -> Iterator[None]:
    """While open, padding does not change the states of an utterance of ``lengths_B`` frames.

    ESPnet's input layer counts up to one frame too many for all but the longest utterance, and its
    convolutions over time read the padded frames behind an utterance's end.
    """

    def inside(like: torch.Tensor) -> torch.Tensor:
        return (torch.arange(like.size(2), device=like.device) < lengths_B[:, None])[:, None]

    def zero_padding(_, inputs):
        return (inputs[0] * inside(inputs[0]),)

    def recount(_, inputs, output):
        states, mask_B1T = output
        return states, inside(mask_B1T)

    padded = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv1d) and m.padding != (0,)]
    handles = [module.register_forward_pre_hook(zero_padding) for module in padded]
    if _convolutions(encoder.embed):
        handles.append(encoder.embed.register_forward_hook(recount))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
