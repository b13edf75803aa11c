"""What a result was made from, by content: hashes that are kept with it, and whether anything has changed since.

A file is read whole, as changing its time changes nothing. One above `LARGE` bytes (a checkpoint of a full
fine-tuning has 26 GB), and the audio that a table of speech names, are read once: the hash stands in
``<file>.sha256`` with the sizes and times that it is good for.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from espnet_llmst.datadir.kaldi import atomic_write

LARGE = 1 << 28
BLOCK = 1 << 24
SPEECH = ("wav.scp", "feats.scp")
MODEL_FILES = ("*.safetensors", "*.bin", "*.pth", "*.npz", "config.json", "config.yaml")


def content_hash(path: str | Path, recipe: str | Path = ".") -> str | None:
    """SHA-256 of a file, of a table with the speech it names, or of a model directory's weights and configuration.

    Args:
        path: of a file or directory.
        recipe: where relative paths in a table start.

    Returns:
        None where there is no such thing, or not all of it.
    """
    path = Path(path)
    if path.name in SPEECH and path.is_file():
        return _speech_hash(path, Path(recipe))
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
    return _kept(path, f"{size} {time}", lambda: _digest(_blocks(path)))


def _speech_hash(table: Path, recipe: Path) -> str | None:
    """Of a table and of every file that it names; archives are named with a position."""
    named = {line.split(maxsplit=1)[1] for line in table.read_text(encoding="utf-8").splitlines() if line.strip()}
    files = [table, *sorted({recipe / re.sub(r":[0-9]+$", "", name.strip()) for name in named})]
    try:
        stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, files)]
    except OSError:
        return None
    known = hashlib.sha256(repr(stats).encode()).hexdigest()
    return _kept(table, known, lambda: _digest(block for file in files for block in _blocks(file)))


def _kept(path: Path, known: str, compute: Callable[[], str]) -> str:
    """The hash in ``<path>.sha256`` if it is good for what is ``known``, else computed and written there."""
    kept = path.with_name(path.name + ".sha256")
    if kept.is_file() and kept.read_text(encoding="utf-8").split(" ", 1)[1:] == [known]:
        return kept.read_text(encoding="utf-8").split(" ", 1)[0]
    found = compute()
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
        if content_hash(Path(recipe, path), recipe) not in (content, None):
            return path
    return None
