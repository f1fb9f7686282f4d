"""Why groups fail, in words."""

from __future__ import annotations

LEAK = "its channels reach further"
"""The beginning of the reason that no number of the network explains."""


def leaks(difference: str) -> str:
    """Where outputs depend on removed channels whose consumers are zero."""
    return f"its channels reach further than its consumers ({difference})"


def raised_with_other_values(error: Exception) -> str:
    """Where the network with all channels raises an error."""
    return (
        "with other values in some of its channels the network does not run "
        f"({type(error).__name__}: {first_line(error)}), so that their removal cannot be tried"
    )


def raised_without_channels(error: Exception) -> str:
    """Where the network without some channels raises an error."""
    return (
        f"without some of its channels the network does not run ({type(error).__name__}: {first_line(error)}); "
        "a width may be written as a number in its code, or kept in an attribute (see register_module)"
    )


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return str(error).strip().partition("\n")[0][:160]
