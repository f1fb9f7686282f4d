"""The shapes and sizes of a model, and what they were before surgery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset._compat import non_persistent_buffers
from lightning_coreset.module_specs import Size, remembered_sizes

_ATTRIBUTE = "_coreset_originals"


@dataclass(frozen=True, eq=False)
class ModelShapes:
    """What surgery can change about a model beside the contents of its tensors; of the whole model or a part of it.

    Attributes:
        shapes: Shapes of parameters and buffers by qualified name; of a tied tensor, under each of its names.
        sizes: Integer attributes of modules, and tuples of integers, by qualified name, such as
            ``"encoder.attention.num_heads"``. Lists are tuples here. Also the fields of config objects that modules
            hold, under the name of each of these modules.
        constants: Contents of the buffers that are in no state dict (``persistent=False``).
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    sizes: Mapping[str, Size] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> ModelShapes:
        """The shapes of a model as it is now; its constants are referred to, not copied."""
        tensors = all_tensors(model)
        sizes: dict[str, Size] = {}
        constants: dict[str, Tensor] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            sizes |= {prefix + name: size for name, size in remembered_sizes(module).items()}
            names = [prefix + name for name in non_persistent_buffers(module)]
            constants |= {name: tensors[name].data for name in names if name in tensors}
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()}, sizes, constants)

    def __or__(self, other: ModelShapes) -> ModelShapes:
        """Both, with the entries of the other one where both have a name."""
        return ModelShapes(
            {**self.shapes, **other.shapes}, {**self.sizes, **other.sizes}, {**self.constants, **other.constants}
        )

    def difference(self, other: ModelShapes) -> ModelShapes:
        """The entries that are others in another one of the same model."""
        shapes = {name: shape for name, shape in self.shapes.items() if other.shapes.get(name, shape) != shape}
        sizes = {name: size for name, size in self.sizes.items() if other.sizes.get(name, size) != size}
        return ModelShapes(shapes, sizes, {name: value for name, value in self.constants.items() if name in shapes})

    def differs_from(self, other: ModelShapes) -> bool:
        """Whether another one of the same model has other shapes or sizes."""
        difference = self.difference(other)
        return bool(difference.shapes or difference.sizes)

    def restrict(self, names: ModelShapes) -> ModelShapes:
        """The entries whose names another one has, too."""
        return ModelShapes(
            {name: shape for name, shape in self.shapes.items() if name in names.shapes},
            {name: size for name, size in self.sizes.items() if name in names.sizes},
            {name: value for name, value in self.constants.items() if name in names.constants},
        )

    def within(self, path: str) -> ModelShapes:
        """What of it lies in the submodule ``path``, for that submodule."""
        prefix = f"{path}." if path else ""
        return ModelShapes(
            {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)},
            {name.removeprefix(prefix): size for name, size in self.sizes.items() if name.startswith(prefix)},
            {name.removeprefix(prefix): value for name, value in self.constants.items() if name.startswith(prefix)},
        )

    def with_prefix(self, path: str) -> ModelShapes:
        """The same for a model that has this one as its submodule ``path``."""
        prefix = f"{path}." if path else ""
        return ModelShapes(
            {prefix + name: shape for name, shape in self.shapes.items()},
            {prefix + name: size for name, size in self.sizes.items()},
            {prefix + name: value for name, value in self.constants.items()},
        )


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All initialised parameters and buffers, by qualified name; a tied one under each of its names."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in named if not is_lazy(tensor)}


@contextmanager
def record_original_shapes(model: nn.Module) -> Iterator[None]:
    """Record on the model what its shapes were before the surgery in the block, where that changes them.

    Kept by name on the model itself, so that it is copied and pickled with it, and stays when modules are replaced, as
    when BatchNorms are converted to SyncBatchNorm.
    """
    before = ModelShapes.of(model)
    yield
    known = recorded_shapes(model)
    # Not ``setattr``: a compiled model would set it on the model inside, which has other names.
    vars(model)[_ATTRIBUTE] = changed = before.difference(ModelShapes.of(model)) | known
    for path, module in model.named_modules():
        if path and _ATTRIBUTE in vars(module):
            vars(module)[_ATTRIBUTE] = changed.within(path)


def recorded_shapes(model: nn.Module) -> ModelShapes:
    """What surgery has changed about a model or its submodules, as it was before the first change."""
    recorded = ModelShapes()
    for path, module in model.named_modules():  # the outermost first: its record is the most complete
        recorded = vars(module).get(_ATTRIBUTE, ModelShapes()).with_prefix(path) | recorded
    return recorded


def keep_record(model: nn.Module, original: ModelShapes | None = None) -> None:
    """Let a module keep a record of its own, also of surgery on a larger model that contains it.

    Args:
        model: The module.
        original: What it was before surgery that it has no record of, as one that was built with the smaller sizes.
    """
    vars(model)[_ATTRIBUTE] = (original or ModelShapes()) | vars(model).get(_ATTRIBUTE, ModelShapes())


def hand_down_record(model: nn.Module, path: str) -> None:
    """Record on a submodule, too, what surgery of the whole model has changed about it."""
    below = recorded_shapes(model).within(path)
    if below.shapes or below.sizes:
        vars(model.get_submodule(path))[_ATTRIBUTE] = below


def forget_original_shapes(model: nn.Module) -> None:
    """Delete the records of a model and its submodules: as they are now, they count as the original."""
    for module in model.modules():
        vars(module).pop(_ATTRIBUTE, None)


def original_shapes(model: nn.Module) -> ModelShapes:
    """The shapes of a model before all surgery."""
    return ModelShapes.of(model) | recorded_shapes(model)
