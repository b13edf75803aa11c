"""What a phase's model weighs: its parts, parameters, speech vectors and memory, found without any weights.

The model is built by the task itself, of its own classes, on torch's meta device, where tensors have a shape and no
content. Foundation models are given by `espnet_llmst.published` or by the configuration in a local directory; nothing
is downloaded.

Shapes: B batch, T frames, D width.
"""

import json
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from espnet_llmst import foundation, published
from espnet_llmst.cli import InputError
from espnet_llmst.datadir.format_features import FRAME_SAMPLES, SHIFT_SAMPLES
from espnet_llmst.encoder import espnet_asr, units, wav2vec2, whisper
from espnet_llmst.encoder.hugging_face import HuggingFaceEncoder
from espnet_llmst.espnet_model import ESPnetLLMSTModel
from espnet_llmst.tasks.llmst import LLMSTTask
from espnet_llmst.train.results import in_dtype
from espnet_llmst.train.shapes import SAMPLES_PER_FRAME

PARTS = ("encoder", "postencoder", "decoder")
SAMPLE_RATE = 16000
PROBES = (0.8, 1.6)  # seconds; their difference is a whole number of frames of every encoder, even after a connector
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # per weight: with a byte per 64 of them and a float per 256 such bytes


def config_of(model: str) -> PreTrainedConfig:
    """The transformers configuration of a local directory or of a published model.

    Raises:
        InputError: neither is there, or its file is broken.
    """
    config_file = Path(model, "config.json")
    if config_file.is_file():
        try:
            settings = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config_file}: not JSON ({error}); copy or make the model again") from error
    elif model in published.TRANSFORMERS:
        settings = dict(published.TRANSFORMERS[model])
    else:
        raise InputError(f"{model}: size unknown; add it to espnet_llmst/published.py, or name a local directory")
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def features_of(model: str, read=AutoFeatureExtractor.from_pretrained):
    """The feature extractor of a local directory, or one as of the published models (``read`` as it is outside)."""
    if Path(model, "preprocessor_config.json").is_file():
        return read(model)
    config = config_of(model)
    if config.model_type == "whisper":
        return WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    return Wav2Vec2FeatureExtractor()


def tokens_of(model: str, **_) -> range:
    """What stands for a tokenizer where only the number of its tokens is asked."""
    return range(config_of(model).vocab_size)


def units_of(directory: str, read=units.read_units) -> tuple[torch.Tensor, dict]:
    """Centroids without content and settings, of a directory of units or as `published` has them."""
    if Path(directory).is_dir():
        return read(directory)
    if directory not in published.UNITS:
        raise InputError(f"{directory}: units unknown; make them by llmst_kmeans, or add them to published.py")
    settings = published.UNITS[directory]
    return torch.empty(settings["units"], settings["width"]), settings


def _empty_model(auto_class: type):
    """Stand-in of ``auto_class.from_pretrained``: the model as its configuration shapes it."""

    def build(model: str, dtype: torch.dtype | None = None, output_loading_info: bool = False, **_):
        empty = auto_class.from_config(config_of(model), dtype=dtype)
        return (empty, {"missing_keys": []}) if output_loading_info else empty

    return build


def _find_experiment(scratch: str, find=espnet_asr.find_experiment):
    """Stand-in of `espnet_asr.find_experiment`: a published configuration is written down, without weights."""

    def find_or_write(model: str | None, asr_config: str | None, asr_model: str | None):
        if model not in published.ESPNET or Path(model, "config.yaml").is_file():
            return find(model, asr_config, asr_model)
        path = Path(scratch, "config.yaml")
        path.write_text(yaml.safe_dump(published.ESPNET[model]), encoding="utf-8")
        return path, path

    return find_or_write


@contextmanager
def without_weights() -> Iterator[None]:
    """While open, foundation models are built from their configuration on the meta device.

    The parts load through transformers' ``from_pretrained`` and `espnet_asr`'s functions, which are replaced here so
    that nothing else of the parts differs from training.
    """
    read_weights = espnet_asr.read_weights
    stand_ins = [
        (foundation, "missing_models", lambda names: []),
        (AutoConfig, "from_pretrained", config_of),
        (AutoFeatureExtractor, "from_pretrained", features_of),
        (AutoTokenizer, "from_pretrained", tokens_of),
        *((auto, "from_pretrained", _empty_model(auto)) for auto in (AutoModel, AutoModelForCausalLM)),
        (AutoModelForSeq2SeqLM, "from_pretrained", _empty_model(AutoModelForSeq2SeqLM)),
        (espnet_asr, "read_weights", lambda file: {} if file.suffix == ".yaml" else read_weights(file)),
        (espnet_asr, "load_parts", lambda *_: None),
        (units, "read_units", units_of),
    ]
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(patch.object(espnet_asr, "find_experiment", _find_experiment(scratch)))
        for owner, name, stand_in in stand_ins:
            stack.enter_context(patch.object(owner, name, stand_in))
        stack.enter_context(torch.device("meta"))
        yield


def read_phase(path: Path) -> Namespace:
    """A phase's YAML through the task's own parser."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    return LLMSTTask.get_parser().parse_args(["--config", str(path), "--output_dir", "."])


def build_empty(args: Namespace) -> ESPnetLLMSTModel:
    """The model of a phase on the meta device, what is trained in the dtype of training."""
    conf = {name: value for name, value in args.decoder_conf.items() if name != "quantize"}
    with without_weights():
        model = LLMSTTask.build_model(Namespace(**{**vars(args), "decoder_conf": conf}))
    return model.to(dtype=getattr(torch, args.train_dtype))


def count(part: torch.nn.Module | None) -> dict[str, int]:
    """Parameters of a part: its own, those of its LoRA adapters, and how many of both are trained."""
    named = list(part.named_parameters()) if part is not None else []
    lora = sum(p.numel() for name, p in named if ".lora_" in name)
    return {
        "parameters": sum(p.numel() for _, p in named) - lora,
        "lora": lora,
        "trainable": sum(p.numel() for _, p in named if p.requires_grad),
    }


def frames_of(encoder: torch.nn.Module, num_samples: int) -> int | None:
    """States that an encoder makes of so many samples; None when that depends on what is said (units)."""
    num_samples_B = torch.tensor([num_samples])
    if isinstance(encoder, espnet_asr.ESPnetASREncoder):
        if encoder.reads_features:
            frames_B = (num_samples_B - FRAME_SAMPLES) // SHIFT_SAMPLES + 1
        else:
            stft = encoder.frontend.stft
            frames_B = (num_samples_B - (0 if stft.center else stft.n_fft)) // stft.hop_length + 1
        return int(espnet_asr.subsampled(encoder.encoder.embed, frames_B))
    if not isinstance(encoder, HuggingFaceEncoder):
        return None
    if not encoder.is_whisper:
        return int(wav2vec2.frame_lengths(num_samples_B, encoder.encoder.config))
    window = encoder.encoder.max_source_positions
    if encoder.attend_padding:
        return window
    return int(whisper.frame_lengths(num_samples_B, encoder.features.hop_length, window))


def vectors_of(model: ESPnetLLMSTModel, num_samples: int) -> int | None:
    """Vectors that the language model reads for so many samples of speech; None as of `frames_of`."""
    frames = frames_of(model.encoder, num_samples)
    if hasattr(model.postencoder, "query"):  # a Q-Former
        return model.postencoder.query.size(0)
    return frames and connected(model, frames)


def connected(model: ESPnetLLMSTModel, frames: int) -> int:
    """Vectors that a connector other than a Q-Former makes of so many states."""
    if not hasattr(model.postencoder, "subsampler"):
        return frames
    with torch.device("meta"):
        states_BTD = torch.empty(1, frames, model.encoder.output_size())
        return model.postencoder.subsampler(states_BTD, torch.tensor([frames]))[0].size(1)


def speech_sizes(model: ESPnetLLMSTModel) -> Callable[[int], tuple[int, int]]:
    """A function of samples that tells the vectors, and the frames that the encoder computes for them.

    A Whisper that pads to its window computes all of it. Units, which depend on what is said, are counted as if no
    two neighbours were alike: as frames of 20 ms.
    """
    encoder, queries = model.encoder, getattr(model.postencoder, "query", None)
    window = encoder.encoder.max_source_positions if getattr(encoder, "pad_to_30s", False) else None
    connect = cache(partial(connected, model))

    def measure(num_samples: int) -> tuple[int, int]:
        frames = frames_of(encoder, num_samples)
        frames = max(1, num_samples // SAMPLES_PER_FRAME if frames is None else frames)
        return (connect(frames) if queries is None else queries.size(0)), window or frames

    return measure


def speech_rate(model: ESPnetLLMSTModel) -> dict[str, float | int | None]:
    """Vectors after the connector: per second, or per utterance when their number does not grow with its length."""
    rates = {"vectors_per_second": None, "vectors_per_utterance": None}
    if model.encoder is None:
        return rates
    short, long = (vectors_of(model, round(seconds * SAMPLE_RATE)) for seconds in PROBES)
    if short == long:
        return rates | {"vectors_per_utterance": short}
    return rates | {"vectors_per_second": (long - short) / (PROBES[1] - PROBES[0])}


def _quantized(decoder: torch.nn.Module) -> int:
    """Weights that ``quantize: nf4`` keeps in 4 bits: of the linear layers but LoRA's and the output head."""
    head = decoder.lm.get_output_embeddings()
    layers = [(name, module) for name, module in decoder.lm.named_modules() if isinstance(module, torch.nn.Linear)]
    return sum(module.weight.numel() for name, module in layers if module is not head and ".lora_" not in name)


def memory_of(model: ESPnetLLMSTModel, quantize: str | None = None, save_dtype: str | None = None) -> dict[str, int]:
    """Bytes that the model's state takes in training, on one device that holds all of it.

    Assumed are Adam's two moments and a gradient for each trained parameter, all in its dtype, that of training.
    Activations, which depend on the batch, and what the allocator wastes come on top. ``checkpoint`` is a phase's
    model file: what is trained (what an earlier phase trained is written too); ``checkpoint.pth`` and its predecessor
    hold the optimizer's state beside it.
    """
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors)
    if quantize == "nf4":
        number = _quantized(model.decoder)
        weights -= round(number * (model.decoder.lm.get_input_embeddings().weight.element_size() - NF4_BITS / 8))
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    checkpoint = sum(t.numel() * t.element_size() for t in in_dtype(model.state_dict(), save_dtype).values())
    return {"weights": weights, "gradients": trained, "optimizer": 2 * trained, "checkpoint": checkpoint}


def summarise(path: Path) -> dict:
    """Everything about one phase.

    Args:
        path: its YAML; model directories in it are relative to the working directory, as in training.

    Returns:
        config; parts: for encoder, postencoder and decoder (None without speech) the class, the model's name,
        parameters (LoRA not included), lora, trainable; parameters, trainable, trainable_share of the whole;
        vectors_per_second or vectors_per_utterance, both None without speech or when they depend on what is said;
        memory in bytes, see `memory_of`.

    Raises:
        InputError: no such file, or a model whose size is not known.
    """
    args = read_phase(path)
    model = build_empty(args)
    parts = {}
    for name in PARTS:
        chosen, conf = getattr(args, name), getattr(args, f"{name}_conf")
        parts[name] = chosen and {"class": chosen, "model": conf.get("model"), **count(getattr(model, name))}
    total = {key: sum(part[key] for part in parts.values() if part) for key in ("parameters", "lora", "trainable")}
    number = total["parameters"] + total["lora"]
    return {
        "config": str(path),
        "parts": parts,
        "parameters": number,
        "trainable": total["trainable"],
        "trainable_share": total["trainable"] / number,
        **speech_rate(model),
        "memory": memory_of(model, args.decoder_conf.get("quantize"), args.save_dtype),
    }


def as_text(summary: dict) -> str:
    """A summary for the terminal."""
    lines = [summary["config"], f"  {'':12}{'parameters':>16}{'LoRA':>16}{'trainable':>16}"]
    for name, part in summary["parts"].items():
        if part:
            numbers = "".join(f"{part[key]:16,}" for key in ("parameters", "lora", "trainable"))
            lines.append(f"  {name:12}{numbers}  {part['class']} {part['model'] or ''}".rstrip())
    lines.append(f"  trained: {summary['trainable']:,} of {summary['parameters']:,} ({summary['trainable_share']:.2%})")
    if summary["vectors_per_second"] is not None:
        lines.append(f"  speech: {summary['vectors_per_second']:g} vectors per second after the connector")
    elif summary["vectors_per_utterance"] is not None:
        lines.append(f"  speech: {summary['vectors_per_utterance']} vectors per utterance after the connector")
    sizes = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in summary["memory"].items())
    return "\n".join([*lines, f"  memory without activations: {sizes}"])
