"""What a method has to be told about a network that its weights do not say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

MomentsKind: TypeAlias = Literal["auto", "closed_form", "synthetic", "batches"]
"""How moments of channels are found; see :class:`Reconstruction`."""


@dataclass(frozen=True)
class Measures:
    """How a method wants the inputs of layers measured.

    Attributes:
        moments: On what, or whether at all.
        samples: On how many samples.
        probes: What makes synthetic ones; by default their kind decides.
    """

    moments: MomentsKind
    samples: int
    probes: Callable[[Any, Any], Any] | None = None
