"""What stands between a producer and a consumer: one step for each operation that changes values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from lightning_coreset.expressions import Expression


class StepKind(str, Enum):
    """Steps that stand for more than the operator of their name; all others bear the name of their operator.

    They are strings, so that a step is compared with ``==`` whichever it is.
    """

    SUM = "sum"
    """Different layers' channels are added, as on a residual stream."""
    MIXED = "mixed"
    """Values that came along two ways, with different steps, meet."""
    WRITTEN_OUT = "an activation that is written out"
    """Several element-wise operations that are together a function of every element alone, ``Step.expression``."""
    MAX_POOL = "max_pool"
    """The maximum over positions, as a pooling or a reduction takes it."""
    POSITIONS = "a sum over positions"
    """Positions are added up with fixed weights. The only argument is the sum of these weights if none is negative,
    such as the number of positions that ``sum`` adds up; ``None`` where the weights are not known."""
    BATCH_NORM = "batch_norm"
    """A BatchNorm by the running statistics and weights that ``Step.norm`` names."""
    NORMALIZATION = "normalisation"
    """A BatchNorm whose tensors are not parameters and buffers as they are, or that does not use running statistics; or
    a statistic over channels, on its way to normalise them."""
    LAYER_NORM = "layer_norm"
    """A LayerNorm or RMSNorm, over the channels or over other dimensions."""
    GROUP_NORM = "group_norm"
    """A GroupNorm."""
    DEPTHWISE = "depthwise"
    """A depthwise convolution, by the name of its weight."""
    GLU = "glu"
    """Channels times the gate of other channels."""
    RECURRENT = "a recurrent layer"
    """Units of a recurrent layer, made of inputs and of what the units were a step before."""
    DERIVED_WEIGHT = "derived weight"
    """A layer whose weight is computed of parameters, or whose product is scaled."""
    DERIVATIVE = "derivative"
    """The network differentiates something with respect to the channels."""
    WRITTEN = "a write in place"
    """The values were changed through another view of the same memory."""

    __str__ = str.__str__
    __format__ = str.__format__


@dataclass(frozen=True)
class Norm:
    """A BatchNorm met on a path: the qualified names of its tensors, ``None`` where it has none."""

    weight: str | None
    bias: str | None
    running_mean: str | None
    running_var: str | None
    eps: float


@dataclass(frozen=True)
class Step:
    """One operation between a producer and a consumer: ``Step("leaky_relu", (0.2,))``.

    Movement (views, concatenation), dropout, casts between floating types and averages of positions leave no step: for
    inputs of bounded norm a channel's average is no larger than the channel.

    Attributes:
        op: A ``StepKind``, or the operator: one of aten's by its bare name (``"relu"``), one of any other namespace by
            its qualified name (``"house::relu"``).
        args: Its arguments other than tensors, in the order of its schema.
        norm: The BatchNorm, for ``StepKind.BATCH_NORM``.
        expression: The function that an element-wise operation, or several in place of which this step stands, computes
            of every element alone; ``None`` where none is known. It says nothing of operators outside of aten.
    """

    op: str
    args: tuple[float | str | None, ...] = ()
    norm: Norm | None = None
    expression: Expression | None = None
