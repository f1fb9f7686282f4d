"""Lightning is there twice: as the package ``lightning`` and as ``pytorch_lightning``."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException


def check_package(trainer: pl.Trainer) -> None:
    """Refuse a Trainer of ``pytorch_lightning``.

    It would call the hooks of any object. But strategies, loggers and other callbacks would be told by classes of
    ``lightning``, and none of them would be recognised.

    Args:
        trainer: The Trainer, whatever it is.

    Raises:
        MisconfigurationException: If its class, or one that it inherits from, comes from ``pytorch_lightning``.
    """
    origins = {kind.__module__.partition(".")[0] for kind in type(trainer).__mro__}
    if "pytorch_lightning" in origins:
        raise MisconfigurationException(
            "Expected a Trainer of the package lightning but got one of pytorch_lightning: two copies of one library, "
            "neither of which takes the other's classes for its own. Replace `import pytorch_lightning as pl` by "
            "`import lightning.pytorch as pl` for the Trainer, the LightningModule and all callbacks and loggers; "
            "nothing else has to change."
        )
