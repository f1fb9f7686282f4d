"""Where version 0.1 had the records: pickles that were made with it name this module."""

from lightning_coreset.structure.records import ChannelGroup, Count, Layer, Member, Path
from lightning_coreset.structure.steps import Norm, Step

__all__ = ["ChannelGroup", "Count", "Layer", "Member", "Norm", "Path", "Step"]
