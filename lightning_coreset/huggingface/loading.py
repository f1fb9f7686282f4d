"""Load pruned models of Hugging Face transformers from what ``save_pretrained`` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_coreset._compat import INITIALISE_WEIGHTS, classes_of_auto_class, non_persistent_buffers
from lightning_coreset.checkpoint import inferred_sizes, make_resizable, write_configs
from lightning_coreset.checkpoint.config_record import ConfigRecord, unfolded, unreadable_config
from lightning_coreset.checkpoint.record_check import is_smaller_size
from lightning_coreset.huggingface.building import Builder, adopt_fields, config_sizes, with_fields
from lightning_coreset.surgery import ModelShapes, original_shapes, resize

# Where a folder is found; the rest of the arguments only concern the model.
_SOURCE = "cache_dir force_download local_files_only proxies revision subfolder token trust_remote_code".split()


def load_pretrained(cls: Any, name: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Load a model of Hugging Face transformers, pruned or not, from what ``save_pretrained`` wrote.

    A pruned model is built at its original size, takes on its sizes, and is then loaded by ``cls.from_pretrained``. It
    is resizable (:func:`~lightning_coreset.make_resizable`), and can be pruned, saved and loaded again.

    Args:
        cls: The model's class, that of the model without its head, or an Auto class of one of them such as
            ``AutoModelForCausalLM`` or ``AutoModel``.
        name: A folder, or a name on the Hub.
        **kwargs: Arguments of ``cls.from_pretrained``, such as ``dtype`` or ``device_map``; not those that change the
            config of a pruned model, such as ``num_labels``.

    Returns:
        The model, in eval mode, as ``from_pretrained`` returns it.

    Raises:
        ValueError: If a pruned model is of another class, or what its config says cannot be read or is not of it.

    Example:
        >>> from lightning_coreset.huggingface import load_pretrained
        >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
        >>> model = load_pretrained(AutoModelForCausalLM, "pruned")  # doctest: +SKIP
    """
    import transformers

    if not isinstance(cls, type) or not hasattr(cls, "from_pretrained"):
        raise ValueError(f"Expected a class of models of transformers but got {cls!r}.")
    source = {key: kwargs[key] for key in _SOURCE if key in kwargs}
    config = transformers.AutoConfig.from_pretrained(name, **source)
    record = ConfigRecord.of(config)
    if record is None:
        return cls.from_pretrained(name, **kwargs)
    if "config" in kwargs:
        raise ValueError(f"Expected no `config` for a pruned model, whose sizes are in that of {name!r}.")
    original = _original_config(config, record)
    cls = _class_of(cls, record.class_name, config)
    is_part = cls.__name__ != record.class_name
    if is_part:
        record = _of_base_model(cls, record, original)
    model = _resized(cls, record).from_pretrained(name, config=original, **kwargs)
    model.__class__ = cls
    _finish(model, config, record)
    if is_part:
        write_configs(model)
    return make_resizable(model)


def _original_config(config: Any, record: ConfigRecord) -> Any:
    try:
        return with_fields(config, record.fields)
    except Exception as error:  # of a class of the config's own
        raise unreadable_config(error) from error


def _class_of(cls: Any, saved: str, config: Any) -> Any:
    """The class to load, which is not an Auto class; the saved one where an Auto class may make it."""
    import transformers

    if issubclass(cls, nn.Module):
        return cls
    possible = classes_of_auto_class(cls, config)
    own = getattr(transformers, saved, None)
    if own is None or (possible and own not in possible):
        return possible[0] if possible else cls
    return own


def _of_base_model(cls: Any, record: ConfigRecord, original: Any) -> ConfigRecord:
    """The record of the model without its head, if that is what is to be loaded.

    Raises:
        ValueError: If it is another class.
    """
    import transformers

    saved = getattr(transformers, record.class_name, None)
    path = getattr(saved, "base_model_prefix", "")
    if saved is None or not path or type(getattr(Builder(saved).build(original), path, None)) is not cls:
        raise ValueError(
            f"Expected the class of a pruned {record.class_name} or of the model without its head but got "
            f"{cls.__name__}. Load it with its own class, and take the part that you need out of the model."
        )
    return replace(record, class_name=cls.__name__, pruned=record.pruned.within(path))


def _resized(cls: Any, record: ConfigRecord) -> Any:
    """A class whose instances have the shapes of a pruned model as soon as they are made.

    ``from_pretrained`` makes the instance and loads it in one call: this is the only place in between.
    """

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        present = ModelShapes.of(self)
        _check(record, self, present)
        shapes = unfolded(record.pruned.shapes, present.shapes)
        # Others are computed anew when the model is loaded, at their original size.
        resize(self, ModelShapes({name: shape for name, shape in shapes.items() if name not in present.constants}))
        for module in self.modules():
            if hasattr(module, INITIALISE_WEIGHTS):
                vars(module)[INITIALISE_WEIGHTS] = _tolerant(getattr(module, INITIALISE_WEIGHTS))

    return type(
        cls.__name__, (cls,), {"__init__": made, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    )


def _check(record: ConfigRecord, model: nn.Module, present: ModelShapes) -> None:
    """Raise if a record cannot be that of a model, which has its original sizes."""
    told = [
        *((name, shape, present.shapes) for name, shape in unfolded(record.pruned.shapes, present.shapes).items()),
        *((name, size, present.sizes) for name, size in unfolded(record.pruned.sizes, present.sizes).items()),
    ]
    for name, size, original in told:
        if name not in original or not is_smaller_size(size, original[name]):
            before = original.get(name)
            raise unreadable_config(
                f"{name} is {size} where that of {type(model).__name__} is {before} when it is built"
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
