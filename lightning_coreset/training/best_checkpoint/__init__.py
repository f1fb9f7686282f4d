"""The best checkpoint of a run with pruning events: the best among the most pruned."""

from lightning_coreset.training.best_checkpoint.choice import BestCheckpoint, BestCheckpoints

__all__ = ["BestCheckpoint", "BestCheckpoints"]
