"""Which groups fail the self-check, and what is said about them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from lightning_coreset._calls import level_of_caller
from lightning_coreset.qualified_names import labelled_reasons
from lightning_coreset.state import ran_out_of_memory
from lightning_coreset.structure import UNEQUAL_PIECES, ChannelGroup, Examples, Heads, Structure, analyse
from lightning_coreset.verification.forms import Form, other_forms
from lightning_coreset.verification.like_groups import completed_alike
from lightning_coreset.verification.reasons import LEAK, first_line
from lightning_coreset.verification.remembered import Search
from lightning_coreset.verification.removal import NOT_FINITE
from lightning_coreset.verification.trial import Trial
from lightning_coreset.verification.ways import on_a_copy_without_weights, ways_for


def verified(
    model: nn.Module,
    structure: Structure,
    examples: Examples,
    *,
    change_attributes: bool = True,
    heads: Heads = "whole",
) -> Structure:
    """The structure without the groups that fail the self-check, with a warning that names them.

    Args:
        model: The network; it is not changed.
        structure: What was found in it.
        examples: How to run it, in one way or several.
        change_attributes: Whether to look for numbers that have to change with groups that fail.
        heads: How the structure was found.
    """
    offered = with_unproven(model, structure, examples, heads=heads) if change_attributes else structure
    unproven = {group.name for group in offered.groups} - {group.name for group in structure.groups}
    groups, failures = tried_groups(
        model, offered.groups, examples, change_attributes=change_attributes, unproven=unproven
    )
    structure = structure.joined(offered, unproven - failures.keys())
    failures = {name: reason for name, reason in failures.items() if name not in unproven}
    if failures:
        warnings.warn(describe_failures(failures), stacklevel=level_of_caller())
    return structure.with_groups(groups).without(failures)


def with_unproven(model: nn.Module, structure: Structure, examples: Examples, *, heads: Heads = "whole") -> Structure:
    """The structure with groups of unequal pieces, where channels are refused for these.

    They may be removed only if a trial shows that numbers change with them, or that none has to. Those that fail stay
    refused for their first reason.
    """
    if not any(UNEQUAL_PIECES in reason for reason in structure.refused.values()):
        return structure
    return structure.joined(analyse(model, examples, heads=heads, unequal_pieces=True, untrained=structure.untrained))


def describe_failures(failures: Mapping[str, str]) -> str:
    """A warning that names the groups that failed, each with the reason."""
    reasons = "\n".join(labelled_reasons(failures))
    return f"The channels of these layers are not pruned, since a trial on a copy failed:\n{reasons}"


def failing_groups(model: nn.Module, groups: Sequence[ChannelGroup], examples: Examples) -> dict[str, str]:
    """The groups that fail as they are, each with the reason; as :func:`tried_groups` otherwise."""
    return tried_groups(model, groups, examples, change_attributes=False)[1]


def tried_groups(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    examples: Examples,
    *,
    change_attributes: bool = True,
    unproven: Collection[str] = (),
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """Try the removal of channels on copies of a model.

    All groups are tried at once. Where that fails, halves of them are tried, down to the single groups that fail. For
    these, numbers that modules remember are tried as further counts of the group.

    Args:
        model: The network; it is not changed.
        groups: What ``find_groups`` found in it.
        examples: How to run it, in one way or several: a group has to pass in all. It is run on these inputs and on
            others of the same shapes.
        change_attributes: Whether to look for numbers.
        unproven: Names of groups that fail if they cannot be tried.

    Returns:
        The groups, completed by the numbers that have to change with them, and the names of those that fail, each with
        the reason in words. Where nothing can be tried, as when there is no memory, all of them fail.
    """
    groups = tuple(groups)
    if not groups:
        return (), {}
    why: list[str] = []
    with torch.inference_mode(False):
        for way in ways_for(model):
            try:
                with way(model) as usable:
                    trial = Trial(
                        usable.model,
                        examples,
                        dtypes=usable.dtypes,
                        untouched=usable.untouched,
                        around=usable.around,
                        virtual=usable.virtual,
                        prepare=False,
                    )
                    return _results(trial, groups, change_attributes)
            # No memory, something that cannot be copied, a run that needs the original.
            except Exception as error:
                if way is not on_a_copy_without_weights:  # what it cannot do, others can
                    why.append(f"{type(error).__name__}: {first_line(error)}")
    return groups, dict.fromkeys((*(group.name for group in groups), *unproven), _not_run(why[0]))


def _not_run(error: str) -> str:
    reason = f"the trial could not be run ({error}); give self_check=False to prune without one"
    return reason


def _results(
    trial: Trial, groups: tuple[ChannelGroup, ...], change_attributes: bool
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """The groups, completed, and those that fail in evaluation, in training, or have no effect at all."""
    if trial.passes(groups):
        return groups, trial.without_effect(groups)
    trial.prepare()
    groups, failures = _tried(trial, groups, change_attributes)
    failures |= trial.failing_in_training([group for group in groups if group.name not in failures])
    unsteady = trial.unsteady() if failures else None
    if unsteady is not None:
        reason = (
            f"its outputs are others in every run ({unsteady}), though all that the network holds is put back in "
            "between, so that no trial can tell what its removal changes; a global variable may change, or a file"
        )
        failures = dict.fromkeys(failures, reason)
    passed = [group for group in groups if group.name not in failures]
    return groups, failures | trial.without_effect(passed)


def _tried(
    trial: Trial, groups: tuple[ChannelGroup, ...], change_attributes: bool
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """The groups, completed, and those that fail."""
    if not change_attributes:
        return groups, trial.failing(groups)
    try:
        reason = trial.attempt_after(groups)
    except Exception as error:
        if len(groups) == 1 or not ran_out_of_memory(error):
            raise
        return groups, trial.failing_in_halves(groups)  # all at once do not fit: fewer at a time
    if reason is None:
        return groups, {}
    search = Search(trial.model, trial.attempt)
    alike = _completed_alike(trial, search, groups)
    if alike is not None:
        return alike, {}
    failures = trial.failing(groups, reason)
    if not failures:
        return groups, {}
    search.read(trial.run)
    return _completed(trial, search, groups, failures)


def _completed_alike(trial: Trial, search: Search, groups: tuple[ChannelGroup, ...]) -> tuple[ChannelGroup, ...] | None:
    """The groups, each completed as one of its kind, if they pass together; else ``None``.

    What one of each kind needs is looked for in the first run alone: its trials prove nothing, the last one does.
    """
    for way in (trial.screening, nullcontext) if trial.has_several_runs else (nullcontext,):
        with way():
            search.read(trial.run)
            found = completed_alike(groups, search, trial.failing, partial(_completed, trial, search))
        if found is None:
            return None
        if trial.attempt(found) is None:
            return found
    return None


def _completed(
    trial: Trial, search: Search, groups: tuple[ChannelGroup, ...], failures: dict[str, str]
) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
    """The groups with the numbers that have to change, or in other forms, and those that still fail."""
    questions = {name: reason for name, reason in failures.items() if not reason.startswith((LEAK, NOT_FINITE))}
    if not questions:
        return groups, failures
    answers: dict[str, ChannelGroup | None] = {}  # what takes the place of a group; nothing where another one does
    reasons: dict[str, str] = {}
    try:
        for forms in other_forms([group for group in groups if group.name in questions]):
            todo = [form for form in forms if not answers.keys() & set(form.instead_of)]
            sound = [
                group for group in _replaced(groups, answers) if group.name not in questions.keys() - answers.keys()
            ]
            found, why = _answers(trial, search, sound, todo, questions)
            reasons = why | reasons
            for form in todo:
                if form.group.name in found:
                    answers |= {**dict.fromkeys(form.instead_of), form.group.name: found[form.group.name]}
    except Exception as error:  # no memory for another copy: the groups stay refused
        suffix = f"the search for its width among attributes raised {type(error).__name__}: {first_line(error)}"
        reasons = {name: f"{reason}; {suffix}" for name, reason in questions.items()}
    left = {name: reasons.get(name, reason) for name, reason in failures.items() if name not in answers}
    return tuple(_replaced(groups, answers)), left


def _answers(
    trial: Trial, search: Search, sound: list[ChannelGroup], forms: list[Form], questions: Mapping[str, str]
) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
    """The forms that succeed beside the groups that do, some of them with other numbers; and why others do not."""
    asked = {form.group.name: form.group for form in forms}
    solved = [form.group for form in forms if form.is_new and trial.attempt([form.group]) is None]
    if solved and trial.attempt([*sound, *solved]) is not None:
        solved = []
    known = {group.name: group for group in solved}
    open_questions = {
        form.group.name: questions[form.group.name]
        for form in forms
        if form.with_numbers and form.group.name not in known
    }
    if not open_questions:
        return known, {}
    completed, why = search.completed([*sound, *asked.values()], open_questions)
    return known | completed, why


def _replaced(groups: Sequence[ChannelGroup], answers: Mapping[str, ChannelGroup | None]) -> list[ChannelGroup]:
    replaced = (answers.get(group.name, group) for group in groups)
    return [group for group in replaced if group is not None]
