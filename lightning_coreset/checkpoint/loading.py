"""Load the checkpoint of a pruned model without a Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from lightning_coreset.checkpoint.everywhere import resizable
from lightning_coreset.checkpoint.hooks import make_resizable, strictness
from lightning_coreset.checkpoint.reading import File, is_safetensors, read_checkpoint
from lightning_coreset.checkpoint.resize import with_aliases

Model = TypeVar("Model", bound=nn.Module)


def load_pruned(
    cls: type[Model], path: File, *, strict: bool | None = None, weights_only: bool = True, **kwargs: Any
) -> Model:
    """Load a model, pruned or not, from a checkpoint, without a Trainer.

    The model is resizable (:func:`make_resizable`), so that it can be saved and loaded again.

    Args:
        cls: For a checkpoint of Lightning, the LightningModule's class, or for one of LightningCLI a base class of it,
            as for ``cls.load_from_checkpoint``. For a file made by ``torch.save(model.state_dict(), path)``, the class
            of any module. Also for a file of safetensors, saved with ``record="tensor"``
            (:func:`make_resizable`) where sizes alone do not tell how the model was pruned.
        path: The file, or an open one. For a checkpoint of Lightning also a URL that Lightning can read.
        strict: Whether all names must match; by default they must, unless the LightningModule says otherwise.
        weights_only: As for ``torch.load`` and Lightning's ``load_from_checkpoint``: whether to read nothing but
            tensors and plain data. With ``False`` hyperparameters may be any objects, such as modules, dataclasses or
            an OmegaConf ``DictConfig``; reading them runs code that is in the file, so only do this with files that you
            trust.
        **kwargs: Arguments of ``cls`` beside those that a checkpoint of Lightning holds, or in their place, and those
            of ``cls.load_from_checkpoint``, such as ``map_location``.

    Raises:
        ValueError: If the file cannot be read, holds objects that may not be read, or is no checkpoint, or if its
            tensors cannot be those of the model.

    Example:
        >>> import tempfile
        >>> import torch
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
    if not callable(cls) or isinstance(cls, nn.Module):
        raise ValueError(
            f"Expected the class of the model, then the file, but got {type(cls).__name__} for the class. Write "
            "load_pruned(Model, path)."
        )
    content = read_checkpoint(path, weights_only)
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
    if is_safetensors(path):  # which hold a tied tensor once
        content = with_aliases(model, content)
    with strictness(strict):
        model.load_state_dict(content, strict=strict)
    return model


class PrunedCheckpointMixin(nn.Module):
    """A base class whose models load checkpoints of pruned models, as after :func:`make_resizable`.

    With it, plain ``Model.load_from_checkpoint(path)`` works, too.

    Example:
        >>> import lightning.pytorch as pl
        >>> import torch
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
