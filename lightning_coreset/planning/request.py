"""What is asked of a plan, checked as far as it can be without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, get_args

from torch import nn

from lightning_coreset._arguments import is_number, is_whole_number
from lightning_coreset._calls import OLD_ARGUMENTS
from lightning_coreset.latency import Latency, LatencyLike, LatencyTable, NetworkLatency, as_latency
from lightning_coreset.methods import Method, Reconstruction, as_method
from lightning_coreset.planning.cost_model import Unit
from lightning_coreset.planning.layer_rules import Rule, as_rules, check_matches, check_rule, format_rule
from lightning_coreset.structure import Heads

Allocation: TypeAlias = Literal["uniform", "error", "global"]

if TYPE_CHECKING:
    from collections.abc import Iterable

    class RatioByRule(Protocol):
        """A mapping from rules to fractions; a type checker takes ``dict[str, float]`` for one, too.

        For it, ``dict[str, float]`` is no ``Mapping[Rule, float]``: keys of a mapping have to be of exactly the type.
        """

        def keys(self) -> Iterable[Rule]:
            """The rules."""
            ...

        def __getitem__(self, rule: Any, /) -> float:
            """The fraction of a rule."""
            ...

else:
    RatioByRule = Mapping[Rule, float]

PruningRatio: TypeAlias = float | RatioByRule

DEFAULT_RATIO = 0.5
"""Of the model, where no ratio is given; less goes where half is not sensible."""


@dataclass(frozen=True)
class Request:
    """What is asked of a plan.

    A *channel* below is one of a layer's output channels. Attention heads, and the groups of grouped convolutions, go
    as a whole: one class of such a group is several channels.

    Attributes:
        pruning_ratio: A float is the fraction of the original model's ``unit`` that shall be gone, in [0, 1). A mapping
            from rules to floats says it layer by layer: every group that a rule names loses this fraction of its own
            original channels, and groups that no rule names stay whole. The unit is then only that of the
            plan's totals.
        unit: What is counted: parameters, multiply-accumulates, removable channels or seconds.
        method: How channels are chosen.
        ignore: Rules for layers whose output channels all stay, whatever else names them.
        include_residual: Whether channels may go that are coupled by residual additions or normalised (LayerNorm,
            RMSNorm and the like).
        heads: Whether attention loses whole heads, or dimensions within all of its heads.
        seed: Seed of the random choices.
        input_radius: Bound on the norm of the network's own input as its first layer sees it, for certificates.
        only: Rules for the layers whose output channels may go; all may if there are none.
        allocation: How a float is shared out among the groups. ``"uniform"``: all lose the same fraction of their
            original channels. ``"error"``: channels go where the expected error of the next layer, as a part of its
            signal, grows least for each unit removed. ``"global"``: by one ranking over all groups (``Magnitude`` and
            ``Random``).
        round_to: Groups are cut to multiples of so many channels, where that is possible at all: a group with fewer
            channels stays whole.
        min_channels: No group is cut to fewer channels.
        max_layer_ratio: No group loses more than this fraction of its original channels, in (0, 1].
        by_default: Whether the ratio is nobody's wish, so that less may go where half is not sensible.
        latency: What tells the seconds of layers: a table or a function; by default they are measured.
        network_latency: What it says about the network, once that is known.

    Raises:
        ValueError: If a value is of another type or out of its range, or two of them contradict each other.

    Example:
        >>> Request(0.5, unit="macs", ignore=["stem*"], round_to=8).scaled(0.5).pruning_ratio
        0.25
        >>> Request({"features.*": 0.7, nn.Linear: 0.3}).target
        0.7
    """

    pruning_ratio: float | Mapping[Rule, float]
    unit: Unit = "params"
    method: Method = field(default_factory=Reconstruction)
    ignore: Sequence[Rule] = ()
    include_residual: bool = False
    seed: int = 0
    input_radius: float | None = None
    _: KW_ONLY
    only: Sequence[Rule] = ()
    allocation: Allocation = "uniform"
    round_to: int = 1
    min_channels: int = 1
    max_layer_ratio: float = 1.0
    heads: Heads = "whole"
    by_default: bool = False
    latency: LatencyLike | None = None
    network_latency: NetworkLatency | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Request:
        """The request that the arguments of a public function make; those that are no fields of it are left out.

        Args:
            arguments: By name. Without a ``pruning_ratio``, or with ``None``, it is the default; ``method`` may be the
                name of one.

        Example:
            >>> request = Request.of({"pruning_ratio": None, "method": "random", "unit": "macs", "verbose": True})
            >>> request.pruning_ratio, request.by_default, request.method, request.unit
            (0.5, True, Random(), 'macs')
        """
        given = {one.name: arguments[one.name] for one in fields(cls) if one.name in arguments}
        ratio, method = given.pop("pruning_ratio", None), given.pop("method", "reconstruction")
        by_default = ratio is None
        return cls(DEFAULT_RATIO if by_default else ratio, method=as_method(method), by_default=by_default, **given)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pruning_ratio", _checked_ratio(self.pruning_ratio))
        object.__setattr__(self, "ignore", as_rules(self.ignore, "ignore"))
        object.__setattr__(self, "only", as_rules(self.only, "only"))
        if self.unit not in get_args(Unit):
            raise ValueError(f"Expected unit to be 'params', 'macs', 'channels' or 'latency' but got {self.unit!r}.")
        object.__setattr__(self, "latency", as_latency(self.latency, self.unit))
        if self.allocation not in get_args(Allocation):
            raise ValueError(f"Expected allocation to be 'uniform', 'error' or 'global' but got {self.allocation!r}.")
        check_flags(include_residual=self.include_residual)
        object.__setattr__(self, "seed", _checked_seed(self.seed))
        if self.heads not in get_args(Heads):
            raise ValueError(f"Expected heads to be 'whole' or 'within' but got {self.heads!r}.")
        for name in ("round_to", "min_channels"):
            value = getattr(self, name)
            if not is_whole_number(value) or value < 1:
                raise ValueError(f"Expected {name} to be a positive integer, of channels, but got {value!r}.")
        if not is_number(self.max_layer_ratio) or not 0 < self.max_layer_ratio <= 1:
            raise ValueError(f"Expected max_layer_ratio to be a number in (0, 1] but got {self.max_layer_ratio!r}.")
        radius = self.input_radius
        if radius is not None and not (is_number(radius) and radius > 0):
            raise ValueError(f"Expected input_radius to be a positive number but got {radius!r}.")
        self._check_harmony()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what version 0.1 has pickled, under the name that an option had then, as well."""
        self.__dict__.update({OLD_ARGUMENTS.get(name, name): value for name, value in state.items()})

    def _check_harmony(self) -> None:
        """Refuse options that would have no effect in combination with others."""
        if self.allocation == "global" and not self.method.ranks_channels:
            raise ValueError(
                "Expected a method that ranks channels, such as 'magnitude' or 'random', with allocation='global' but "
                f"got {type(self.method).__name__}. With it, use allocation='error'."
            )
        if isinstance(self.pruning_ratio, Mapping) and self.allocation != "uniform":
            raise ValueError(
                f"Expected pruning_ratio to be a number with allocation={self.allocation!r} but got a mapping, which "
                "says itself how much each group loses."
            )
        if self.method.chooses_sizes:
            given = [name for name, value in _SIZE_OPTIONS.items() if getattr(self, name) != value]
            if given:
                raise ValueError(
                    f"Expected {', '.join(given)} to be left alone with {type(self.method).__name__}(...), which "
                    "chooses all sizes by itself."
                )

    @property
    def timing(self) -> LatencyTable | Latency | None:
        """What tells the seconds of layers; ``None`` if they are to be measured."""
        return cast("LatencyTable | Latency | None", self.latency)  # a file was read

    @property
    def target(self) -> float:
        """The pruning ratio as one number: the largest of the rules' where there are several."""
        ratio = self.pruning_ratio
        return max(ratio.values()) if isinstance(ratio, Mapping) else ratio

    def check_trial(self, self_check: bool) -> None:
        """Refuse to do without the self-check where it decides what is pruned.

        Raises:
            ValueError: For dimensions within heads without it.
        """
        if self.heads == "within" and not self_check:
            raise ValueError(
                "Expected self_check=True with heads='within' but got self_check=False. Only the self-check can tell "
                "by which numbers a network views its heads, and so which dimensions have to go together."
            )

    def scaled(self, fraction: float, *, seed: int | None = None) -> Request:
        """The same request on its way: at a fraction of every ratio.

        Args:
            fraction: From 0 (nothing is removed) to 1 (all that is asked).
            seed: Another seed, if any.
        """
        ratio = self.pruning_ratio
        scaled = (
            {rule: part * fraction for rule, part in ratio.items()} if isinstance(ratio, Mapping) else ratio * fraction
        )
        return replace(self, pruning_ratio=scaled, seed=self.seed if seed is None else seed)

    def limits(self) -> str:
        """The limits on sizes of groups that are set, as a user wrote them, such as ``"min_channels=4"``."""
        free = {"max_layer_ratio": 1.0, "min_channels": 1, "round_to": 1}
        return " and ".join(f"{name}={getattr(self, name):g}" for name in free if getattr(self, name) != free[name])

    def check_rules(self, model: nn.Module) -> None:
        """Raise ``ValueError`` if a rule matches nothing in a model."""
        check_matches(model, self.ignore, "ignore")
        check_matches(model, self.only, "only")
        if isinstance(self.pruning_ratio, Mapping):
            check_matches(model, tuple(self.pruning_ratio), "pruning_ratio")


_SIZE_OPTIONS = {"allocation": "uniform", "round_to": 1, "min_channels": 1, "max_layer_ratio": 1.0}


def check_flags(**flags: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ValueError: For the first such argument.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"Expected {name} to be True or False but got {value!r}.")


def _checked_seed(seed: int) -> int:
    # What torch's generators take, with room for one seed for each event.
    if not is_whole_number(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"Expected seed to be an integer of at least 0 and below 2**63 but got {seed!r}.")
    return int(seed)


def _checked_ratio(ratio: float | Mapping[Rule, float]) -> float | Mapping[Rule, float]:
    if not isinstance(ratio, Mapping):
        return _checked_fraction(ratio, "pruning_ratio", "the original model")
    if not ratio:
        raise ValueError("Expected pruning_ratio to have at least one rule but got an empty mapping.")
    for rule in ratio:
        check_rule(rule, "pruning_ratio")
    return {
        rule: _checked_fraction(part, f"pruning_ratio[{format_rule(rule)}]", "each group's channels")
        for rule, part in ratio.items()
    }


def _checked_fraction(ratio: float, name: str, whole: str) -> float:
    if not is_number(ratio) or not 0 <= ratio < 1:
        raise ValueError(
            f"Expected {name} to be a number in [0, 1), the fraction of {whole} that goes, but got {ratio!r}."
        )
    return float(ratio)
