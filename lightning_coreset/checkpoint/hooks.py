"""A model that follows what it loads, by two hooks on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import nn

from lightning_coreset.checkpoint.fitting import fit_to
from lightning_coreset.checkpoint.record import KEY, Record

Model = TypeVar("Model", bound=nn.Module)

# torch does not tell its hooks whether loading is strict; who knows it says so here.
_STRICT: ContextVar[bool | None] = ContextVar("strict", default=None)


def make_resizable(model: Model) -> Model:
    """Let a model's ``state_dict`` tell how it was pruned, and its ``load_state_dict`` take checkpoints of other sizes.

    ``CoresetPruningCallback`` does this to the module it prunes. Call it yourself to load or save a pruned model
    without that callback, and before ``trainer.fit`` with a strategy that spawns processes (``"ddp_spawn"``,
    notebooks), where the main process loads what the others trained.

    From then on ``state_dict`` says in its metadata how the model was pruned, such as to how many heads, which shapes
    do not tell; that of a model that is not pruned is as before. ``load_state_dict`` first checks that the tensors can
    be those of this model, pruned or not, then gives each ``Parameter``, which stays the same object, the shape that
    is to be loaded, smaller or larger. Where no size differs it does nothing. Copies and pickles of the model do the
    same. Where sizes differ all names must match, unless ``model.strict_loading`` is ``False``, which LightningModules
    have for it.

    A dict of tensors without metadata (``dict(state_dict)``, safetensors) works as well where shapes tell all: the
    channels of layers, but not the heads of an attention.

    Args:
        model: Any module, pruned already or not; a compiled one stands for the module inside. Calling this twice is no
            error.

    Returns:
        The model itself.

    Raises:
        ValueError: In ``load_state_dict``, if sizes differ and the tensors cannot be those of this model: other names,
            a shape beyond the original model's, shapes that do not go together. The model is unchanged then.

    Example:
        >>> import io
        >>> import torch
        >>> from lightning_coreset import make_resizable, prune
        >>> def build():
        ...     return make_resizable(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)))
        >>> model, file = build(), io.BytesIO()
        >>> _ = prune(model, torch.randn(1, 16), 0.5)
        >>> torch.save(model.state_dict(), file)
        >>> _ = file.seek(0)
        >>> fresh = build()
        >>> fresh.load_state_dict(torch.load(file, weights_only=True))
        <All keys matched successfully>
        >>> fresh[0]
        Linear(in_features=16, out_features=32, bias=True)
    """
    if not is_resizable(model):
        inner = getattr(model, "_orig_mod", model)
        inner.register_state_dict_post_hook(_write_record)
        inner.register_load_state_dict_pre_hook(_fit)
    return model


def is_resizable(model: nn.Module) -> bool:
    """Whether :func:`make_resizable` was called on a model, or on what it is a copy of."""
    # Private, but a flag of our own would not tell whether the hooks are still there.
    return _write_record in getattr(model, "_orig_mod", model)._state_dict_hooks.values()


@contextmanager
def strictness(strict: bool) -> Iterator[None]:
    """Have models that are loaded in the body know whether all names must match."""
    token = _STRICT.set(strict)
    try:
        yield
    finally:
        _STRICT.reset(token)


# Functions of the file, not methods: these would drag their object along when the model is copied or pickled.


def _write_record(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    record = Record.of(module)
    if record is not None:
        local_metadata[KEY] = record.to_dict()


def _fit(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: object
) -> None:
    record = local_metadata.get(KEY)
    state = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    strict = _STRICT.get()
    if strict is None:
        strict = getattr(module, "strict_loading", True)  # what the Trainer goes by
    fit_to(module, state, record=None if record is None else Record.from_dict(record), strict=strict)
