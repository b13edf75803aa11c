"""States of a frozen encoder kept on disk: computed in the first epoch, read in all later epochs and phases.

An utterance is known by its samples and a folder by the encoder's weights and settings, so nothing can be stale.

Shapes: B batch, S samples, T encoder frames, D width.
"""

import os
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence
from transformers.feature_extraction_utils import FeatureExtractionMixin

from espnet_llmst.cli import InputError

VERSION = 2  # of what names a folder
SHARD_BYTES = 128 * 2**20  # written at a time; a kill loses no more than this


class StateCache:
    """A folder of safetensors files, each with the states (T, D) of some utterances.

    Every process adds files of its own, under names that no other uses; those that are there when it starts are read.

    Args:
        folder: holds one folder per encoder.
        encoder: frozen; its weights and settings name the folder.
        settings: what else the states depend on, e.g. the precision.
    """

    def __init__(self, folder: str | Path, encoder: torch.nn.Module, settings: str = "") -> None:
        self.folder = Path(folder) / fingerprint(encoder, settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt")
            self.files.update(dict.fromkeys(file.keys(), file))
        self.fresh: dict[str, torch.Tensor] = {}
        self.fresh_bytes = 0

    def __call__(self, encoder, speech_BS: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms to states (B, T, D) and lengths (B,): a batch that is not all there is encoded as a whole."""
        keys = [_key(row[:length]) for row, length in zip(speech_BS.cpu(), lengths_B.tolist(), strict=True)]
        if not all(key in self.fresh or key in self.files for key in keys):
            states_BTD, frames_B, _ = encoder(speech_BS, lengths_B)
            self._add(keys, states_BTD, frames_B)
            return states_BTD, frames_B
        rows = [self.fresh[key] if key in self.fresh else self.files[key].get_tensor(key) for key in keys]
        frames_B = torch.tensor([len(row) for row in rows], device=speech_BS.device)
        return pad_sequence(rows, batch_first=True).to(speech_BS.device), frames_B

    def _add(self, keys: list[str], states_BTD: torch.Tensor, frames_B: torch.Tensor) -> None:
        for key, states_TD, frames in zip(keys, states_BTD, frames_B.tolist(), strict=True):
            if key not in self.files:
                self.fresh[key] = states_TD[:frames].detach().cpu().clone()
                self.fresh_bytes += self.fresh[key].nbytes
        if self.fresh_bytes > SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was computed since the last time."""
        if not self.fresh:
            return
        path = self.folder / f"{os.uname().nodename}.{os.getpid()}.{len(self.files)}.safetensors"
        unfinished = path.with_suffix(".tmp")
        try:
            save_file(self.fresh, unfinished)
        except (OSError, SafetensorError) as error:
            unfinished.unlink(missing_ok=True)
            raise InputError(
                f"{self.folder}: states cannot be written ({error}); make room, or take model_conf.cache_encoder away, "
                "and run the same command again"
            ) from error
        os.replace(unfinished, path)
        self.files.update(dict.fromkeys(self.fresh, safe_open(path, framework="pt")))
        self.fresh, self.fresh_bytes = {}, 0


def fingerprint(encoder: torch.nn.Module, settings: str = "") -> str:
    """A name that changes with the encoder's weights, its plain settings and ``settings``."""
    digest = blake2b(f"{VERSION} {settings}".encode(), digest_size=12)
    for module in encoder.modules():
        plain = {k: repr(v) for k, v in vars(module).items() if _is_plain(v) and k != "training"}
        plain |= {k: v.to_json_string() for k, v in vars(module).items() if isinstance(v, FeatureExtractionMixin)}
        digest.update(repr((type(module).__name__, sorted(plain.items()))).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    """A setting: a number or text, or a collection of such (LoRA's scaling, a convolution's stride)."""
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return (
        all(map(_is_plain, value)) if isinstance(value, tuple | list) else isinstance(value, bool | int | float | str)
    )


def _key(samples_S: torch.Tensor) -> str:
    return blake2b(samples_S.contiguous().view(torch.uint8).numpy(), digest_size=16).hexdigest()
