"""Watches the norms over channels of a run, and lets them make what their law says.

Such a norm gives its channels mean 0 and deviation 1 at every position before it scales them. A network on made-up
inputs has other correlations there than on the data that it was trained on, the more the deeper; the law that uses
none, independent standard normal numbers, is nearer to the truth.

Shapes: P positions of a run, R of them sampled; N channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_coreset.moments.inputs import NormInput, as_it_was
from lightning_coreset.moments.sampling import rows_of

_FUNCTIONS = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
_FIRST = 4
"""Channels of each position by which what a norm makes is recognised."""
_NEAR = 1e-3
"""Part of its size by which what a norm makes may differ from its form, by rounding."""


class ChannelNorms(TorchFunctionMode):
    """Samples what norms over channels read, and replaces it, if asked to.

    Args:
        modules: Those that write such a norm out, as ``modules_of_norms`` finds them. The functions of torch are known.
        by_law: Whether norms read independent standard normal numbers, the same in every run.
        seed: Of the numbers.
        tensors: Parameters and buffers of the run by name.
        wanted: For weights of norms by name, how many rows of what the norm reads a run is to give.

    Attributes:
        found: By the name of the weight, a sample for each call.
    """

    def __init__(
        self,
        modules: Collection[nn.Module],
        *,
        by_law: bool,
        seed: int,
        tensors: Mapping[str, Tensor],
        wanted: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.found: dict[str, list[NormInput]] = {}
        self._modules, self._by_law, self._wanted = list(modules), by_law, wanted
        self._generator = Generator().manual_seed(seed)
        self._names = {id(tensors[name]): name for name in wanted if name in tensors}
        self._given: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._last: tuple[Tensor, Tensor] | None = None
        self._made: dict[str, Tensor] = {}

    def __enter__(self) -> ChannelNorms:
        self._hooks = [module.register_forward_pre_hook(self._before) for module in self._modules]
        self._hooks += [module.register_forward_hook(self._after) for module in self._modules if self._names]
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(kind, error, trace)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS or not args or len(_shape_of(args, kwargs)) != 1:
            return func(*args, **kwargs)
        given, read = self._read(args[0])
        made = func(read, *args[1:], **kwargs)
        name = self._names.get(id(kwargs.get("weight", args[2] if len(args) > 2 else None)))
        if name is not None:
            self._note(name, given, read, made, _epsilon_of(func, args, kwargs))
        return made

    def behind(self, rows: Tensor) -> str | None:
        """The weight of the norm that made what a layer reads, by samples (R, N, 1) of it."""
        if rows.dim() != 3 or rows.shape[2] != 1 or not len(rows):
            return None
        asked = rows[[0, -1], :_FIRST, 0]
        for name, made in self._made.items():
            first = asked.to(made)
            if first.shape[1] == made.shape[1] and all(bool((made == one).all(dim=1).any()) for one in first):
                return name
        return None

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor):
            return None
        self._given[module] = self._read(args[0])
        return (self._given[module][1], *args[1:])

    def _after(self, module: nn.Module, args: tuple[Any, ...], made: Any) -> None:
        names = [name for one in module.parameters() if (name := self._names.get(id(one))) is not None]
        given = self._given.pop(module, None)
        if not names or names[0] in self.found:  # where it calls one of the functions, these have seen it
            return
        if given is not None and isinstance(made, Tensor):
            epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
            self._note(names[0], *given, made, float(epsilon or 0.0))

    def _read(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """What a norm was given, and what it reads instead; a module may call one of the functions."""
        if self._last is not None and given is self._last[1]:
            return self._last
        read = torch.randn(given.shape, generator=self._generator).to(given) if self._by_law else given
        self._last = given, read
        return self._last

    def _note(self, name: str, given: Tensor, read: Tensor, made: Tensor, epsilon: float) -> None:
        """Sample the rows of one call; one that has no form of a norm over the last dimension is left out."""
        if made.shape != read.shape or given.shape[-1] < _FIRST:
            return
        given, read, made = (one.detach().reshape(-1, one.shape[-1]) for one in (given, read, made))
        calls = self.found.setdefault(name, [])
        form = _form(rows_of(read, self._wanted[name]), rows_of(made, self._wanted[name]), epsilon)
        if form is None:
            self.found.pop(name)
            return
        centred, gain, shift = form
        rows = as_it_was(rows_of(given, self._wanted[name], len(calls)), given.dtype)
        calls.append(NormInput(rows, centred, epsilon, gain, shift))
        first = made[:, :_FIRST].to("cpu", copy=True)
        self._made[name] = torch.cat([self._made[name], first]) if name in self._made else first


def normalised(rows: Tensor, *, centred: bool, epsilon: float) -> Tensor:
    """What a norm makes of rows (R, N) before it scales them."""
    rows = rows - rows.mean(dim=1, keepdim=True) if centred else rows
    return rows * (rows.square().mean(dim=1, keepdim=True) + epsilon).rsqrt()


def _form(read: Tensor, made: Tensor, epsilon: float) -> tuple[bool, Tensor, Tensor] | None:
    """Whether a norm takes the mean off, its gain and its shift, (N,): by what it makes of what it reads."""
    read, made = read.double(), made.double()
    for centred in (True, False):
        unit = normalised(read, centred=centred, epsilon=epsilon)
        around, off = unit - unit.mean(dim=0), made - made.mean(dim=0)
        gain = (around * off).sum(dim=0) / around.square().sum(dim=0).clamp_min(1e-300)
        shift = made.mean(dim=0) - gain * unit.mean(dim=0)
        if bool((gain * unit + shift - made).norm() <= _NEAR * made.norm()):
            return centred, gain, shift
    return None


def _epsilon_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    is_rms = func in (F.rms_norm, torch.rms_norm)
    place = 3 if is_rms else 4
    given = kwargs.get("eps", args[place] if len(args) > place else None if is_rms else 1e-5)
    return torch.finfo(args[0].dtype).eps if given is None else float(given)


def _shape_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return (shape,) if isinstance(shape, int) else tuple(shape)
