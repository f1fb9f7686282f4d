"""What the package says when something goes wrong, read from its source: errors, warnings and reasons.

A message is known here as a *template*: its fixed parts as they stand in the source, with ``{}`` for whatever is filled
in and white space made alike.

- *Errors* are ``raise SomeError(message)``. What is raised again (``raise``, ``raise failure``), what names a missing
  attribute (``AttributeError``) and what no user is told (``NotImplementedError``, ``assert``) are none.
- *Warnings* are calls of ``warn`` and ``rank_zero_warn``.
- *Reasons* stand in other messages and in ``plan.skipped``: what is passed for a parameter called ``reason``, assigned
  to that name or put under a key of ``skipped``, what a function returns that may find no fault (``-> str | None``) or
  is called ``_why``, and what generators yield in words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef

FILLED = "{}"
_UNTOLD = ("AttributeError", "NotImplementedError", "AssertionError")
_WARNING = ("warn", "rank_zero_warn")


@dataclass(frozen=True)
class Message:
    """One message and the function that makes it, as ``planning/rules.py:as_rules``."""

    where: str
    template: str


def plain(text: str) -> str:
    """A template with ``{}`` for all that is filled in, once where it comes several times in a row."""
    return " ".join(re.sub(r"(\{[^{}]*\}|…)(\s*(\{[^{}]*\}|…))*", FILLED, text).split())


class Source:
    """The messages of all modules below a directory."""

    def __init__(self, root: Path) -> None:
        self._modules = [
            Module(path.relative_to(root).as_posix(), ast.parse(path.read_text(encoding="utf-8")), self)
            for path in sorted(root.rglob("*.py"))
        ]

    @cached_property
    def functions(self) -> Mapping[str, list[tuple[Module, Function]]]:
        """All functions and methods by their bare names."""
        found: dict[str, list[tuple[Module, Function]]] = {}
        for module in self._modules:
            for function in module.functions:
                found.setdefault(function.name, []).append((module, function))
        return found

    def messages(self) -> list[Message]:
        """Errors, warnings and reasons, each once for every function that makes it."""
        return list(dict.fromkeys(message for module in self._modules for message in module.messages()))


class Module:
    """One module: finds its messages, and follows names and helper functions to what they stand for."""

    def __init__(self, path: str, tree: ast.Module, source: Source) -> None:
        self.path, self.tree, self.source = path, tree, source
        self.functions = [node for node in ast.walk(tree) if isinstance(node, Function)]

    def messages(self) -> Iterator[Message]:
        """The messages that are made here; one without any fixed part is an error of the test's."""
        for node in ast.walk(self.tree):  # the table of module types
            if isinstance(node, ast.keyword) and node.arg == "unsupported" and isinstance(node.value, ast.Constant):
                yield Message(self.path, plain(node.value.value))
        for function in self.functions:
            for said, must in (*self._spoken(function), *((reason, False) for reason in self._reasons(function))):
                for text in self.templates(said, function):
                    template = plain(text)
                    if re.search(r"\w", template.replace(FILLED, "")):
                        yield Message(f"{self.path}:{function.name}", template)
                    else:
                        assert not must, f"cannot read what {self.path}:{function.name} says: {ast.unparse(said)}"

    def _spoken(self, function: Function) -> Iterator[tuple[ast.expr, bool]]:
        """Messages of errors and warnings, which must have words."""
        for node in own_nodes(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                if name_of(node.exc) in self.source.functions:  # a function that makes the error
                    yield from ((error.args[0], True) for error in self._errors(node.exc))
                elif name_of(node.exc) not in _UNTOLD and node.exc.args:
                    yield node.exc.args[0], True
            elif isinstance(node, ast.Call) and name_of(node) in _WARNING:
                yield node.args[0], True

    def _errors(self, call: ast.Call) -> Iterator[ast.Call]:
        for _, helper in self.source.functions[name_of(call)]:
            yield from (node for node in returned(helper) if isinstance(node, ast.Call))

    def _reasons(self, function: Function) -> Iterator[ast.expr]:
        may_find_nothing = function.returns is not None and ast.unparse(function.returns) == "str | None"
        if may_find_nothing or function.name == "_why":
            yield from returned(function)
        for node in own_nodes(function):
            assigned = isinstance(node, ast.Assign) and any(map(_takes_a_reason, node.targets))
            if assigned or (isinstance(node, ast.Yield) and isinstance(node.value, ast.JoinedStr)):
                yield node.value
            elif isinstance(node, ast.YieldFrom) and isinstance(node.value, ast.GeneratorExp):
                yield node.value.elt
            elif isinstance(node, ast.Call):
                yield from self._passed(node)

    def _passed(self, call: ast.Call) -> Iterator[ast.expr]:
        """What a call passes for a parameter ``reason``, if a function of that name has one."""
        yield from (keyword.value for keyword in call.keywords if keyword.arg == "reason")
        for _, function in self.source.functions.get(name_of(call), []):
            names = [argument.arg for argument in function.args.args]
            if (names[:1] == ["self"]) == isinstance(call.func, ast.Attribute) and "reason" in names:
                place = names.index("reason") - (names[0] == "self")
                yield from call.args[place : place + 1]

    def templates(self, said: ast.expr, function: Function) -> list[str]:
        """What an expression comes to: several templates where it chooses, ``{}`` where that cannot be told."""
        if isinstance(said, ast.IfExp):
            return [*self.templates(said.body, function), *self.templates(said.orelse, function)]
        if isinstance(said, ast.Name):
            values = [text for value in self._values(said.id, function) for text in self.templates(value, function)]
            return values or [FILLED]
        if isinstance(said, ast.Call) and isinstance(said.func, ast.Name):
            helpers = self.source.functions.get(said.func.id, [])
            made = [(module, helper, value) for module, helper in helpers for value in returned(helper)]
            return [text for module, helper, value in made for text in module.templates(value, helper)] or [FILLED]
        return [self._text(said, function)]

    def _text(self, part: ast.expr, function: Function) -> str:
        """A part of a template; a choice within it counts as filled in."""
        if isinstance(part, ast.Constant):
            return part.value if isinstance(part.value, str) else FILLED
        if isinstance(part, ast.JoinedStr):
            return "".join(self._text(value, function) for value in part.values)
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Add):
            return self._text(part.left, function) + self._text(part.right, function)
        if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
            values = list(self._values(part.value.id, function))
            if len(values) == 1 and isinstance(values[0], ast.JoinedStr):
                return self._text(values[0], function)
        return FILLED

    def _values(self, name: str, function: Function) -> Iterator[ast.expr]:
        """What a name stands for: what is assigned to it, here or in the module, or what a helper lists."""
        for node in (*own_nodes(function), *self.tree.body):
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                yield node.value
            elif isinstance(node, ast.For) and isinstance(node.target, ast.Name) and node.target.id == name:
                yield from self._listed(node.iter)

    def _listed(self, items: ast.expr) -> Iterator[ast.expr]:
        """What a helper function appends to the list that it returns."""
        if isinstance(items, ast.Call):
            for _, helper in self.source.functions.get(name_of(items), []):
                for node in own_nodes(helper):
                    if isinstance(node, ast.Call) and name_of(node) == "append":
                        yield node.args[0]


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """All nodes of a function, without those of functions within it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, Function):
            waiting += ast.iter_child_nodes(node)


def returned(function: Function) -> list[ast.expr]:
    """What a function returns, other than ``None``."""
    values = [node.value for node in own_nodes(function) if isinstance(node, ast.Return) and node.value is not None]
    return [value for value in values if not (isinstance(value, ast.Constant) and value.value is None)]


def name_of(call: ast.Call) -> str:
    """The bare name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _takes_a_reason(target: ast.expr) -> bool:
    if isinstance(target, ast.Subscript):
        return isinstance(target.value, ast.Name) and target.value.id == "skipped"
    return isinstance(target, ast.Name) and target.id == "reason"
