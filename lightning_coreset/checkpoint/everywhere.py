"""Load pruned models where others build them: every module follows the sizes of what it loads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from types import FunctionType
from typing import Any

import torch
from torch import nn

from lightning_coreset.checkpoint.hooks import follow_sizes, make_resizable, strictness

_LOCK = threading.Lock()
_blocks = 0
"""So many blocks are entered, of all threads."""
_LOADED: ContextVar[nn.Module | None] = ContextVar("loaded", default=None)
_TORCHS_OWN = nn.Module.load_state_dict
_usual: Callable[..., Any] = nn.Module.load_state_dict
"""What loads outside of all blocks."""
_own: dict[type[nn.Module], tuple[Any, Any]] = {}
"""Classes with a ``load_state_dict`` of their own, with it and with what is in its place in a block."""


@contextmanager
def resizable() -> Iterator[None]:
    """In the block, every module takes on the sizes of the state dict that it loads.

    For frameworks that build a model and load its checkpoint in one call, where nobody could call
    :func:`make_resizable` in between: their own ``load``, ``load_from_checkpoint`` and ``from_pretrained``-like
    functions read pruned models then, as do ``trainer.test(ckpt_path=...)`` and ``Trainer.fit(ckpt_path=...)``. Not
    that of Hugging Face's transformers, which does not call ``load_state_dict``: for it there is
    :func:`~lightning_coreset.huggingface.load_pretrained`. What
    was loaded stays resizable. Where a class drops tensors of other sizes in a ``load_state_dict`` of its own, it gets
    the sizes before that. A module that is given tensors of its own sizes is loaded as ever.

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
        if _blocks == 1:
            _wrap_own()
    try:
        yield
    finally:
        with _LOCK:
            _blocks -= 1
            if _blocks == 0 and nn.Module.load_state_dict is _load_state_dict:
                nn.Module.load_state_dict = _usual  # type: ignore[method-assign]
            if _blocks == 0:
                _unwrap_own()


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


def _wrap_own() -> None:
    """Let the classes that load in their own way follow sizes before they look at them: some drop what does not fit."""
    for kind in _subclasses(nn.Module):
        own = vars(kind).get("load_state_dict")
        if isinstance(own, FunctionType) and not kind.__module__.startswith("torch."):
            _own[kind] = own, _following(own)
            kind.load_state_dict = _own[kind][1]  # type: ignore[method-assign]


def _unwrap_own() -> None:
    for kind, (own, following) in _own.items():
        if vars(kind).get("load_state_dict") is following:
            kind.load_state_dict = own  # type: ignore[method-assign]
    _own.clear()


def _following(own: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(own)
    def load_state_dict(self: nn.Module, state_dict: Any, *args: Any, **options: Any) -> Any:
        if _blocks > 0 and _LOADED.get() is not self and isinstance(state_dict, Mapping):
            with suppress(ValueError):  # of other names, which it may translate: then sizes are followed after that
                follow_sizes(make_resizable(self), state_dict)
        return own(self, state_dict, *args, **options)

    return load_state_dict


def _subclasses(kind: type[nn.Module]) -> set[type[nn.Module]]:
    found, waiting = set[type[nn.Module]](), [kind]
    while waiting:
        new = set(waiting.pop().__subclasses__()) - found
        found |= new
        waiting += new
    return found
