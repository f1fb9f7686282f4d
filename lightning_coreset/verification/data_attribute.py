"""``tensor.data``, which no dispatch mode sees: how momentum encoders are often updated in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from lightning_coreset.verification.twin import TwinRun


class SharedData(TorchFunctionMode):
    """Lets the twin of ``tensor.data`` be the data of the tensor's twin, read or assigned.

    Args:
        run: The run in two versions.
    """

    def __init__(self, run: TwinRun) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; then see to the twins."""
        result = func(*args, **(kwargs or {}))
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            self._run.share_data(result, args[0])
        elif func == Tensor.data.__set__:  # type: ignore[attr-defined]
            self._run.assign_data(args[0], args[1])
        return result
