"""Hooks by which a model says how it was pruned and takes on the sizes of what it loads, and how to remove them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from lightning_coreset._arguments import check_is_module
from lightning_coreset._compat import metadata_of, state_dict_hooks, without_compile_wrapper
from lightning_coreset.checkpoint.metadata import KEY, PruningMetadata
from lightning_coreset.checkpoint.record_tensor import combined, pop_records, record_entry
from lightning_coreset.checkpoint.resize import entries_and_record, resize_to_state_dict, with_aliases
from lightning_coreset.module_specs import NarrowAttention
from lightning_coreset.surgery import forget_original_shapes, keep_record

Model = TypeVar("Model", bound=nn.Module)
RecordForm = Literal["metadata", "tensor"]

# torch does not pass to its hooks whether loading is strict; a caller that knows sets it here.
_STRICT: ContextVar[bool | None] = ContextVar("strict", default=None)


def make_resizable(model: Model, *, record: RecordForm = "metadata") -> Model:
    """Let a model's ``state_dict`` say how it was pruned, and its ``load_state_dict`` accept other sizes.

    ``CoresetPruningCallback`` does this to the module it prunes. Call it yourself to load or save a pruned model
    without that callback, and before ``trainer.fit`` with a strategy that spawns processes (``"ddp_spawn"``,
    notebooks), where the main process loads what the others trained.

    From then on the metadata of ``state_dict`` says how the model was pruned, including what shapes do not show, such
    as numbers of heads; that of a model that is not pruned is unchanged. ``load_state_dict`` first checks that the
    tensors can be those of this model, pruned or not. Then it gives each ``Parameter``, which stays the same object,
    the shape that is to be loaded, smaller or larger. Where no size differs it does nothing. Copies and pickles of the
    model do the same. Where sizes differ all names must match, unless ``model.strict_loading`` is ``False``, which is
    the attribute of LightningModules for this.

    Metadata is lost where tensors go into a plain dict: ``dict(state_dict)``, other names, safetensors. Such a dict is
    loaded where all sizes follow from shapes: the channels of layers, but not, for example, the heads of an attention.
    What does not follow is an error. ``record="tensor"`` keeps the record in these cases, too.

    Args:
        model: Any module, pruned already or not; of a compiled one, the module inside is meant. Calling this twice is
            no error.
        record: Where ``state_dict`` of a pruned model says how it was pruned. ``"metadata"``: only in the metadata of
            the dict, so that its entries are those of any model of these sizes. ``"tensor"``: also in one more entry,
            a small tensor of bytes named ``lightning_coreset``, which resizable models read and others report as an
            unexpected key.

    Returns:
        The model itself.

    Raises:
        ValueError: If ``record`` is something else. In ``load_state_dict``, if sizes differ and the tensors cannot be
            those of this model: other names, a shape beyond the original model's, shapes that do not go together; or
            if numbers that shapes do not tell may have changed and the record is lost. The model is unchanged then.

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
    if record not in get_args(RecordForm):
        raise ValueError(f"Expected record to be one of {get_args(RecordForm)} but got {record!r}.")
    check_is_module(model)
    inner = without_compile_wrapper(model)
    if not is_resizable(model):
        inner.register_state_dict_post_hook(_write_record)
        inner.register_load_state_dict_pre_hook(_fit)
        keep_record(inner)
    if record == "tensor" and not _writes(inner, _write_tensor):
        inner.register_state_dict_post_hook(_write_tensor)
    return model


def make_plain(model: Model) -> Model:
    """Remove everything that this package put on a model: what is left is an ordinary, smaller model.

    For ``torch.save(model)`` of a whole model that is to be loaded where this package is not installed. Weights alone,
    and exported models (``torch.export``, ONNX), never need it. It undoes :func:`make_resizable`, and what the model
    was before pruning is forgotten: from now on its ``state_dict`` does not say how it was pruned, and it loads
    checkpoints of its own sizes only. So do this when training is over, or to a copy.

    An ``nn.MultiheadAttention`` that lost heads or width is the one module whose code is in this package: a pickle of
    it needs the package all the same, about which a warning tells.

    Args:
        model: Any module, pruned or not, with its submodules. Calling this twice is no error.

    Returns:
        The model itself, with the same tensors.

    Example:
        >>> import io
        >>> import torch
        >>> from lightning_coreset import make_plain, prune
        >>> model, file = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)), io.BytesIO()
        >>> _ = prune(model, torch.randn(1, 16), 0.5)
        >>> torch.save(make_plain(model), file)
        >>> b"lightning_coreset" in file.getvalue()
        False
    """
    check_is_module(model)
    narrow = [path for path, module in model.named_modules() if isinstance(module, NarrowAttention)]
    if narrow:
        warnings.warn(
            f"The pruned nn.MultiheadAttention {narrow[0]!r} runs code of lightning_coreset, so a pickle of the whole "
            "model needs the package where it is loaded. Its weights alone and its exports do not.",
            stacklevel=2,
        )
    for module in model.modules():
        for hooks in state_dict_hooks(module):
            for key, hook in list(hooks.items()):
                if getattr(hook, "hook", hook) in (_write_record, _write_tensor, _write_item, _fit):
                    del hooks[key]
    forget_original_shapes(model)
    return model


def is_resizable(model: nn.Module) -> bool:
    """Whether :func:`make_resizable` was called on a model, or on what it is a copy of."""
    # A flag of our own would not show whether the hooks are still there.
    return _writes(without_compile_wrapper(model), _write_record)


def _writes(model: nn.Module, hook: Callable[..., None]) -> bool:
    return hook in state_dict_hooks(model)[0].values()


def store_metadata_as_item(copy: Model) -> Model:
    """Let the state dict of a model that wraps this resizable one hold its record as a tensor, too, if it is pruned.

    For the copies that Lightning's ``WeightAveraging`` keeps: it copies the items into a plain dict, which has no
    metadata, and saves that as the model's. A resizable model that loads the tensor reads it as its metadata.
    """
    inner = without_compile_wrapper(copy)
    if not _writes(inner, _write_item):
        inner.register_state_dict_post_hook(_write_item)
    return copy


def follow_sizes(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Give a model the sizes of a state dict that it is about to load, where names that are missing do not matter.

    Raises:
        ValueError: If the tensors cannot be those of this model, as in ``load_state_dict``. It is unchanged then.
    """
    state, metadata = entries_and_record(state_dict)
    resize_to_state_dict(model, with_aliases(model, state), metadata=metadata, strict=False)


@contextmanager
def strictness(strict: bool) -> Iterator[None]:
    """Tell models that are loaded in the block whether all names must match."""
    token = _STRICT.set(strict)
    try:
        yield
    finally:
        _STRICT.reset(token)


# Functions of the module, not methods, since a method would take its object along when the model is copied or pickled.
# A pickled model refers to them by these names: do not rename them.


def _write_record(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    metadata = PruningMetadata.of(module)
    if metadata is not None:
        local_metadata[KEY] = metadata.to_dict()


def _write_tensor(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    entry = record_entry(module)
    if entry is not None:
        state_dict[prefix + entry[0]] = entry[1]


def _write_item(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    if prefix:  # in a wrapper's state dict only: the copy's own has metadata
        _write_tensor(module, state_dict, prefix, local_metadata)


def _fit(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *_: object
) -> None:
    path = prefix.removesuffix(".")
    own = PruningMetadata.read({**metadata_of(state_dict), path: local_metadata}, path)
    metadata = pop_records(state_dict, prefix)  # out of torch's own copy of the dict
    if own is not None:
        metadata = own if metadata is None else combined(own, metadata)
    state = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    told = _STRICT.get()
    if told is not True:  # safetensors' `load_model` leaves all names but one of a tied tensor to the others
        state = with_aliases(module, state)
    strict = getattr(module, "strict_loading", True) if told is None else told  # as the Trainer does
    resize_to_state_dict(module, state, metadata=metadata, strict=strict)
