"""Model folding: clusters of channels become their mean, without data.

Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025, arXiv 2502.10216: as it is
(naive), and with the paper's approximate repair of the variances that averaging loses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rivals.chains import Chain, statistics


def fold(chain: Chain, size: int, *, repair: bool = True) -> None:
    """Replace clusters of filters by their means; the consumer's weights of a cluster are added up.

    Args:
        chain: The chain, narrowed in place.
        size: The number of clusters.
        repair: Whether to multiply the means by what averaging takes from their deviations.
    """
    rows, columns = chain.rows(), chain.columns()
    members = clusters(torch.cat([rows, columns.transpose(0, 1).flatten(1)], dim=1), size)
    means = members / members.sum(dim=0)
    factors = lost_deviation(rows[:, :-1], members) if repair else rows.new_ones(size)
    folded = means.T @ rows
    positions = torch.arange(size)
    if chain.norm is not None:
        mean, deviation, gain, _ = statistics(chain.norm)
        centre, gains = means.T @ (gain / deviation * mean), means.T @ gain.abs()
    chain.narrow(positions, torch.einsum("onk,nm->omk", columns, members))
    weight = chain.producer.weight
    if chain.norm is None:
        assert chain.producer.bias is not None
        weight.data = (folded[:, :-1] * factors[:, None]).reshape(weight.shape).float()
        chain.producer.bias.data = folded[:, -1].float()
        return
    # The BatchNorm keeps the mean of the cluster's means and multiplies deviations by the factors, by its running
    # statistics; recomputed ones give every cluster the mean deviation of its channels.
    weight.data = folded[:, :-1].reshape(weight.shape).float()
    if chain.producer.bias is not None:
        chain.producer.bias.data.zero_()
    chain.norm.weight.data, chain.norm.bias.data = gains.float(), (folded[:, -1] + centre).float()
    chain.norm.running_mean = centre.float()
    chain.norm.running_var = ((gains / factors).square() - chain.norm.eps).clamp_min(0).float()


def clusters(points: Tensor, count: int) -> Tensor:
    """Ward's hierarchical clusters of N points, as a matrix of zeros and ones, float64 ``(N, count)``."""
    from sklearn.cluster import AgglomerativeClustering

    if count == len(points):
        return torch.eye(count, dtype=torch.float64)
    labels = AgglomerativeClustering(n_clusters=count).fit(points.numpy()).labels_
    return F.one_hot(torch.from_numpy(labels).long(), count).double()


def lost_deviation(filters: Tensor, members: Tensor) -> Tensor:
    r"""What to multiply the mean of each cluster by, so that it deviates as much as its members do, ``(m,)``.

    The mean of n channels with mean correlation :math:`\rho` has :math:`(1 + (n - 1) \rho) / n` of their variance;
    without data, correlations are taken to be the cosines of the filters.
    """
    directions = F.normalize(filters, dim=1)
    count = members.sum(dim=0)
    together = (members.T @ directions).square().sum(dim=1)  # n + n (n - 1) rho
    return count / together.clamp_min(1e-6).sqrt()
