"""ATen's core operators, those that torch says all others are made of: each has a rule, or a reason to have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset.structure import analyse
from lightning_coreset.structure.registry import find_rule

aten = torch.ops.aten

REFUSED = {
    "makes a tensor of nothing": "arange empty empty_strided full rand randn randperm scalar_tensor",
    "reads a size": "sym_is_contiguous sym_numel sym_storage_offset sym_stride",
    "is a derivative": """
        _adaptive_avg_pool2d_backward avg_pool2d_backward convolution_backward embedding_dense_backward
        max_pool2d_with_indices_backward native_group_norm_backward native_layer_norm_backward
    """,
    "has a result whose size depends on values": "nonzero",
    "compares all rows over all channels": "_pdist_forward",
    "makes other sizes of the same memory": "resize",
}
"""The core operators without a rule, by the reason."""


def core_operators() -> Iterator[Any]:
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        packet = getattr(aten, name, None) if namespace == "aten" else None
        function = getattr(packet, schema.overload_name or "default", None)
        if torch.Tag.core in getattr(function, "tags", ()):
            yield function


def name_of(function: Any) -> str:
    return function.overloadpacket.__name__.removesuffix("_")


def test_every_core_operator_has_a_rule_or_a_reason_to_have_none() -> None:
    refused = {name for names in REFUSED.values() for name in names.split()}
    functions = list(core_operators())
    assert len({function.overloadpacket for function in functions}) > 150
    new = sorted({name_of(one) for one in functions if find_rule(one) is None} - refused)
    assert not new, (
        f"torch {torch.__version__} has core operators that nothing is known of: {', '.join(new)}. Give each a rule in "
        "lightning_coreset/structure/ops, or a line in REFUSED and a call in CALLS that say why it has none."
    )
    settled = sorted({name_of(one) for one in functions if find_rule(one) is not None} & refused)
    assert not settled, f"these have a rule by now: {', '.join(settled)}"


def of_images(h: Tensor) -> Tensor:
    return h.reshape(3, 4, 2, 1).expand(-1, -1, -1, 2).contiguous()


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "_adaptive_avg_pool2d_backward": lambda h: aten._adaptive_avg_pool2d_backward(of_images(h), of_images(h)),
    "avg_pool2d_backward": lambda h: aten.avg_pool2d_backward(
        of_images(h)[:, :, :1, :1], of_images(h), [2, 2], [2, 2], [0, 0], False, True, None
    ),
    "convolution_backward": lambda h: aten.convolution_backward(
        of_images(h), of_images(h), torch.ones(4, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3
    )[0],
    "embedding_dense_backward": lambda h: aten.embedding_dense_backward(h, torch.arange(3), 8, -1, False),
    "max_pool2d_with_indices_backward": lambda h: aten.max_pool2d_with_indices_backward(
        of_images(h)[:, :, :1, :1].contiguous(),
        of_images(h),
        [2, 2],
        [2, 2],
        [0, 0],
        [1, 1],
        False,
        torch.zeros(3, 4, 1, 1, dtype=torch.int64),
    ),
    "native_group_norm_backward": lambda h: aten.native_group_norm_backward(
        h, h, torch.ones(3, 1), torch.ones(3, 1), None, 3, 8, 1, 1, [True, False, False]
    )[0],
    "native_layer_norm_backward": lambda h: aten.native_layer_norm_backward(
        h, h, [8], torch.ones(3, 1), torch.ones(3, 1), None, None, [True, False, False]
    )[0],
    "nonzero": lambda h: h + aten.nonzero(h).sum(),
    "_pdist_forward": lambda h: aten._pdist_forward(h, 2.0),
    "resize": lambda h: aten.resize(h, [3, 8]),
}
"""Calls of those that something with channels can enter."""


@pytest.mark.parametrize("name", CALLS)
def test_what_enters_an_operator_without_a_rule_stays(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.LazyLinear(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(CALLS[name](self.a(x)).reshape(1, -1))

    network, x = Net(), torch.randn(3, 5)
    network(x)
    structure = analyse(network, x)
    assert not structure.groups
    assert structure.refused["a"].startswith(f"enters an operator without a rule (aten.{name}")


def test_a_call_shows_every_refusal_that_channels_can_meet() -> None:
    takes_none = {*REFUSED["makes a tensor of nothing"].split(), *REFUSED["reads a size"].split()}
    assert {name for names in REFUSED.values() for name in names.split()} - takes_none == set(CALLS)
