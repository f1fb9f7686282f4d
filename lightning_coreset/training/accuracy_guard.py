"""How much accuracy an event may cost, and what happens if it costs more."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeAlias, get_args

from lightning_coreset._arguments import check_left_alone, defaults_of, is_default, is_number

OnFailure: TypeAlias = Literal["stop", "halve"]


@dataclass(frozen=True)
class AccuracyGuard:
    """The guard: an event that costs too much accuracy is taken back, exactly.

    ``CoresetPruningCallback(guard=AccuracyGuard(0.02, recover_epochs=3))`` is the same as
    ``CoresetPruningCallback(max_drop=0.02, recover_epochs=3)``.

    Attributes:
        max_drop: How far the accuracy may be below the best before the first event, in its own units (0.01 is a point
            of accuracy). An event is taken back if training does not bring the accuracy back there within
            ``recover_epochs``; until then no other event happens.
        recover_epochs: Epochs of training that an event has for recovery; a float may be a part of one.
        on_failure: After an event was taken back, ``"stop"`` ends pruning and ``"halve"`` goes on with half its step.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> from lightning_coreset import AccuracyGuard, CoresetPruningCallback
        >>> careful = AccuracyGuard(0.01, on_failure="halve")
        >>> pruning = CoresetPruningCallback(0.8, guard=careful)
        >>> careful
        AccuracyGuard(max_drop=0.01, recover_epochs=2, on_failure='halve')
    """

    max_drop: float
    _: KW_ONLY
    recover_epochs: int | float = 2
    on_failure: OnFailure = "stop"

    def __post_init__(self) -> None:
        if not (is_number(self.max_drop) and self.max_drop >= 0):
            raise ValueError(f"Expected `max_drop` to be a non-negative number but got {self.max_drop!r}.")
        if not (is_number(self.recover_epochs) and self.recover_epochs > 0):
            raise ValueError(f"Expected `recover_epochs` to be a positive number but got {self.recover_epochs!r}.")
        if self.on_failure not in get_args(OnFailure):
            raise ValueError(f"Expected `on_failure` to be 'stop' or 'halve' but got {self.on_failure!r}.")


def as_guard(guard: AccuracyGuard | None, max_drop: float | None, **flat: Any) -> AccuracyGuard | None:
    """A guard of the callback's flat arguments, or the one that was given instead of them; ``None`` if there is none.

    Args:
        guard: What was given as ``guard``.
        max_drop: What turns the guard on otherwise.
        flat: The other arguments by name.

    Raises:
        ValueError: If an argument is out of its range, is given without ``max_drop``, or beside the object that has it.
    """
    defaults = defaults_of(AccuracyGuard)
    if guard is not None:
        if not isinstance(guard, AccuracyGuard):
            raise ValueError(
                f"Expected guard to be an AccuracyGuard but got {guard!r}. Write guard=AccuracyGuard(max_drop=0.01)."
            )
        check_left_alone("guard", guard, {"max_drop": max_drop, **flat}, {"max_drop": None, **defaults})
        return guard
    if max_drop is not None:
        return AccuracyGuard(max_drop, **flat)
    idle = {name: value for name, value in flat.items() if not is_default(value, defaults[name])}
    if idle:
        raise ValueError(
            f"Expected {' and '.join(idle)} to be left alone without max_drop, which turns the guard on, but got "
            f"{', '.join(f'{name}={value!r}' for name, value in idle.items())}. Give max_drop, such as max_drop=0.01 "
            "for a point of accuracy, or leave them out."
        )
    return None
