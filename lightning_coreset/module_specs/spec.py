"""The description of one type of modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from lightning_coreset.module_specs.values import Size, is_size, plain_size

Shape: TypeAlias = tuple[int, ...]
Sizes: TypeAlias = (
    Mapping[str, "int | tuple[int, int] | EllipsisType"] | Callable[[Mapping[str, Any], Shape], Mapping[str, Size]]
)
Reads: TypeAlias = Literal["rows", "patches", "indices"]

COMMON_HEAD_COUNTS = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads", "num_key_value_heads"),
    *("num_kv_heads", "n_kv_heads", "all_head_size", "split_size", "inner_dim"),
)
"""Names under which attention modules of any type keep how many heads they have, or how wide these are together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleSpec:
    """How the attributes of a type of modules follow its tensors, and how the package has to treat it.

    Give only what the type has; every default stands for "nothing special". Register a spec with
    :func:`register_module`.

    Attributes:
        tensor: Name of the parameter or buffer that ``sizes`` follow; of several names, the first that a module has
            (a BatchNorm without a weight still has a running mean). The name may lead into a submodule, as
            ``"query.weight"``.
        sizes: The integer attributes that repeat sizes of ``tensor``: for each its dimension, or dimension and
            multiple (``{"width": 0, "hidden": (0, 4)}`` for ``hidden == 4 * weight.shape[0]``), or ``...`` for a tuple
            or a list that repeats the whole shape. Where that does not express it, a function of the module's
            attributes as they were and the new shape of ``tensor``, which returns the new sizes: integers, or tuples
            of them. For the present shape it must return the present sizes.
        expected_shape: With a function as ``sizes``, its inverse, where a returned size could hide that a shape is
            impossible: from the module's attributes to the shape of ``tensor``, ``None`` if no shape fits. Checkpoints
            are compared with it.
        other_sizes: The integer attributes that repeat a size of another parameter or buffer: for each its name and its
            dimension, as ``{"proj_size": ("weight_hr_l0", 0)}``. Where a module lacks it, the attribute says nothing.
        width: The attribute that is as long as the module's ``vectors``, or of their shape; one of ``sizes``. A
            checkpoint in which they differ is rejected.
        vectors: Names of the tensors that have one element for every channel, and no other dimensions than ``width``.
        groups: The attribute that counts groups of channels. Channels that pass a depthwise convolution are pruned only
            if its module has one, among its ``sizes``; those that pass a GroupNorm of several groups only if its module
            has one, which is then reduced with the groups that are removed.
        head_counts: Attributes that count attention heads, or how wide these are together, beside the usual names such
            as ``num_heads``. They follow when heads are removed.
        head_widths: A function from the shapes of a module's tensors to the numbers of channels that its heads divide.
            With it, a state dict without a record tells ``head_counts`` where only one number fits.
        input_sizes: For modules that have no tensor: the integer attributes that repeat sizes of the first input, each
            with its dimension, as ``{"num_features": -3}`` for an InstanceNorm2d.
        is_layer: Whether it makes channels, so that a report gives the reason where none of them can be pruned.
        reads: What the weight is multiplied with: rows (the last dimension) of the input, patches as in a convolution,
            which has the attributes of torch's, or nothing, since the input holds indices.
        running_stats: Names of the buffers with running mean and variance, if it has them.
        always_eval: Whether it stays in eval mode when a network is run to analyse it, since in training mode it draws
            random numbers or updates statistics.
        settle: A function that is called after tensors of a module or of its submodules were replaced and its sizes
            updated, with the module and the sizes that it had before all pruning. It updates what sizes do not express,
            such as a cache that is made of the weights.
        unsupported: Why no tensor within such a module may be pruned, as the end of a sentence ("belongs to ..."); or a
            function that returns this reason, or ``None``, for a module.

    Raises:
        TypeError: If a value is of another type than described.
        ValueError: If values contradict each other.

    Example:
        A layer that keeps its width in an attribute, which its ``forward`` reads:

        >>> from lightning_coreset.structure import ModuleSpec
        >>> ModuleSpec(sizes={"width": 0, "inputs": 1}, width="width", is_layer=True).updated_sizes({}, (4, 8))
        {'width': 4, 'inputs': 8}
    """

    tensor: str | tuple[str, ...] = "weight"
    sizes: Sizes = field(default_factory=dict)
    expected_shape: Callable[[Mapping[str, Any]], Shape | None] | None = None
    other_sizes: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    width: str | None = None
    vectors: tuple[str, ...] = ("weight", "bias", "running_mean", "running_var")
    groups: str | None = None
    head_counts: tuple[str, ...] = ()
    head_widths: Callable[[Mapping[str, Shape]], tuple[int, ...]] | None = None
    input_sizes: Mapping[str, int] = field(default_factory=dict)
    is_layer: bool = False
    reads: Reads = "rows"
    running_stats: tuple[str, str] | None = None
    always_eval: bool = False
    settle: Callable[[nn.Module, Mapping[str, Any]], None] | None = None
    unsupported: str | Callable[[nn.Module], str | None] | None = None

    def __post_init__(self) -> None:
        for name in ("tensor", "vectors", "head_counts", "running_stats"):
            _check_names(name, getattr(self, name))
        for name in ("width", "groups"):
            _check_names(name, getattr(self, name))
        _check_sizes(self.sizes)
        if self.width is not None and not self.updates(self.width):
            raise ValueError(
                f"Expected width={self.width!r} to be one of the attributes in `sizes`, but these are "
                f"{list(self.sizes)}."  # type: ignore[arg-type]
            )
        _check_input_sizes(self.input_sizes)
        _check_other_sizes(self.other_sizes)
        if self.running_stats is not None and len(self.running_stats) != 2:
            raise ValueError(f"Expected running_stats=(mean, variance) but got {self.running_stats!r}.")
        if self.expected_shape is not None and not (callable(self.expected_shape) and callable(self.sizes)):
            raise TypeError(
                "Expected `expected_shape` to be a function that comes with a function as `sizes`, but got "
                f"expected_shape={self.expected_shape!r} with sizes={self.sizes!r}."
            )
        if self.reads not in get_args(Reads):
            raise ValueError(f"Expected `reads` to be one of {get_args(Reads)} but got {self.reads!r}.")
        for name in ("is_layer", "always_eval"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"Expected `{name}` to be a bool but got {getattr(self, name)!r}.")
        if self.head_widths is not None and not callable(self.head_widths):
            raise TypeError(f"Expected `head_widths` to be a function of shapes but got {self.head_widths!r}.")
        if self.settle is not None and not callable(self.settle):
            raise TypeError(f"Expected `settle` to be a function of a module and its sizes but got {self.settle!r}.")
        reason = self.unsupported
        if reason is not None and not callable(reason) and not (isinstance(reason, str) and reason.strip()):
            raise TypeError(f"Expected `unsupported` to be a reason in words or a function but got {reason!r}.")

    def updates(self, attribute: str) -> bool:
        """Whether ``sizes`` may update an attribute; of a function, whatever it returns."""
        return callable(self.sizes) or attribute in self.sizes

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The names that ``tensor`` stands for."""
        return (self.tensor,) if isinstance(self.tensor, str) else self.tensor

    def updated_sizes(self, attributes: Mapping[str, Any], shape: Shape) -> dict[str, Size]:
        """The sizes of a module once its tensor has another shape.

        Args:
            attributes: The module's attributes as they were.
            shape: The new shape of the tensor, of as many dimensions as before.
        """
        if callable(self.sizes):
            return dict(self.sizes(attributes, shape))
        sizes: dict[str, Size] = {}
        for name, where in self.sizes.items():
            if isinstance(where, EllipsisType):
                sizes[name] = tuple(shape)
                continue
            dim, multiple = (where, 1) if isinstance(where, int) else where
            sizes[name] = shape[dim] * multiple
        return sizes

    def fits(self, attributes: Mapping[str, Any], shape: Shape) -> bool:
        """Whether a module with these attributes can have a tensor of this shape."""
        if self.expected_shape is not None:
            return self.expected_shape(attributes) == shape
        updated = self.updated_sizes(attributes, shape)
        return all(_plain(attributes.get(name, size)) == _plain(size) for name, size in updated.items())

    def reason(self, module: nn.Module) -> str | None:
        """Why nothing within a module may be pruned; ``None`` if it may."""
        return self.unsupported(module) if callable(self.unsupported) else self.unsupported


def _plain(value: Any) -> Any:
    return plain_size(value) if is_size(value) else value


def _check_names(argument: str, value: object) -> None:
    names = value if isinstance(value, tuple) else (value,)
    optional = argument in ("width", "groups", "running_stats")
    if not (optional and value is None) and not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"Expected `{argument}` to be names of attributes but got {value!r}.")


def _check_sizes(sizes: object) -> None:
    if callable(sizes):
        return
    if not isinstance(sizes, Mapping):
        raise TypeError(f"Expected `sizes` to be a dict or a function but got {sizes!r}.")
    for name, where in sizes.items():
        if isinstance(where, EllipsisType) and isinstance(name, str):
            continue
        pair = where if isinstance(where, tuple) else (where, 1)
        if not isinstance(name, str) or len(pair) != 2 or any(type(number) is not int for number in pair):
            raise TypeError(
                "Expected `sizes` to map attributes to a dimension, to (dimension, multiple) or to ..., "
                f"but got {name!r}: {where!r}."
            )
        if pair[1] < 1:
            raise ValueError(f"Expected the multiple of {name!r} in `sizes` to be positive but got {pair[1]}.")


def _check_other_sizes(sizes: object) -> None:
    pairs = [*sizes.items()] if isinstance(sizes, Mapping) else [(sizes, sizes)]
    for name, where in pairs:
        if not (isinstance(where, tuple) and [*map(type, (name, *where))] == [str, str, int]):
            raise TypeError(
                "Expected `other_sizes` to map attributes to (name of a parameter or buffer, dimension), "
                f"but got {sizes!r}."
            )


def _check_input_sizes(sizes: object) -> None:
    if not isinstance(sizes, Mapping):
        raise TypeError(f"Expected `input_sizes` to be a dict but got {sizes!r}.")
    for name, dim in sizes.items():
        if not isinstance(name, str) or type(dim) is not int:
            raise TypeError(f"Expected `input_sizes` to map attributes to a dimension but got {name!r}: {dim!r}.")
