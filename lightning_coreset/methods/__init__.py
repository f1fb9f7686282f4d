"""How the channels of one group are chosen: the interface of a method, and the methods there are."""

from __future__ import annotations

from lightning_coreset.methods.importance import Importance, Score
from lightning_coreset.methods.magnitude import Magnitude
from lightning_coreset.methods.measures import Measures, MomentsKind
from lightning_coreset.methods.method import Method
from lightning_coreset.methods.random import Random
from lightning_coreset.methods.ranking import RankingMethod
from lightning_coreset.methods.reconstruction import Reconstruction
from lightning_coreset.methods.registry import MethodLike, MethodName, as_method, register_method
from lightning_coreset.methods.selection import Selection
from lightning_coreset.methods.sensitivity import Sensitivity

__all__ = [
    "Importance",
    "Magnitude",
    "Measures",
    "Method",
    "MethodLike",
    "MethodName",
    "MomentsKind",
    "Random",
    "RankingMethod",
    "Reconstruction",
    "Score",
    "Selection",
    "Sensitivity",
    "as_method",
    "register_method",
]
