"""Rules that name parts of a network: which modules a rule means, and which groups of channels are theirs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from lightning_coreset.structure import ChannelGroup

Rule: TypeAlias = str | re.Pattern[str] | type[nn.Module]
"""A shell pattern of qualified module names, a regular expression that matches the whole name, or a module type."""

_NUMBER = re.compile(r"#\d+$")
"""What a group's name ends with where one module makes several groups."""


def as_rules(rules: Sequence[Rule], argument: str) -> tuple[Rule, ...]:
    """Check a sequence of rules.

    Args:
        rules: What a user gave.
        argument: Its name, for the message.

    Raises:
        ValueError: If it is a lone rule, or holds something that is none.

    Example:
        >>> as_rules(["features.*", nn.Linear], "ignore")
        ('features.*', <class 'torch.nn.modules.linear.Linear'>)
        >>> as_rules("features.*", "ignore")
        Traceback (most recent call last):
            ...
        ValueError: Expected ignore to be a sequence of rules but got the single rule 'features.*'. Write \
ignore=['features.*'].
    """
    if is_rule(rules):  # a string's letters would be taken for patterns
        raise ValueError(
            f"Expected {argument} to be a sequence of rules but got the single rule {format_rule(rules)}. "
            f"Write {argument}=[{format_rule(rules)}]."
        )
    if isinstance(rules, Mapping):  # its values would be dropped without a word
        raise ValueError(
            f"Expected {argument} to be a sequence of rules but got the mapping {rules!r}. Write {argument}=[...]; "
            "numbers for layers are given as pruning_ratio={rule: ratio}."
        )
    try:
        listed = tuple(rules)
    except TypeError:
        raise ValueError(f"Expected {argument} to be a sequence of rules but got {rules!r}.") from None
    for rule in listed:
        check_rule(rule, argument)
    return listed


def check_rule(rule: object, argument: str) -> None:
    """Raise ``ValueError`` unless it is a pattern, a regular expression or a module type."""
    if not is_rule(rule):
        raise ValueError(
            f"Expected every rule of {argument} to be a shell pattern of module names, a compiled regular expression "
            f"or a type of modules but got {rule!r}."
        )


def is_rule(rule: object) -> bool:
    """Whether it is a pattern, a regular expression or a module type."""
    if isinstance(rule, re.Pattern):
        return isinstance(rule.pattern, str)
    return isinstance(rule, str) or (inspect.isclass(rule) and issubclass(rule, nn.Module))


def format_rule(rule: Any) -> str:
    """A rule as a user would write it: ``'conv*'``, ``re.compile('conv.')``, ``Conv2d``."""
    return rule.__name__ if inspect.isclass(rule) else repr(rule)


def matches(rule: Rule, name: str, module: nn.Module | None = None) -> bool:
    """Whether a rule means what is called ``name``, or a module of that kind.

    Example:
        >>> matches("features.*", "features.0"), matches(re.compile("feat"), "features"), matches(nn.Conv2d, "stem")
        (True, False, False)
    """
    if isinstance(rule, str):
        return fnmatchcase(name, rule)
    if isinstance(rule, re.Pattern):
        return rule.fullmatch(name) is not None
    return isinstance(module, rule)


def check_matches(model: nn.Module, rules: Sequence[Rule], argument: str, *, second_names: bool = False) -> None:
    """Raise ``ValueError`` if a rule names nothing in a model.

    Args:
        model: The network.
        rules: The rules.
        argument: Where they come from, for the message.
        second_names: Whether a module that the model has under several names may be named by each.
    """
    if not rules:
        return
    modules = dict(model.named_modules(remove_duplicate=not second_names))
    # Parameters with a name of their own make channels without a layer around them.
    own = [name for name, _ in model.named_parameters() if "." not in name or not name.endswith((".weight", ".bias"))]
    names = [name for name in (*modules, *own) if name]
    for rule in rules:
        plain = _NUMBER.sub("", rule) if isinstance(rule, str) else rule
        if any(matches(plain, name, modules.get(name)) for name in names) or matches(rule, "", model):
            continue
        if isinstance(rule, type):
            kinds = sorted({type(module).__name__ for module in modules.values()})
            raise ValueError(
                f"Expected every rule of {argument} to name a module but no module is a {format_rule(rule)}. "
                f"The model has modules of the types {', '.join(kinds[:12])}."
            )
        text = rule if isinstance(rule, str) else rule.pattern
        close = get_close_matches(re.sub(r"[*?\[\]\\^$()+|]", "", text), names, n=3, cutoff=0.3) or names[:3]
        raise ValueError(
            f"Expected every rule of {argument} to match a module name but {format_rule(rule)} matches none. "
            f"Module names look like {close}; model.named_modules() lists them all."
        )


class RuleMatcher:
    """Who makes the channels of a group: the modules by which rules name it.

    Args:
        model: The network.

    Attributes:
        model: The same.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = dict(model.named_modules())

    def named(self, rules: Sequence[Rule], group: ChannelGroup) -> Iterator[tuple[Rule, str]]:
        """The rules that name a group, each with the module (or own parameter) through which it does."""
        makers = self._makers(group)
        for rule in rules:
            name = next((name for name, module in makers.items() if matches(rule, name, module)), None)
            if name is not None:
                yield rule, name

    def modules(self, rule: Rule) -> list[str]:
        """Names of all modules that a rule means, whether they make channels or not."""
        return [name for name, module in self._modules.items() if name and matches(rule, name, module)]

    def means(self, rule: Rule, layer: str) -> bool:
        """Whether a rule means one layer, by the name under which it is refused."""
        return matches(rule, layer, self._modules.get(layer))

    def _makers(self, group: ChannelGroup) -> Mapping[str, nn.Module | None]:
        makers: dict[str, nn.Module | None] = {}
        weights = {norm.direction: norm.weight for norm in group.weight_norms}
        for member in group.by_role("producer"):
            name = weights.get(member.name, member.name)
            module, _, parameter = name.rpartition(".")
            if module:
                makers[module] = self._modules.get(module)
            if not module or parameter != "weight":
                makers[name] = self._modules.get(module)
        # The group's own name distinguishes several groups of one module, and is the only one where its producer is a
        # consumer, too.
        base = _NUMBER.sub("", group.name)
        makers[group.name] = self._modules.get(base, self._modules.get(base.rpartition(".")[0]))
        return makers
