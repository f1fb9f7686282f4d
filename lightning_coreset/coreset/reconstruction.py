"""Where version 0.1 had the least-squares fit: pickles that were made with it name this module."""

from lightning_coreset.coreset.least_squares import LeastSquaresFit as Reconstruction

__all__ = ["Reconstruction"]
