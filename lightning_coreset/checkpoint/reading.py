"""Read files with tensors, and say what is in the way where that fails."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any, TypeAlias

import torch
from torch import Tensor

from lightning_coreset.qualified_names import listed

File: TypeAlias = str | os.PathLike[str] | IO[bytes]


def read_checkpoint(path: File, weights_only: bool) -> Mapping[str, Any] | None:
    """The content of a file, whose tensors are read only when they are used; ``None`` if it is remote.

    Raises:
        ValueError: If it cannot be read, or holds no tensors.
    """
    try:
        content = _read(path, weights_only)
    except (FileNotFoundError, PermissionError, MemoryError, ImportError):
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise _unreadable(path, weights_only, error) from error
    if content is None:
        return None
    states = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping) or not any(isinstance(value, Tensor) for value in states.values()):
        raise ValueError(f"Expected a state dict or a checkpoint of Lightning in {path!r} but got something else.")
    return content


def is_safetensors(path: File) -> bool:
    """Whether this is the name of a file of safetensors."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).endswith(".safetensors")


def _read(path: File, weights_only: bool) -> Any:
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": weights_only}
    if not isinstance(path, (str, os.PathLike)):
        start = path.tell()
        try:
            return torch.load(path, **options)
        finally:
            path.seek(start)
    if not os.path.exists(path) and "://" in str(path):
        return None
    if is_safetensors(path):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, mmap=zipfile.is_zipfile(path), **options)


def _unreadable(path: File, weights_only: bool, error: Exception) -> ValueError:
    objects = _objects(path) if weights_only else []
    if objects:
        return ValueError(
            f"Expected tensors and plain data in {path!r} but it holds objects: {listed(objects)}. Reading these runs "
            "code that is in the file: if you trust it, pass weights_only=False. Or allow these classes alone, with "
            "torch.serialization.safe_globals([...]), or leave such hyperparameters out, with "
            "save_hyperparameters(ignore=[...]), and pass them as arguments."
        )
    return ValueError(
        f"Expected a checkpoint in {path!r} but cannot read it: it is damaged or cut short, or refers to what is not "
        f"there. torch says: {str(error).strip().partition(chr(10))[0]}"
    )


def _objects(path: File) -> list[str]:
    """The classes and functions that a file refers to and that are not known to be harmless; nothing of it is run."""
    start = None if isinstance(path, (str, os.PathLike)) else path.tell()
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it is damaged, or written in a form from before PyTorch 1.6
        return []
    finally:
        if start is not None:
            path.seek(start)  # type: ignore[union-attr]
