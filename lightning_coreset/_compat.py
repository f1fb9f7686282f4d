"""Every private name of torch and Lightning that the package uses, and what is done where one is missing.

A private name may change in any release, or be missing in one build: torch 2.6 and 2.7 have ``_storage_Use_Count`` only
where they are built with CUDA. So no other file of the package uses one (``tests/test_compat.py``). Here each has one
accessor that looks for the name when it is called, and takes a slower or more careful way where there is none. Where no
other way is safe, the accessor raises an error that says so.

The lower floors must not import Lightning: its objects are handed in, and its modules are imported by name, in
functions that only ``training`` calls.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
    from torch.nn.modules.batchnorm import _NormBase as BatchOrInstanceNorm
    from torch.nn.modules.conv import _ConvNd as Convolution
    from torch.nn.modules.conv import _ConvTransposeNd as TransposedConvolution
    from torch.nn.modules.dropout import _DropoutNd as Dropout
    from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNorm
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")


TESTED = {"torch": "2.6 to 2.13", "lightning": "2.5 to 2.6"}
"""The versions that the tests were run with."""


def unsupported(name: str, purpose: str) -> RuntimeError:
    """The error for a private name that is missing and cannot be done without.

    Args:
        name: The name with its module.
        purpose: What it is needed for, as the end of a sentence.
    """
    package = name.partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "of unknown version")
    return RuntimeError(
        f"Expected {package} to have {name} but {package} {version} does not, and lightning_coreset cannot {purpose} "
        f"without it. Install {package} {TESTED[package]}, or a newer lightning_coreset."
    )


def _found(module: str, name: str) -> Any:
    """A name of a module; ``None`` where either is missing."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


# ---- torch: types of modules. A tuple of the public ones stands in for a base class, in ``isinstance``.

if not TYPE_CHECKING:
    TransposedConvolution = _found("torch.nn.modules.conv", "_ConvTransposeNd") or (
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
    Convolution = _found("torch.nn.modules.conv", "_ConvNd") or (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
    BatchNorm = _found("torch.nn.modules.batchnorm", "_BatchNorm") or (
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    )
    InstanceNorm = _found("torch.nn.modules.instancenorm", "_InstanceNorm") or (
        *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    )
    BatchOrInstanceNorm = _found("torch.nn.modules.batchnorm", "_NormBase") or (BatchNorm, InstanceNorm)
    Dropout = _found("torch.nn.modules.dropout", "_DropoutNd") or (
        *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    )


def is_torch_loss(module: nn.Module) -> bool:
    """Whether a module is one of torch's losses, or of a class made from one."""
    return any(base.__module__ == "torch.nn.modules.loss" for base in type(module).__mro__)


class UnfusedAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that no caller runs by a fused kernel, which can only compute ``embed_dim`` wide heads.

    ``nn.TransformerEncoderLayer``, the one caller in torch 2.6 to 2.13, asks for this attribute first. The property
    hides the module's own, which keeps its value for the time when the module is of torch's class again.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False


def may_be_unfused(module: nn.Module) -> bool:
    """Whether torch asks an attention what :class:`UnfusedAttention` answers."""
    return "_qkv_same_embed_dim" in vars(module)


def has_packed_projection(attributes: Mapping[str, Any]) -> bool:
    """Whether an attention with these attributes has one ``in_proj_weight`` for queries, keys and values."""
    return attributes.get("_qkv_same_embed_dim", True)


# ---- torch: what a module holds. Not by its methods, which wrappers override, and which take ten times as long.


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module itself, by attribute, without computing parametrized ones."""
    return {name: one for name, one in module._parameters.items() if one is not None}


def own_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module itself, by attribute."""
    return {name: one for name, one in module._buffers.items() if one is not None}


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module itself, by attribute."""
    return {**own_parameters(module), **own_buffers(module)}


def registered_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers of a module itself, with those that are ``None`` at present."""
    return dict(getattr(module, "_buffers", own_buffers(module)))


def bare_copy(module: nn.Module) -> nn.Module:
    """A copy that has own tensors, and nothing of what hangs on the module: hooks, gradients."""
    bare = type(module).__new__(type(module))
    vars(bare).update(vars(module))
    for name, value in vars(module).items():
        if name.startswith("_") and "hook" in name and isinstance(value, dict):
            vars(bare)[name] = OrderedDict()
    vars(bare)["_parameters"] = {
        name: None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
        for name, value in module._parameters.items()
    }
    vars(bare)["_buffers"] = {
        name: None if value is None else value.detach().clone() for name, value in module._buffers.items()
    }
    return bare.eval()


def non_persistent_buffers(module: nn.Module) -> set[str]:
    """The buffers of a module itself that no state dict holds."""
    names = getattr(module, "_non_persistent_buffers_set", None)
    return {name for name in own_buffers(module) if name not in module.state_dict()} if names is None else set(names)


def state_dict_hooks(module: nn.Module) -> tuple[MutableMapping[int, Any], MutableMapping[int, Any]]:
    """The hooks after ``state_dict`` and before ``load_state_dict``: torch removes them only by a handle, once given.

    Raises:
        RuntimeError: If torch keeps them elsewhere.
    """
    names = ("_state_dict_hooks", "_load_state_dict_pre_hooks")
    for name in names:
        if not hasattr(module, name):
            raise unsupported(f"torch.nn.Module.{name}", "see which hooks a module has")
    return getattr(module, names[0]), getattr(module, names[1])


def metadata_of(state_dict: Any) -> dict[str, dict[str, Any]]:
    """The metadata in what a model's ``state_dict`` returned, by the name of the module; none of any other dict."""
    return getattr(state_dict, "_metadata", {})


def loads_itself(module: nn.Module) -> bool:
    """Whether a module has a way of its own to load tensors. ``False``, hence strict about shapes, if it is unknown."""
    load = getattr(type(module), "_load_from_state_dict", None)
    return load is not None and not load.__module__.startswith("torch.")


# ---- torch: weights that are made of a magnitude and a direction


def weight_norm_function() -> Callable[..., Tensor] | None:
    """What computes the weight in either style of ``weight_norm``, called with direction, magnitude and dimension."""
    return getattr(torch, "_weight_norm", None)


def weight_norms(module: nn.Module) -> dict[str, tuple[str, str]]:
    """The weight-normed tensors of a module itself, by attribute: the names of magnitude and direction within it.

    One that is parametrized in yet another way is left out.
    """
    found = {}
    kind = _found("torch.nn.utils.parametrizations", "_WeightNorm")
    if parametrize.is_parametrized(module):
        chains: Any = module.parametrizations
        for name, chain in chains.items():
            if kind is not None and len(chain) == 1 and isinstance(chain[0], kind):
                path = f"parametrizations.{name}.original"
                found[name] = (f"{path}0", f"{path}1")
    for hook in _old_weight_norms(module):
        found[hook.name] = (f"{hook.name}_g", f"{hook.name}_v")
    return found


def renew_weights(module: nn.Module) -> None:
    """Compute the weights that an old-style ``weight_norm`` keeps as plain attributes until the next forward pass."""
    with torch.no_grad():
        for hook in _old_weight_norms(module):
            setattr(module, hook.name, hook.compute_weight(module))


def _old_weight_norms(module: nn.Module) -> list[Any]:
    kind = _found("torch.nn.utils.weight_norm", "WeightNorm")
    hooks = getattr(module, "_forward_pre_hooks", {}).values()
    return [hook for hook in hooks if kind is not None and isinstance(hook, kind)]


# ---- torch: compiled code


def without_compile_wrapper(module: nn.Module) -> nn.Module:
    """The module inside of ``torch.compile(module)``; any other module itself."""
    # Not imported for this, which takes seconds: what is not there has compiled nothing.
    wrapper = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    if wrapper is None:
        return getattr(module, "_orig_mod", module)
    return next(nn.Module.children(module)) if isinstance(module, wrapper) else module


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called, or Lightning compiled a LightningModule as a whole."""
    return any(getattr(module, name, None) is not None for name in ("_compiled_call_impl", "_compiler_ctx"))


def methods_before_compile(pl_module: nn.Module) -> dict[str, Callable[..., Any]]:
    """The methods of its own that a LightningModule had before it was compiled as a whole; empty if it was not."""
    compiled = getattr(pl_module, "_compiler_ctx", None) or {}
    names = ("forward", "training_step")
    return {name: compiled[f"original_{name}"] for name in names if f"original_{name}" in compiled}


@contextmanager
def eager_execution() -> Iterator[None]:
    """Run compiled modules as they were written."""
    # Nothing is compiled where dynamo was never imported, and its import takes over a second.
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        yield


# ---- torch: operations and tensors

if not TYPE_CHECKING:
    TorchDispatchMode = _found("torch.utils._python_dispatch", "TorchDispatchMode")
    if TorchDispatchMode is None:
        raise unsupported("torch.utils._python_dispatch.TorchDispatchMode", "see the operations of a network")


class DispatchMode(TorchDispatchMode):
    """Sees every operation that torch runs in it; without the import of dynamo, which takes over three seconds."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@contextmanager
def outside_of_modes() -> Iterator[None]:
    """Run operations that no :class:`DispatchMode` sees; only where :func:`can_defer` says so."""
    disable = _found("torch.utils._python_dispatch", "_disable_current_modes")
    with disable() if disable is not None else nullcontext():
        yield


def multiplies_in(dtype: torch.dtype) -> bool:
    """Whether the processor has arithmetic for bfloat16 or float16, so that products need no other precision.

    torch tells that of processors of the x86 family alone; of the others, it counts as so. Where torch does not tell,
    as in 2.6 of some features, it counts as not.
    """
    if platform.machine().lower() not in {"x86_64", "amd64", "x86", "i386", "i686"}:
        return True
    names = {
        torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        torch.float16: ("_is_amx_fp16_supported",),
    }
    tests = [_found("torch.cpu", name) for name in names.get(dtype, ())]
    return dtype not in names or any(test() for test in tests if test is not None)


def can_defer() -> bool:
    """Whether torch has all that it takes to put operations off: without it, each has to be run at once.

    One must see which tensors share memory (``_cdata``, ``_base``) and whether anybody still holds one
    (``_storage_Use_Count``), and run operations afterwards that no mode sees.
    """
    return (
        hasattr(torch._C, "_storage_Use_Count")
        and hasattr(torch.UntypedStorage, "_cdata")
        and hasattr(Tensor, "_base")
        and _found("torch.utils._python_dispatch", "_disable_current_modes") is not None
    )


def storage_number(tensor: Tensor) -> int:
    """A number that tells the memory of a tensor from all other memory that is in use."""
    return tensor.untyped_storage()._cdata


def storage_users(number: int) -> int:
    """How many tensors lie on the memory of that :func:`storage_number`, and whatever else torch counts."""
    return torch._C._storage_Use_Count(number)


def view_base(tensor: Tensor) -> Tensor | None:
    """The tensor that this one is a view of; ``None`` if it is none, or that is not known."""
    return getattr(tensor, "_base", None)


def times_written(tensor: Tensor) -> int:
    """How many times something was written into a tensor or its views; 0 if that is not known."""
    return getattr(tensor, "_version", 0)


def stored_elements(matrix: Tensor) -> int:
    """How many elements a sparse matrix stores."""
    count = getattr(matrix, "_nnz", None)
    return int(count()) if count is not None else matrix.to_sparse_coo().coalesce().values().numel()


def without_transforms(tensor: Tensor) -> Tensor:
    """The tensor that the transforms of ``torch.func`` have wrapped; itself where none has, or that cannot be seen."""
    functions = getattr(torch._C, "_functorch", None)
    wrapped = getattr(functions, "is_functorch_wrapped_tensor", None)
    inner = getattr(functions, "get_unwrapped", None)
    while wrapped is not None and inner is not None and wrapped(tensor):
        tensor = inner(tensor)
    return tensor


def schema_of(operator: Any) -> Any:
    """The schema of an operator (``OpOverload``): its name and its arguments.

    Raises:
        RuntimeError: If the operator has none.
    """
    if not hasattr(operator, "_schema"):
        raise unsupported("torch._ops.OpOverload._schema", "read the arguments of operations")
    return operator._schema


def in_backward() -> bool:
    """Whether this thread is in a backward pass, where activation checkpointing runs modules a second time."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    if task is not None:
        return task() != -1
    # As slow as the stack is deep. A thread of the autograd engine has no frame of ``backward``, only checkpoint's.
    functions = {"torch.autograd": ("backward", "grad"), "torch.utils.checkpoint": ("unpack_hook", "backward")}
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:
        if frame.f_code.co_name in functions.get(frame.f_globals.get("__name__", ""), ()):
            return True
    return False


def in_forward_mode() -> bool:
    """Whether derivatives are computed in forward mode, as in a ``dual_level``."""
    return getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0


# ---- torch: collectives, as a dispatch mode sees them


def finished_work() -> Any:
    """The handle of a collective that is finished, as operators of process groups return it.

    Raises:
        RuntimeError: If torch has no way to make one.
    """
    make = _found("torch._C._distributed_c10d", "_create_work_from_future")
    if make is None:
        raise unsupported("torch._C._distributed_c10d._create_work_from_future", "run a step without other ranks")
    future: Any = torch.futures.Future()
    future.set_result([])
    return make(future).boxed()


def group_size(group: Any) -> int:
    """The number of ranks of a process group, given as operators get it: boxed, or by its name."""
    if isinstance(group, str):
        resolve = _found("torch.distributed.distributed_c10d", "_resolve_process_group")
        return torch.distributed.get_world_size() if resolve is None else resolve(group).size()
    if not hasattr(torch.distributed.ProcessGroup, "unbox"):
        return torch.distributed.get_world_size()
    return torch.distributed.ProcessGroup.unbox(group).size()


def is_sum(reduce_op: Any) -> bool:
    """Whether a reduction of operators of process groups is a sum; ``False`` in torch 2.6, where it does not say."""
    try:
        return torch.distributed.ReduceOp.RedOpType(reduce_op.op()) == torch.distributed.ReduceOp.SUM
    except Exception:  # a script object without this method
        return False


def plain_collective_result(value: Any) -> Any:
    """The tensor in what a functional collective returns; anything else as it is."""
    module = sys.modules.get("torch.distributed._functional_collectives")
    kind = getattr(module, "AsyncCollectiveTensor", None)
    return value.elem if kind is not None and isinstance(value, kind) else value


def _children(tree: Any) -> list[Any] | None:
    """What a container holds; ``None`` for anything else."""
    if isinstance(tree, MutableMapping):
        return list(tree.values())
    return list(tree) if isinstance(tree, tuple | list) else None


def _tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    children = _children(tree)
    if children is None:
        return function(tree)
    mapped = [_tree_map(function, child) for child in children]
    if isinstance(tree, MutableMapping):
        result = copy(tree)
        result.update(zip(tree, mapped, strict=True))
        return result
    return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)


def _tree_leaves(tree: Any) -> list[Any]:
    children = _children(tree)
    return [tree] if children is None else [leaf for child in children for leaf in _tree_leaves(child)]


if not TYPE_CHECKING:
    # torch's know containers that other packages registered as well.
    tree_map = _found("torch.utils._pytree", "tree_map") or _tree_map
    tree_leaves = _found("torch.utils._pytree", "tree_leaves") or _tree_leaves


# ---- torch: optimizers


def lbfgs_numel(optimizer: Any) -> int | None:
    """The number of elements of all parameters, which LBFGS counts once."""
    return getattr(optimizer, "_numel_cache", None)


def gradient_hooks(tensor: Tensor) -> list[Any]:
    """The functions that a backward pass calls on a tensor's gradient; none where torch keeps them elsewhere."""
    kept = [getattr(tensor, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")]
    return [hook for hooks in kept if hooks for hook in hooks.values()]


def set_lbfgs_numel(optimizer: torch.optim.LBFGS, numel: int | None) -> None:
    """Let LBFGS know that number, or with ``None`` count anew; one that does not keep it always does."""
    if hasattr(optimizer, "_numel_cache"):
        optimizer._numel_cache = numel


# ---- Lightning: the Trainer and its callbacks


def trainer_of(pl_module: Any) -> Any:
    """The Trainer of a LightningModule; ``None`` if it has none, where ``pl_module.trainer`` raises."""
    if hasattr(pl_module, "_trainer"):
        return pl_module._trainer
    try:
        return pl_module.trainer
    except RuntimeError:
        return None


def belongs_to_other_strategy(optimizer: Any, strategy: Any) -> bool:
    """Whether this is Lightning's wrapper of an optimizer of another Trainer; where that cannot be told it is not."""
    own = getattr(optimizer, "_strategy", None)  # a weak proxy, so that it is never the same object
    try:
        return own is not None and own.optimizers is not strategy.optimizers
    except ReferenceError:  # the Trainer is gone
        return True
    except AttributeError:
        return False


def batches_that_stepped(trainer: Any) -> int:
    """Batches that led to a step of an optimizer: the axis of all that Lightning logs.

    ``global_step``, which is public, counts the steps of every optimizer: with two of them, curves would drift apart.
    """
    count = getattr(trainer.fit_loop.epoch_loop, "_batches_that_stepped", None)
    return trainer.global_step // max(1, len(trainer.optimizers)) if count is None else count


@contextmanager
def at_position(trainer: Any, epoch: int, step: int) -> Iterator[None]:
    """In the block, a Trainer is in another epoch (``current_epoch``) and at another step (``global_step``).

    Where the counters are not where they were, they stay as they are: a step may then take another branch.
    """
    places: list[tuple[Any, str, int]] = []
    try:
        epochs, steps = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop
        places.append((epochs, "completed", epoch))
        places.append((steps.automatic_optimization.optim_progress.optimizer.step.total, "completed", step))
        places.append((steps.manual_optimization.optim_step_progress.total, "completed", step))
    except AttributeError:
        pass
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    try:
        for owner, name, value in places:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def epochs_before_batch_norm_update(trainer: Any, averaging: Any) -> int:
    """Epochs of a fit without the one that ``StochasticWeightAveraging`` adds to update BatchNorms."""
    epochs = getattr(averaging, "_max_epochs", None)  # set in `on_fit_start`
    return getattr(averaging, "swa_end", trainer.max_epochs - 1) + 1 if epochs is None else epochs


def averaged_model(callback: Any) -> Any:
    """The averaged copy of a model that a callback keeps: EMA, weight averaging, SWA, or a user's of their kind."""
    if hasattr(callback, "_average_model"):
        return callback._average_model
    if not type(callback).__module__.startswith(("lightning.", "pytorch_lightning.")):
        return None
    return next((held for held in vars(callback).values() if isinstance(held, nn.Module)), None)


def state_key(callback: Any, **settings: Any) -> str:
    """The name under which a checkpoint keeps a callback's state, in Lightning's form."""
    generate = getattr(callback, "_generate_state_key", None)
    return f"{type(callback).__qualname__}{settings!r}" if generate is None else generate(**settings)


_TOP_K_METHOD = "_save_topk_checkpoint"


class _AroundMethod:
    """Stands in for a method of one object; a copy of that object has the method itself."""

    def __init__(self, owner: Any, name: str, around: Callable[..., None]) -> None:
        self.owner, self.name, self.around = owner, name, around
        self.method = getattr(owner, name)

    def __call__(self, *arguments: Any) -> None:
        self.around(self.method, *arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)


def around_topk_saving(callback: Any, around: Callable[..., None]) -> Callable[[], None] | None:
    """Let a ModelCheckpoint call a function where it would save the model if that is one of the best.

    Args:
        callback: The ModelCheckpoint.
        around: Called with its own method, and with what that is called with: the Trainer and the metrics.

    Returns:
        What undoes it; ``None`` where the method is missing, and nothing was done.
    """
    name = _TOP_K_METHOD
    if not hasattr(callback, name):
        return None
    own = vars(callback).get(name)
    setattr(callback, name, _AroundMethod(callback, name, around))

    def undo() -> None:
        if own is None:
            delattr(callback, name)
        else:
            setattr(callback, name, own)

    return undo


# ---- Lightning: DDP


def starts_by_multiprocessing(launcher: Any) -> bool:
    """Whether a strategy's launcher spawns or forks processes, which train copies of the module."""
    package = type(launcher).__module__.partition(".strategies.")[0]  # of either name
    kind = _found(f"{package}.strategies.launchers", "_MultiProcessingLauncher")
    if kind is not None:
        return isinstance(launcher, kind)
    return launcher is not None and "Subprocess" not in type(launcher).__name__


def communication_state(strategy: Any, kind: type[T]) -> T | None:
    """The state of a DDP strategy's communication hook, if it is of a kind."""
    held = vars(strategy).values() if not hasattr(strategy, "_ddp_comm_state") else (strategy._ddp_comm_state,)
    return next((state for state in held if isinstance(state, kind)), None)


def loses_first_static_iteration(strategy: Any) -> bool:
    """Whether a DDP strategy with ``static_graph=True`` and manual optimization never reduces its first gradients.

    Lightning reduces them from 2.6 on, and keeps in this attribute whether it has.
    """
    static = getattr(strategy, "_ddp_kwargs", {}).get("static_graph", False)
    return static and not hasattr(strategy, "_pl_static_graph_delay_done")


def repeat_static_graph_delay(strategy: Any) -> None:
    """Let a DDP strategy treat the next iteration as its first: a new wrapper delays its all-reduce as the first did.

    Without this, with ``static_graph=True`` and manual optimization, it is never run again, and the ranks drift apart
    silently.
    """
    if hasattr(strategy, "_pl_static_graph_delay_done"):
        strategy._pl_static_graph_delay_done = False


def ignored_by_ddp(pl_module: nn.Module) -> tuple[str, ...]:
    """Parameters and buffers that DDP is configured to ignore."""
    return tuple(getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()))


# ---- Lightning: hyperparameters in TensorBoard


def logged_hyperparameters(source: Any) -> dict[str, Any] | None:
    """What the Trainer is about to log of a module or datamodule, as its ``hparams`` are; ``None`` if it does not."""
    if not getattr(source, "_log_hyperparams", True):
        return None
    initial = source.hparams_initial
    return dict(initial if isinstance(initial, Mapping) else vars(initial))


def as_logged(params: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters in the form in which Lightning's loggers write them: one level deep, numbers and strings."""
    logger = "lightning.fabric.utilities.logger"
    flatten, sanitize = _found(logger, "_flatten_dict") or _flatten, _found(logger, "_sanitize_params") or _sanitize
    return sanitize(flatten(dict(params)))


def _flatten(params: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in params.items():
        flat |= _flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _sanitize(params: Mapping[str, Any]) -> dict[str, Any]:
    plain = (bool, int, float, str)
    return {name: value if type(value) in plain else str(value) for name, value in params.items()}


def with_logger_prefix(logger: Any, tags: Mapping[str, Any]) -> dict[str, Any]:
    """Tags as a logger with a prefix of its own writes them."""
    prefix, join = getattr(logger, "_prefix", ""), getattr(logger, "LOGGER_JOIN_CHAR", "-")
    return {f"{prefix}{join}{tag}" if prefix else tag: value for tag, value in tags.items()}


def logs_default_metric(logger: Any) -> bool:
    """Whether a TensorBoardLogger writes ``hp_metric`` beside hyperparameters."""
    return getattr(logger, "_default_hp_metric", True)


def add_summaries(writer: Any, summaries: Iterable[Any]) -> None:
    """Write summaries of TensorBoard as they are, with a ``SummaryWriter``, which has no public way to do so."""
    if hasattr(writer, "_get_file_writer"):
        for summary in summaries:
            writer._get_file_writer().add_summary(summary)
        return
    from torch.utils.tensorboard.writer import FileWriter

    file = FileWriter(writer.log_dir)  # TensorBoard reads all files of a folder as one run
    for summary in summaries:
        file.add_summary(summary)
    file.close()


# ---- transformers

INITIALISE_WEIGHTS = "_init_weights"
"""The method by which a model of transformers gives a module its first weights; without it, nothing is done there."""


def classes_of_auto_class(auto: Any, config: Any) -> tuple[type[nn.Module], ...]:
    """The classes that an Auto class of transformers may make of a config; none where that cannot be seen."""
    try:
        found = auto._model_mapping[type(config)]
    except (AttributeError, KeyError, TypeError):
        return ()
    return found if isinstance(found, tuple) else (found,)


GROUPED_PRODUCT = "aten::_grouped_mm"
"""What ``torch.nn.functional.grouped_mm`` calls, by its qualified name; torch 2.8 and older have none on the CPU."""
