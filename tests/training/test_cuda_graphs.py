"""A captured network is refused; that torch leaves the trace that is looked for is tested in test_gpu.py."""

import pytest
from fitting import Classifier, make_loader, make_trainer, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_coreset import CoresetPruningCallback


def make_graphed_callables(module):
    """Does to a module what torch's function of this name does, beside capturing."""

    def make_graphed_forward(forward):
        def new_fwd(*args):
            return forward(*args)

        return new_fwd

    module.forward = make_graphed_forward(module.forward)
    return module


@pytest.mark.parametrize("captured", ["net", "net.2"])
def test_a_captured_network_is_refused_before_it_is_pruned(captured):
    module = Classifier()
    make_graphed_callables(module.get_submodule(captured))
    trainer = make_trainer(CoresetPruningCallback(schedule={0: 0.4}, verbose=False), max_epochs=1)

    with pytest.raises(MisconfigurationException, match=rf"but got '{captured}', .*Capture it after training"):
        trainer.fit(module, make_loader(8))

    assert widths(module)["net.0"] == (8, 32)


def test_a_module_that_was_given_another_forward_by_hand_is_not():
    module = Classifier()
    module.net.forward = module.net.forward
    trainer = make_trainer(CoresetPruningCallback(schedule={0: 0.4}, verbose=False), max_epochs=1)

    trainer.fit(module, make_loader(8))

    assert widths(module)["net.0"][1] < 32
