"""The mathematics of coresets of channels: tensors in, tensors out.

Nothing here knows of a model, a trainer or a logger. Computations run in float64, except that matrices of more than
2048 channels are in float32 where the text says so.
"""

from lightning_coreset._deprecated import deprecated_names
from lightning_coreset.coreset.absolute_sum import largest_absolute_sum
from lightning_coreset.coreset.activation_registry import register_activation
from lightning_coreset.coreset.activation_table import find_activation
from lightning_coreset.coreset.activations import Activation, PiecewiseLinear, largest_magnitude, value_range
from lightning_coreset.coreset.certificate import Certificate, certify, output_radius
from lightning_coreset.coreset.draw_law import DrawLaw, draw_law
from lightning_coreset.coreset.elimination import eliminate, elimination_curve
from lightning_coreset.coreset.gaussian_moments import (
    Gaussian,
    Moments,
    activation_moments,
    batchnorm_preactivations,
    linear_preactivations,
    spatial_correlation,
)
from lightning_coreset.coreset.head_bases import query_key_bases, value_basis
from lightning_coreset.coreset.hermite import gauss_hermite, hermite_coefficients
from lightning_coreset.coreset.least_squares import (
    LeastSquaresFit,
    expected_error,
    mixing_matrix,
    reconstruct,
    variance_ratios,
)
from lightning_coreset.coreset.moved_certificate import certify_moved
from lightning_coreset.coreset.precision import compress_rows
from lightning_coreset.coreset.refined_bounds import failure_probability, refined_error_bound, refined_sample_size
from lightning_coreset.coreset.refinement import Refinement, refine_producers
from lightning_coreset.coreset.sample_fit import SampleFit, fit_samples, position_correlation, sample_moments
from lightning_coreset.coreset.sampled_moment import SampledMoment
from lightning_coreset.coreset.sampling import Sample, draw_distinct, draw_fixed, draw_pps, inclusion_probabilities
from lightning_coreset.coreset.sampling_bounds import (
    error_bound,
    paper_error_bound,
    paper_sample_size,
    sample_size,
    sampling_complexity,
)
from lightning_coreset.coreset.sensitivity import sensitivities, sensitivities_from_norms
from lightning_coreset.coreset.slopes import slope_range
from lightning_coreset.coreset.stream_basis import StreamBasis, any_stream_basis, stream_basis
from lightning_coreset.coreset.worst_input import largest_found_error
from lightning_coreset.coreset.written_out import written_out_activation

__all__ = [
    "Activation",
    "Certificate",
    "DrawLaw",
    "Gaussian",
    "LeastSquaresFit",
    "Moments",
    "PiecewiseLinear",
    "Refinement",
    "Sample",
    "SampleFit",
    "SampledMoment",
    "StreamBasis",
    "activation_moments",
    "any_stream_basis",
    "batchnorm_preactivations",
    "certify",
    "certify_moved",
    "compress_rows",
    "draw_distinct",
    "draw_fixed",
    "draw_law",
    "draw_pps",
    "eliminate",
    "elimination_curve",
    "error_bound",
    "expected_error",
    "failure_probability",
    "find_activation",
    "fit_samples",
    "gauss_hermite",
    "hermite_coefficients",
    "inclusion_probabilities",
    "largest_absolute_sum",
    "largest_found_error",
    "largest_magnitude",
    "linear_preactivations",
    "mixing_matrix",
    "output_radius",
    "paper_error_bound",
    "paper_sample_size",
    "position_correlation",
    "query_key_bases",
    "reconstruct",
    "refine_producers",
    "refined_error_bound",
    "refined_sample_size",
    "register_activation",
    "sample_moments",
    "sample_size",
    "sampling_complexity",
    "sensitivities",
    "sensitivities_from_norms",
    "slope_range",
    "spatial_correlation",
    "stream_basis",
    "value_basis",
    "value_range",
    "variance_ratios",
    "written_out_activation",
]


__getattr__ = deprecated_names(
    __name__,
    {
        "Reconstruction": "LeastSquaresFit",
        "condensed": "compress_rows",
        "gram": "activation_moments",
        "linear_law": "linear_preactivations",
        "normalised_law": "batchnorm_preactivations",
    },
)
