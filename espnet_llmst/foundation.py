"""Foundation models of a method: where each comes from, is it complete, its revision and hash."""

import hashlib
import re
from pathlib import Path

from espnet_llmst.cli import InputError, read_yaml

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.pth")
CONFIGS = ("config.json", "config.yaml")  # of transformers and of ESPnet
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.jinja", "*.tiktoken"]
OLD_WEIGHTS = ["pytorch_model*.bin"]  # of hub models without safetensors, e.g. OPUS-MT's
NOT_READ = ["*.fp32*", "*.fp16*"]  # the same weights again, e.g. of Whisper-large-v3


def is_hub_id(name: str) -> bool:
    """Whether a model is named as on the hub (``org/model``) and is not a local directory."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not Path(name).exists() and name[0] != "."


def models_of(configs: list[Path]) -> list[str]:
    """The models, and directories of units, that phases and decoding options name, each once."""
    return list(dict.fromkeys(name for path in configs for name in models_in(read_yaml(path))))


def models_in(settings: dict) -> list[str]:
    """The models that a phase's settings name, or a cascade's decoding options (``asr_model``)."""
    encoder, decoder = settings.get("encoder_conf", {}), settings.get("decoder_conf", {})
    names = [encoder.get("model"), encoder.get("kmeans"), decoder.get("model"), settings.get("asr_model")]
    return [name for name in names if name]


def is_complete(path: Path) -> bool:
    """Whether a directory holds a model; the recipes put finished directories in place by a rename."""
    return any((path / config).exists() for config in CONFIGS)


def missing_models(names: list[str]) -> list[str]:
    """Local directories among ``names`` that hold no model yet."""
    return [name for name in names if not is_hub_id(name) and not is_complete(Path(name))]


def require_model(name: str) -> None:
    """Refuse a local model directory that is not there (a hub id is left to transformers)."""
    if missing_models([name]):
        raise InputError(f"{name}: no model there; run stage 4 from the recipe's folder, or correct the path")


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 24), b""):
                digest.update(block)
    return digest.hexdigest()


def download(name: str) -> Path:
    """The hub's files of a model, in the local cache: weights as safetensors or, where there are none, torch's."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NOT_READ))
        if not any(path.glob("*.safetensors")):
            wanted = HUB_FILES + OLD_WEIGHTS
            path = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=NOT_READ))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{name}: cannot be had from the hub ({reason}); name a local directory in its place (model: in the "
            "YAML that names it), or, if it asks for a licence, accept that on the hub and run hf auth login"
        ) from error
    return path


def describe(name: str, known: dict | None = None) -> dict:
    """Resolve one model, downloading it from the hub when it is named so.

    Args:
        name: hub id or local directory.
        known: an earlier description; its hash is kept when size and time of the weights are the same.

    Returns:
        model, path, revision (None for a local directory), model_type, sha256 of the weight files, and
        their sizes and times.

    Raises:
        InputError: no weights there, or the hub cannot be reached.
    """
    path, revision = Path(name), None
    if is_hub_id(name):
        path = download(name)
        revision = path.name
    weights = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    if not weights or not is_complete(path):
        raise InputError(f"{name}: no model there (config and weights); check the path in the phase's YAML")
    config = read_yaml(next(path / name for name in CONFIGS if (path / name).exists()))  # JSON is YAML
    files = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in weights}
    unchanged = known is not None and known.get("files") == files
    return {
        "model": name,
        "path": str(path),
        "revision": revision,
        "model_type": config.get("model_type", "espnet"),
        "sha256": known["sha256"] if unchanged else _sha256(weights),
        "files": files,
    }
