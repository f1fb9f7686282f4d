"""Runs a network twice in one go, with two versions of some weights: whatever depends on these differs.

That is how the self-check knows where removed channels are without asking the analysis: they differ where the weights
that make them do. A normalisation over channels is then taken over the others only, which is what it will be once they
are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import DispatchMode, view_base
from lightning_coreset.structure import OpCall
from lightning_coreset.structure.op_call import tensors_among, with_tensors
from lightning_coreset.structure.views import same_view
from lightning_coreset.structure.weak_map import IdentityWeakMap
from lightning_coreset.verification.both_versions import chooses_alike, is_plain, run_both, tensors_written
from lightning_coreset.verification.data_attribute import SharedData
from lightning_coreset.verification.kept_only import reduced_over
from lightning_coreset.verification.layers_of_modes import Proceed, run
from lightning_coreset.verification.made_weights import view_of
from lightning_coreset.verification.standardised import StandardisedWeights

_EMBEDDING = torch.ops.aten.embedding
_LINEAR = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})
_SMALL = 1 << 12
"""Elements of a second version that is kept: of biases and of the parameters of norms, which are many and tiny."""


class TwinRun(DispatchMode):
    """Runs every operation a second time on the twins of its tensors, where these have any.

    The code of the network sees the results of the first run only.

    Args:
        twins: Parameters, each with a function that makes its second version, of the same layout. That of a large one
            is made whenever the parameter is used, and not kept: those of a whole network would take its memory once
            more.
        looked_up: Weights that an embedding may look up, each with a function that makes both versions for it. Where a
            head is tied, what the head multiplies with has zeros in removed channels; what is looked up has not.
        layouts: How removed channels lie along the dimensions of tensors, as masks.
        standardised: Weights over whose columns statistics may be taken, each without numbers in removed ones.
        columns: Of matrices among the parameters, in which columns the second version differs, as masks.
    """

    def __init__(
        self,
        twins: Iterable[tuple[Tensor, Callable[[], Tensor]]],
        looked_up: Iterable[tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]],
        layouts: Iterable[Tensor] = (),
        standardised: Iterable[tuple[Tensor, Tensor]] = (),
        columns: Iterable[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__()
        self._columns: IdentityWeakMap[Tensor] = IdentityWeakMap()
        for tensor, mask in columns:
            self._columns[tensor] = mask
        self._standardised = StandardisedWeights(standardised)
        self._layouts = tuple(layouts)
        self._twins: IdentityWeakMap[Tensor] = IdentityWeakMap(forgets=True)
        self._looked_up: IdentityWeakMap[Callable[[], tuple[Tensor, Tensor]]] = IdentityWeakMap()
        self._makers: IdentityWeakMap[Callable[[], Tensor]] = IdentityWeakMap()
        self._small: IdentityWeakMap[Tensor] = IdentityWeakMap()  # of these, small versions that were made; only read
        for tensor, make in twins:
            self._makers[tensor] = make
        self._new: list[Tensor] = []  # tensors that got a twin to keep when they were written into
        self._assigned: list[tuple[Tensor, Tensor | None]] = []  # tensors whose data was replaced, with kept twins
        self._alike: set[int] = set()  # of these, those that have no second version any more
        self._data = SharedData(self)
        for tensor, versions in looked_up:
            self._looked_up[tensor] = versions

    def __enter__(self) -> TwinRun:
        """Begin a run."""
        super().__enter__()
        self.begin()
        return self

    def begin(self) -> None:
        """Begin a run: what the network wrote in the one before it has forgotten, and so must the twins."""
        for tensor in self._new:
            self._twins.forget(tensor)
        for tensor, twin in reversed(self._assigned):
            if twin is None:
                self._twins.forget(tensor)
            else:
                self._twins[tensor] = twin
        self._new.clear()
        self._assigned.clear()
        self._alike.clear()
        self._data.__enter__()

    def close(self) -> None:
        """Let go of all twins, which the modes of torch would keep as long as this one is in a cycle of references."""
        for held in (self._twins, self._makers, self._small, self._looked_up, self._new, self._assigned):
            held.clear()

    def twin(self, tensor: Tensor) -> Tensor | None:
        """The tensor in the second run; ``None`` where the runs do not differ."""
        known = self._own(tensor)
        base = view_base(tensor) if known is None else None
        twin = self._own(base) if base is not None else None
        # A view may be older than the twin of what it shows.
        return known if base is None or twin is None else same_view(tensor, base, twin)

    def _own(self, tensor: Tensor) -> Tensor | None:
        """The twin of a tensor itself: kept, or made now."""
        known = self._twins.get(tensor)
        if known is not None or id(tensor) in self._alike:
            return known
        known = self._small.get(tensor)
        if known is None:
            known = self._made(tensor)
            # Some operators write into buffers without saying so, as batch norm into running statistics.
            if known is not None and known.numel() <= _SMALL and isinstance(tensor, nn.Parameter):
                self._small[tensor] = known
        return known

    def _made(self, tensor: Tensor) -> Tensor | None:
        """The second version of a parameter, made anew."""
        make = self._makers.get(tensor)
        return None if make is None else make()

    def share_data(self, data: Tensor, tensor: Tensor) -> None:
        """What ``tensor.data`` gave has the data of the tensor's twin for its twin."""
        self._keep(tensor)  # it may be written into
        twin = self.twin(tensor)
        if twin is not None:
            self._twins[data] = twin.data

    def assign_data(self, tensor: Tensor, data: Tensor) -> None:
        """``tensor.data = data``: the twin is that of the new data from now on, for this run."""
        self._assigned.append((tensor, self._twins.get(tensor)))
        twin = self.twin(data)
        if twin is None:
            self._twins.forget(tensor)
            self._alike.add(id(tensor))
        else:
            self._twins[tensor] = twin

    def end(self) -> None:
        """End a run."""
        self._data.__exit__(None, None, None)

    def __exit__(self, *exception: Any) -> None:
        """End a run."""
        self.end()
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and its twin."""
        return self.operation(func, args, kwargs or {}, run)

    def operation(self, func: Any, args: Any, kwargs: Any, proceed: Proceed) -> Any:
        """Run the operation, and its twin."""
        versions = self._looked_up.get(args[0]) if getattr(func, "overloadpacket", None) is _EMBEDDING else None
        if versions is not None:
            result, other = (proceed(func, (version, *args[1:]), kwargs) for version in versions())
            self._twins[result] = other
            return result
        tensors = tensors_among((*args, *kwargs.values()))
        twins = {id(one): self.twin(one) for one in tensors}
        of_torch = hasattr(func, "overloadpacket")
        standardised = of_torch and not func.is_view and self._standardised.has(tensors)
        if not of_torch or not (standardised or any(twin is not None for twin in twins.values())):
            return proceed(func, args, kwargs)
        for written in tensors_written(func, args, kwargs):
            if twins[id(written)] is None:
                twins[id(written)] = self._new_twin(written)
            else:
                self._keep(written)
                twins[id(written)] = self.twin(written)

        def second(one: Tensor) -> Tensor:
            twin = twins[id(one)]
            return one if twin is None else twin

        other_args, other_kwargs = with_tensors(args, second), with_tensors(kwargs, second)
        if not standardised and (is_plain(func) or self._sums_over_all(func, args, twins)):
            result, other = proceed(func, args, kwargs), proceed(func, other_args, other_kwargs)
            if chooses_alike(func, (args, kwargs), (other_args, other_kwargs), result):
                other = result
        else:
            call = OpCall.read(func, args, kwargs, [], None)
            its = OpCall.read(func, other_args, other_kwargs, [], None)
            if standardised:
                return self._run_standardised(call, its, proceed)
            result, other = run_both(call, its, self._layouts, proceed)
        self._pair(result, other)
        return result

    def _sums_over_all(self, func: Any, args: Any, twins: dict[int, Tensor | None]) -> bool:
        """Whether it is a linear layer that reads no removed channels of both its input and its weight.

        To see that by the weight takes as long as the layer, and the memory of both of its versions.
        """
        if func not in _LINEAR:
            return False
        inputs, matrix = args[-2:]
        weight = view_base(matrix)
        mask = None if weight is None else self._columns.get(weight)
        if weight is None or mask is None or weight in self._twins or id(weight) in self._alike:
            return False  # the network may have written into it
        twin = twins[id(inputs)]
        if twin is None or view_of(matrix) != view_of(weight.t()) or inputs.shape != twin.shape:
            return twin is None
        return not bool((inputs != twin).any(0)[mask.to(inputs.device)].any())

    def _run_standardised(self, call: OpCall, its: OpCall, proceed: Proceed) -> Any:
        """A call on a weight that is standardised: it makes a weight of it, takes a statistic, or uses it."""
        known = self._standardised
        kept = known.columns(call)
        if kept:
            result, other = reduced_over(call, kept), reduced_over(its, kept)
            if tensors_among((result,))[0].shape == call.args[0].shape:  # normalised, not reduced
                known.note_like(call.args[0], result[0])
        elif known.makes_weights(call):
            result, other = run_both(call, its, (), proceed)
            known.note(call, result)
        else:
            tensors = tensors_among((call.args, dict(call.kwargs)))
            one, two = (self._used(each, tensors) for each in (call, its))
            result, other = run_both(one, two, self._layouts, proceed)
        self._pair(result, other)
        return result

    def _used(self, call: OpCall, originals: Sequence[Tensor]) -> OpCall:
        """A call with weights that are standardised as they are used."""
        args, kwargs = self._standardised.used((call.args, dict(call.kwargs)), originals)
        return OpCall.read(call.function, args, kwargs, [], None)

    def _keep(self, tensor: Tensor) -> None:
        """Keep a twin that is made anew for every use, for this run: it is about to be written into."""
        base = view_base(tensor)
        whole = tensor if base is None else base
        twin = None if whole in self._twins or id(whole) in self._alike else self._made(whole)
        if twin is not None:
            self._twins[whole] = twin
            self._new.append(whole)

    def _new_twin(self, tensor: Tensor) -> Tensor:
        """A twin for a tensor that is about to be written into, and with it for all that it is a view of."""
        base = view_base(tensor)
        whole = tensor if base is None else base
        self._twins[whole] = copy_of_layout(whole)
        self._new.append(whole)
        twin = self.twin(tensor)
        assert twin is not None
        return twin

    def _pair(self, result: Any, other: Any) -> None:
        if isinstance(result, Tensor) and isinstance(other, Tensor):
            if other is not result:
                self._twins[result] = other
        elif isinstance(result, (tuple, list)) and isinstance(other, (tuple, list)):
            for one, its in zip(result, other, strict=True):
                self._pair(one, its)


def copy_of_layout(tensor: Tensor) -> Tensor:
    """A copy with the same strides, so that views of the tensor are views of its copy as well."""
    if tensor.is_contiguous():
        return tensor.clone()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
