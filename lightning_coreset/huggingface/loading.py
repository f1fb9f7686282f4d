"""Load pruned models of Hugging Face transformers from what ``save_pretrained`` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_coreset._compat import INITIALISE_WEIGHTS, non_persistent_buffers
from lightning_coreset.checkpoint import inferred_sizes, make_resizable
from lightning_coreset.huggingface.building import Builder, adopt_fields, config_sizes, with_fields
from lightning_coreset.huggingface.record import ConfigRecord, unfolded
from lightning_coreset.surgery import ModelShapes, original_shapes, resize

# Where a folder is found; the rest of the arguments only concern the model.
_SOURCE = "cache_dir force_download local_files_only proxies revision subfolder token trust_remote_code".split()


def load_pretrained(cls: Any, name: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a model of Hugging Face transformers, pruned or not, from what ``save_pretrained`` wrote.

    For a pruned model, :func:`update_config` has to be called before it is saved. It is built at its original size,
    takes on its sizes, and is then loaded by ``cls.from_pretrained``. It is resizable
    (:func:`~lightning_coreset.make_resizable`), and can be pruned, saved and loaded again.

    Args:
        cls: The model's class, or an Auto class of it such as ``AutoModelForCausalLM``.
        name: A folder, or a name on the Hub.
        **kwargs: Arguments of ``cls.from_pretrained``, such as ``dtype`` or ``device_map``; not those that change the
            config of a pruned model, such as ``num_labels``.

    Returns:
        The model, in eval mode, as ``from_pretrained`` returns it.

    Raises:
        ValueError: If a pruned model is of another class, or its config says nothing that can be read.

    Example:
        >>> from lightning_coreset.huggingface import load_pretrained
        >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
        >>> model = load_pretrained(AutoModelForCausalLM, "pruned")  # doctest: +SKIP
    """
    import transformers

    source = {key: kwargs[key] for key in _SOURCE if key in kwargs}
    config = transformers.AutoConfig.from_pretrained(name, **source)
    record = ConfigRecord.of(config)
    if record is None:
        return cls.from_pretrained(name, **kwargs)
    cls = _class_of(cls, record.class_name)
    original = with_fields(config, record.fields)
    model = _resized(cls, record).from_pretrained(name, config=original, **kwargs)
    model.__class__ = cls
    _finish(model, config, record)
    return make_resizable(model)


def _class_of(cls: Any, name: str) -> Any:
    """The class of a pruned model, which is not an Auto class."""
    import transformers

    if not issubclass(cls, nn.Module):
        cls = getattr(transformers, name, cls)
    if cls.__name__ != name:
        raise ValueError(
            f"Expected the class of a pruned {name} but got {cls.__name__}. Load it with its own class, and take the "
            "part that you need out of the model."
        )
    return cls


def _resized(cls: Any, record: ConfigRecord) -> Any:
    """A class whose instances have the shapes of a pruned model as soon as they are made.

    ``from_pretrained`` makes the instance and loads it in one call: this is the only place in between.
    """

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        present = ModelShapes.of(self)
        shapes = unfolded(record.pruned.shapes, present.shapes)
        # Others are computed anew when the model is loaded, at their original size.
        resize(self, ModelShapes({name: shape for name, shape in shapes.items() if name not in present.constants}))
        for module in self.modules():
            if hasattr(module, INITIALISE_WEIGHTS):
                vars(module)[INITIALISE_WEIGHTS] = _tolerant(getattr(module, INITIALISE_WEIGHTS))

    return type(
        cls.__name__, (cls,), {"__init__": made, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )


def _tolerant(initialise: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    """The initialisation of modules, which is also called for those that are loaded.

    There it computes what it does not use, and in some classes cannot do that at other sizes. It is needed for buffers
    that are in no file.
    """

    def initialise_if_possible(module: nn.Module) -> None:
        try:
            initialise(module)
        except Exception:
            if any(non_persistent_buffers(each) for each in module.modules()):
                raise

    return initialise_if_possible


def _finish(model: nn.Module, config: Any, record: ConfigRecord) -> None:
    """Give a loaded model what is not in its weights."""
    for module in model.modules():
        vars(module).pop(INITIALISE_WEIGHTS, None)
    present = ModelShapes.of(model)
    shapes, sizes = unfolded(record.pruned.shapes, present.shapes), unfolded(record.pruned.sizes, present.sizes)
    inferred = inferred_sizes(model, original_shapes(model), {**present.shapes, **shapes})
    resize(model, ModelShapes(shapes, {**inferred, **sizes}, record.pruned.constants))
    told = config_sizes(Builder(type(model)).build(with_fields(config, {})))
    adopt_fields(model, told, {name for name in told if name not in sizes})
