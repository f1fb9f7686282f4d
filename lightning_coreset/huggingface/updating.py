"""Let the configs of pruned models say what their sizes are."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from lightning_coreset._compat import without_compile_wrapper
from lightning_coreset.checkpoint import PruningMetadata
from lightning_coreset.checkpoint.config_record import ConfigRecord
from lightning_coreset.checkpoint.configs import pretrained_models, write_config
from lightning_coreset.huggingface.building import Builder, adopt_fields, config_sizes, with_fields
from lightning_coreset.huggingface.fields import FieldSearch, candidate_fields
from lightning_coreset.huggingface.proof import ConfigProof
from lightning_coreset.structure import Example, ExampleInputs
from lightning_coreset.surgery import ModelShapes, hand_down_record

Model = TypeVar("Model", bound=nn.Module)


def update_config(model: Model, example_inputs: ExampleInputs) -> Model:
    """Let the config of a pruned model of Hugging Face transformers say its sizes, before ``save_pretrained``.

    Fields such as ``hidden_size``, ``intermediate_size``, ``num_attention_heads`` or ``hidden_sizes`` get new values
    where this is right for all that depends on them, as models that are built from such configs prove. If the config
    can say everything, ``from_pretrained`` alone loads the saved model, also where this package is not installed. If
    not, as when layers have other sizes than each other, ``from_pretrained`` fails with its error of mismatched sizes.
    :func:`load_pretrained` loads it in both cases: how it was pruned is in one more field,
    ``config.lightning_coreset``.

    The model gets a new config object; the old one, which others may hold, is not changed. Call it again after pruning
    again. It builds the model a few times without memory for its weights, and runs a copy in double precision.

    Args:
        model: A model of transformers, or a module that contains one, such as a LightningModule: the module that was
            pruned. A model that is not pruned stays as it is.
        example_inputs: For the model of transformers, as for :func:`~lightning_coreset.prune`. It is run on them to
            prove that it computes the same with the config.

    Returns:
        The model itself.

    Raises:
        ValueError: If there is no model of transformers in it, or more than one, or one with other shapes than its
            config gives, of which nothing tells how it was pruned.

    Example:
        >>> from lightning_coreset import prune
        >>> from lightning_coreset.huggingface import load_pretrained, update_config
        >>> from transformers import AutoModelForCausalLM  # doctest: +SKIP
        >>> model = AutoModelForCausalLM.from_pretrained(name)  # doctest: +SKIP
        >>> _ = prune(model, inputs, 0.5, include_residual=True)  # doctest: +SKIP
        >>> update_config(model, inputs).save_pretrained("pruned")  # doctest: +SKIP
        >>> model = load_pretrained(AutoModelForCausalLM, "pruned")  # doctest: +SKIP
    """
    inner = without_compile_wrapper(model)
    parts = dict(pretrained_models(inner))
    if len(parts) != 1:
        raise ValueError(
            "Expected a model of Hugging Face transformers, or a module that contains one, but got a "
            f"{type(inner).__name__} with {sorted(parts) or 'none'}. Other models keep their sizes in state dicts: see "
            "make_resizable."
        )
    ((path, part),) = parts.items()
    hand_down_record(inner, path)
    _update(path, part, Example.of(example_inputs))
    return model


def _update(path: str, model: nn.Module, example: Example) -> None:
    metadata, config, record = PruningMetadata.of(model), model.config, ConfigRecord.of(model.config)
    builder = Builder(type(model))
    start = with_fields(config, {} if record is None else record.fields)
    if metadata is None:
        _check_unpruned(path, model, builder.build(start))
        return
    told = config_sizes(builder.build(with_fields(config, {})))
    ours = {name for name, size in config_sizes(model).items() if told.get(name) == size}
    touched = {*metadata.pruned.shapes, *metadata.pruned.sizes} - ours
    proof = ConfigProof(model, example, builder, ours)
    search = FieldSearch(builder, start, model, touched, metadata.pruned.constants, proof)
    found = search.run(candidate_fields(start, metadata))

    adopt_fields(model, config_sizes(builder.build(with_fields(start, found))), ours)
    write_config(model, metadata, ours)


def _check_unpruned(path: str, model: nn.Module, built: nn.Module) -> None:
    other = ModelShapes.of(built).shapes
    for name, shape in ModelShapes.of(model).shapes.items():
        if other.get(name, shape) != shape:
            raise ValueError(
                f"Expected to find on {path or type(model).__name__!r} how it was pruned, since {name!r} has shape "
                f"{shape} where its config gives {other[name]}, but found nothing. Pass the module that was pruned, "
                "such as the LightningModule that contains it."
            )
