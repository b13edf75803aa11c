"""Discrete speech units: k-means over the states of a speech encoder, on disk, and the nearest unit.

A directory of units holds ``centroids.safetensors`` (tensor ``centroids``, K x D) and ``config.json`` with the
model, its layer and how the units were made.

Shapes: T frames, D width, K units, N frames of all utterances, S samples.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from espnet_llmst.cli import InputError, read_yaml
from espnet_llmst.datadir.audio import AudioError, open_audio, read_mono
from espnet_llmst.datadir.kaldi import read_table

SAMPLE_RATE = 16000
CENTROIDS, SETTINGS = "centroids.safetensors", "config.json"


def choose_utterances(data_dirs: list[Path], hours: float, seed: int) -> list[str]:
    """Audio of random utterances until ``hours`` are reached (all, when there is less), each recording once.

    Raises:
        InputError: a directory is not formatted (``wav.scp`` and ``utt2num_samples``) or there is no audio.
    """
    samples: dict[str, int] = {}
    for data_dir in data_dirs:
        for name in ("wav.scp", "utt2num_samples"):
            if not (data_dir / name).is_file():
                raise InputError(f"{data_dir}/{name} is missing: give formatted sets, as stage 3 leaves in dump/raw")
        lengths = read_table(data_dir / "utt2num_samples")
        samples |= {path: int(lengths[utt]) for utt, path in read_table(data_dir / "wav.scp").items()}
    paths = sorted(samples)
    random.Random(seed).shuffle(paths)
    chosen, wanted = [], hours * 3600 * SAMPLE_RATE
    for path in paths:
        if wanted <= 0:
            break
        chosen.append(path)
        wanted -= samples[path]
    if not chosen:
        raise InputError(
            f"{' '.join(map(str, data_dirs))}: no audio chosen; give sets with utterances, --hours above 0"
        )
    return chosen


def read_speech(path: str) -> np.ndarray:
    """The samples (S,) of a formatted recording.

    Raises:
        InputError: it cannot be read, or is not at 16 kHz.
    """
    try:
        with open_audio(path) as file:
            if file.samplerate != SAMPLE_RATE:
                raise InputError(f"{path}: {file.samplerate} Hz; give sets formatted to 16 kHz, as stage 3 makes")
            return read_mono(file)
    except AudioError as error:
        raise InputError(f"{path}: {error}; run stage 3 again") from error


@torch.inference_mode()
def gather_states(encoder: Callable, paths: list[str], device: str = "cpu") -> np.ndarray:
    """States (N, D) of all utterances, float32; an hour at 50 frames a second and width 768 takes 0.55 GB.

    Args:
        encoder: waveforms (1, S) and their lengths to states (1, T, D) and more, as every encoder of ours.
    """
    states = []
    for path in tqdm(paths, desc="states", disable=None):
        wave_1S = torch.from_numpy(read_speech(path)).to(device)[None]
        states_1TD = encoder(wave_1S, torch.tensor([wave_1S.size(1)], device=device))[0]
        states.append(states_1TD[0].float().cpu().numpy())
    return np.concatenate(states)


def fit_units(states_ND: np.ndarray, num_units: int, seed: int) -> tuple[torch.Tensor, float]:
    """Centroids (K, D) by mini-batch k-means, and the inertia per frame (mean squared distance).

    Raises:
        InputError: there are fewer frames than units.
    """
    from sklearn.cluster import MiniBatchKMeans  # imported here: it takes seconds

    if len(states_ND) < num_units:
        raise InputError(f"--num_units {num_units}: there are only {len(states_ND)} frames; take fewer or more hours")
    kmeans = MiniBatchKMeans(num_units, batch_size=10000, n_init=5, max_no_improvement=50, random_state=seed)
    kmeans.fit(states_ND)
    return torch.from_numpy(kmeans.cluster_centers_.astype(np.float32)), float(kmeans.inertia_ / len(states_ND))


def nearest_units(states_ND: torch.Tensor, centroids_KD: torch.Tensor) -> torch.Tensor:
    """The nearest centroid's number for each state; any leading axes."""
    return torch.cdist(states_ND, centroids_KD).argmin(-1)


def write_units(directory: Path, centroids_KD: torch.Tensor, settings: dict) -> None:
    """Put a directory of units in place, complete from the start.

    Args:
        settings: ``model`` and ``layer`` of the states, and what else is worth knowing.
    """
    unfinished = directory.with_name(f"{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({"centroids": centroids_KD.contiguous()}, unfinished / CENTROIDS)
    settings = {"model_type": "kmeans", "units": len(centroids_KD), "width": centroids_KD.size(1), **settings}
    (unfinished / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(unfinished, directory)


def read_units(directory: str | Path) -> tuple[torch.Tensor, dict]:
    """Centroids (K, D) and settings of a directory that ``write_units`` made.

    Raises:
        InputError: the files are not there, or hold no centroids.
    """
    for name in (CENTROIDS, SETTINGS):
        if not Path(directory, name).is_file():
            raise InputError(f"{directory}/{name} is missing: make the units by llmst_kmeans --out_dir {directory}")
    tensors, settings = load_file(Path(directory, CENTROIDS)), read_yaml(Path(directory, SETTINGS))
    if "centroids" not in tensors or not {"model", "layer"} <= set(settings):
        raise InputError(f"{directory}: not a directory of units; make it by llmst_kmeans --out_dir {directory}")
    return tensors["centroids"], settings
