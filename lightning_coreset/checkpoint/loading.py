"""Load the checkpoint of a pruned model without a Trainer."""

from __future__ import annotations

import inspect
import os
import zipfile
from collections.abc import Mapping
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_coreset.checkpoint.everywhere import resizable
from lightning_coreset.checkpoint.hooks import make_resizable, strictness

Model = TypeVar("Model", bound=nn.Module)
File = str | os.PathLike[str] | IO[bytes]


def load_pruned(
    cls: type[Model], path: File, *, strict: bool | None = None, weights_only: bool = True, **kwargs: Any
) -> Model:
    """Load a model, pruned or not, from a checkpoint, without a Trainer.

    The model is resizable (:func:`make_resizable`), so that it can be saved and loaded again.

    Args:
        cls: For a checkpoint of Lightning, the LightningModule's class, or for one of LightningCLI a base class of it,
            as for ``cls.load_from_checkpoint``. For a file made by ``torch.save(model.state_dict(), path)``, the class
            of any module, whose state dict says how it was pruned if :func:`make_resizable` was called on it.
        path: The file, or an open one. For a checkpoint of Lightning also a URL that Lightning can read.
        strict: Whether all names must match; by default they must, unless the LightningModule says otherwise.
        weights_only: Whether to read nothing but tensors and plain data. Reading anything else runs code in the file:
            pass ``False`` only for files that you trust.
        **kwargs: Arguments of ``cls`` beside those that a checkpoint of Lightning holds, or in their place, and those
            of ``cls.load_from_checkpoint``, such as ``map_location``.

    Raises:
        ValueError: If the file cannot be read or is no checkpoint, or its tensors cannot be those of the model.

    Example:
        >>> import tempfile
        >>> from lightning_coreset import load_pruned, make_resizable, prune
        >>> class Net(nn.Sequential):
        ...     def __init__(self, width=64):
        ...         super().__init__(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 10))
        >>> net = make_resizable(Net())
        >>> _ = prune(net, torch.randn(1, 16), 0.5)
        >>> with tempfile.TemporaryFile() as file:
        ...     torch.save(net.state_dict(), file)
        ...     _ = file.seek(0)
        ...     loaded = load_pruned(Net, file)
        >>> loaded[0]
        Linear(in_features=16, out_features=32, bias=True)
    """
    content = _peek(path, weights_only)
    load = getattr(cls, "load_from_checkpoint", None)
    if load is not None and (content is None or "state_dict" in content):
        if "weights_only" in inspect.signature(load).parameters:
            kwargs["weights_only"] = weights_only
        elif weights_only and content is None:  # an older Lightning; a local file has been read safely by now
            raise ValueError(
                f"Expected a local file, but this version of Lightning would unpickle {path!r}. Fetch it first."
            )
        with resizable():
            return load(path, strict=strict, **kwargs)

    if content is None or "state_dict" in content:
        raise ValueError(
            f"Expected the state dict of a {cls.__name__} in {path!r} but got a checkpoint of Lightning. "
            "Load it with the class of its LightningModule and take the network out of that."
        )
    model = make_resizable(cls(**kwargs))
    strict = strict is not False
    with strictness(strict):
        model.load_state_dict(content, strict=strict)
    return model


class PrunedCheckpointMixin(nn.Module):
    """A base class whose models load checkpoints of pruned models, as after :func:`make_resizable`.

    With it, plain ``Model.load_from_checkpoint(path)`` works, too.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_coreset import PrunedCheckpointMixin, prune
        >>> class Model(PrunedCheckpointMixin, pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> pruned, fresh = Model(), Model()
        >>> _ = prune(pruned.net, torch.randn(1, 16), 0.5)
        >>> fresh.load_state_dict(pruned.state_dict())
        <All keys matched successfully>
        >>> fresh.net[0]
        Linear(in_features=16, out_features=32, bias=True)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        make_resizable(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take on the sizes of the state dict and load it; see :func:`make_resizable`."""
        with strictness(strict):
            return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _peek(path: File, weights_only: bool) -> Mapping[str, Any] | None:
    """The content of a file, whose tensors are read only when they are used; ``None`` if it is remote."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": weights_only}
    try:
        if not isinstance(path, (str, os.PathLike)):
            start = path.tell()
            content = torch.load(path, **options)
            path.seek(start)
        elif not os.path.exists(path) and "://" in str(path):
            return None
        else:
            content = torch.load(path, mmap=zipfile.is_zipfile(path), **options)
    except (FileNotFoundError, PermissionError, MemoryError, ImportError):
        raise
    except Exception as error:  # a damaged pickle raises anything
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"Expected a checkpoint in {path!r} but cannot read it. Either it is damaged or cut short, or it holds "
            "objects other than tensors and plain data: these are read with weights_only=False, which runs code in the "
            f"file, so use it only if you trust the file. torch says: {reason}"
        ) from error
    states = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping) or not any(isinstance(value, Tensor) for value in states.values()):
        raise ValueError(f"Expected a state dict or a checkpoint of Lightning in {path!r} but got something else.")
    return content
