"""Every network of the zoo runs on inputs made up for it, or they are refused in words."""

from __future__ import annotations

import pytest
import torch
from breadth import some_of
from zoo import THIRD_PARTY, ZOO
from zoo.oracle import build
from zoo.running import call, results

from lightning_coreset.probes import ProbesUnavailable, synthetic_inputs
from lightning_coreset.structure import Example

REFUSED = {"traps/one_hot_embedding": "only what is taken from the example"}
FAST = ("classic/resnet_option_a", "classic/gcn", "classic/Yolo", "classic/DeepFm", "hf/vilt", *REFUSED)


@pytest.mark.parametrize("name", some_of(ZOO, *FAST))
@pytest.mark.filterwarnings(*THIRD_PARTY)
def test_a_network_runs_on_what_is_made_up_for_it(name):
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
    entry = ZOO[name]
    model = build(entry).eval()
    example = Example.of(entry.inputs(torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    if name in REFUSED:
        with pytest.raises(ProbesUnavailable, match=REFUSED[name]):
            synthetic_inputs(model, example, 5, generator)
        return

    probes = synthetic_inputs(model, example, 5, generator)

    assert probes.batch_size in (5, example.batch_size)
    with torch.no_grad():
        outputs = results(call(model, probes.inputs))
    assert outputs
    assert all(one.isfinite().all() for one in outputs if one.is_floating_point() or one.is_complex())
