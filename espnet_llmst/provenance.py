"""What a result was made from, by content: hashes that are kept with it, and whether anything has changed since.

A file is read whole, as changing its time changes nothing. One above `LARGE` bytes (a checkpoint of a full
fine-tuning has 26 GB) is read once: its hash stands in ``<file>.sha256`` with the size and time that it is good for.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from espnet_llmst.datadir.kaldi import atomic_write

LARGE = 1 << 28
BLOCK = 1 << 24
MODEL_FILES = ("*.safetensors", "*.bin", "*.pth", "*.npz", "config.json", "config.yaml")


def content_hash(path: str | Path) -> str | None:
    """SHA-256 of a file, or of a model directory's weights and configuration; None where there is neither."""
    path = Path(path)
    if path.is_dir():
        files = sorted({file for pattern in MODEL_FILES for file in path.glob(pattern)})
        return _digest(f"{file.name} {content_hash(file)}\n".encode() for file in files)
    if not path.is_file():
        return None
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@cache  # a checkpoint is an input of every set that it decodes
def _file_hash(path: Path, size: int, time: int) -> str:
    if size < LARGE:
        return _digest(_blocks(path))
    kept, known = path.with_name(path.name + ".sha256"), f"{size} {time}"
    if kept.is_file() and kept.read_text(encoding="utf-8").split(" ", 1)[1:] == [known]:
        return kept.read_text(encoding="utf-8").split(" ", 1)[0]
    found = _digest(_blocks(path))
    if os.access(path.parent, os.W_OK):
        with atomic_write(kept) as file:
            file.write(f"{found} {known}")
    return found


def _digest(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterable[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(BLOCK), b"")


def inputs_of(paths: Iterable[str | Path | None]) -> dict[str, str]:
    """Hashes of what a result is made from, by path; what is not there (a model named as on the hub) has none."""
    found = {str(path): content_hash(path) for path in paths if path}
    return {path: content for path, content in found.items() if content}


def changed_input(inputs: Mapping[str, str], recipe: str | Path = ".") -> str | None:
    """The first input that has another content now. What is gone cannot have changed: old checkpoints are deleted."""
    for path, content in inputs.items():
        if content_hash(Path(recipe, path)) not in (content, None):
            return path
    return None
