"""Checkpoint files that a kill or a full disk cannot spoil: written aside, synced, renamed; the one before is kept."""

import logging
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_llmst.cli import InputError

NEWEST, PREVIOUS = "checkpoint.pth", "checkpoint.prev.pth"


def plain(value: Any, name: str = "checkpoint") -> Any:
    """The same of tensors, numbers, strings, lists, tuples and dicts only, which ``weights_only=True`` can load.

    Raises:
        TypeError: something else, named by its path.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, torch.Tensor | str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item, f"{name}.{n}") for n, item in enumerate(value))
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def write_aside(path: Path, content: Any) -> Path:
    """Write ``content`` completely to ``<path>.tmp`` and return that name.

    Raises:
        InputError: the disk is full or fails; what stands under ``path`` is untouched.
    """
    temporary = path.with_name(f"{path.name}.tmp")  # always the same name: kills do not pile up files
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        reason = _system_error(error)
        if reason is None:
            raise
        temporary.unlink(missing_ok=True)
        usable = [name for name in (NEWEST, PREVIOUS) if (path.parent / name).exists()]
        state = f"{path.parent / usable[0]} is still usable" if usable else "nothing is saved yet"
        raise InputError(
            f"{path}: cannot be written ({reason}); {state}: make room, then run the same command again"
        ) from error
    return temporary


def write_atomically(path: Path, content: Any) -> None:
    """``torch.save`` to a file that appears under its name only when it is complete on disk.

    Raises:
        InputError: see `write_aside`.
    """
    os.replace(write_aside(path, content), path)
    _sync(path.parent)


def save_checkpoint(directory: Path, state: dict) -> None:
    """Make ``state`` the newest checkpoint; the newest so far becomes the previous one.

    Raises:
        InputError: see `write_aside`.
    """
    newest = directory / NEWEST
    temporary = write_aside(newest, state)
    if newest.exists():
        os.replace(newest, directory / PREVIOUS)
    os.replace(temporary, newest)
    _sync(directory)


def part_names(place: tuple[int, int], size: int) -> list[str]:
    """File names of the processes' parts of a checkpoint after a batch of an epoch, by rank."""
    return [f"checkpoint.{place[0]}-{place[1]}.{rank}of{size}.pth" for rank in range(size)]


def remove_parts(directory: Path, places: Iterable[tuple[int, int]]) -> None:
    """Remove all parts but those of the given places."""
    kept = tuple(f"checkpoint.{epoch}-{batch}." for epoch, batch in places)
    for path in directory.glob("checkpoint.*-*.*of*.pth*"):
        if not path.name.startswith(kept):
            path.unlink()


def load_checkpoint(directory: Path) -> dict | None:
    """The newest checkpoint that is whole, on the CPU; None when there is none.

    When the newest is damaged, the previous one takes its place, with a warning.

    Raises:
        InputError: there are checkpoints, but none can be read, or another program wrote them.
    """
    newest, previous = directory / NEWEST, directory / PREVIOUS
    damage = []
    for path in (newest, previous):
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except (OSError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            damage.append(f"{path} is damaged ({str(error).splitlines()[0][:120]})")
            continue
        if path == previous:
            reason = damage[0] if damage else f"{newest} is missing"
            logging.warning(f"{reason}; training goes on from the checkpoint before it, {previous}")
            os.replace(previous, newest)  # the next save keeps it
        return state
    if damage:
        raise InputError(f"{'; '.join(damage)}; remove what is damaged to train from the beginning")
    return None


def read_checkpoint(path: Path) -> dict:
    """One checkpoint file, its check sums and those of its parts verified.

    Raises:
        InputError: it is whole, but not a checkpoint of this trainer.
        OSError, RuntimeError, EOFError, zipfile.BadZipFile: it is damaged.
    """
    _verify(path)
    state = read_verified(path)
    for name in state.get("parts", ()):
        _verify(path.with_name(name))
    return state


def _verify(path: Path) -> None:
    """Compare check sums, which torch itself does not look at."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"check sum of {broken} in {path.name}")


def read_verified(path: Path) -> dict:
    """One checkpoint file, on the CPU; raises InputError, see `read_checkpoint`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} was written by another trainer (ESPnet's own?); go on with that one, or remove the file to "
            "train from the beginning"
        ) from error


def link_atomically(link: Path, target: str) -> None:
    """A symbolic link that replaces an earlier one at once."""
    temporary = link.with_name(f"{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def _system_error(error: BaseException) -> str | None:
    """What the system said; torch raises an error of its own when a write fails in its hands."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        error = error.__cause__ or error.__context__
    return None


def _sync(directory: Path) -> None:
    """Make renames in a directory last."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
