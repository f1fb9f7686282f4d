"""Load pruned models where others build them: every module follows the sizes of what it loads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from lightning_coreset.checkpoint.hooks import make_resizable, strictness

_LOCK = threading.Lock()
_blocks = 0
"""So many blocks are entered, of all threads."""
_LOADED: ContextVar[nn.Module | None] = ContextVar("loaded", default=None)
_TORCHS_OWN = nn.Module.load_state_dict
_usual: Callable[..., Any] = nn.Module.load_state_dict
"""What loads outside of all blocks."""


@contextmanager
def resizable() -> Iterator[None]:
    """In the block, every module takes on the sizes of the state dict that it loads.

    For frameworks that build a model and load its checkpoint in one call, where nobody could call
    :func:`make_resizable` in between: their own ``load``, ``load_from_checkpoint`` and ``from_pretrained``-like
    functions read pruned models then, as do ``trainer.test(ckpt_path=...)`` and ``Trainer.fit(ckpt_path=...)``. What
    was loaded stays resizable. A module that is given tensors of its own sizes is loaded as ever.

    It holds for all threads of the process as long as any block lasts.

    Raises:
        ValueError: In ``load_state_dict`` within the block, as :func:`make_resizable` says: if sizes differ and the
            tensors cannot be those of that module. It is unchanged then.

    Example:
        >>> import lightning_coreset
        >>> def load_elsewhere(state):  # a function of some framework
        ...     model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        ...     model.load_state_dict(state)
        ...     return model
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> _ = lightning_coreset.prune(model, torch.randn(1, 16), 0.5)
        >>> with lightning_coreset.resizable():
        ...     loaded = load_elsewhere(model.state_dict())
        >>> loaded[0]
        Linear(in_features=16, out_features=32, bias=True)
    """
    global _blocks, _usual
    with _LOCK:
        _blocks += 1
        if _blocks == 1 and nn.Module.load_state_dict is not _load_state_dict:
            _usual = nn.Module.load_state_dict
            nn.Module.load_state_dict = _load_state_dict  # type: ignore[method-assign]
    try:
        yield
    finally:
        with _LOCK:
            _blocks -= 1
            if _blocks == 0 and nn.Module.load_state_dict is _load_state_dict:
                nn.Module.load_state_dict = _usual  # type: ignore[method-assign]


def _load_state_dict(
    self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, **options: Any
) -> Any:
    if _LOADED.get() is self:  # another library has wrapped this function, and is what was there before, too
        return _TORCHS_OWN(self, state_dict, strict, assign, **options)
    token = _LOADED.set(self)
    try:
        if _blocks == 0 or isinstance(self, torch.jit.ScriptModule):  # whose sizes are part of its code
            return _usual(self, state_dict, strict, assign, **options)
        with strictness(strict):
            return _usual(make_resizable(self), state_dict, strict, assign, **options)
    finally:
        _LOADED.reset(token)
