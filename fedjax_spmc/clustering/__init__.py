"""Clusterings of few points on fixed shapes, one file each; all can be jitted and vmapped.

The functions stand here under their short names: `clustering.finch(points)`.
"""

from fedjax_spmc.clustering._points import NOISE
from fedjax_spmc.clustering.dbscan import dbscan
from fedjax_spmc.clustering.finch import finch
from fedjax_spmc.clustering.hdbscan import euclidean_distances, hdbscan
from fedjax_spmc.clustering.kmeans import kmeans
from fedjax_spmc.clustering.mean_shift import bandwidth_of, largest_cluster, mean_shift, two_means

__all__ = [
    "NOISE",
    "bandwidth_of",
    "dbscan",
    "euclidean_distances",
    "finch",
    "hdbscan",
    "kmeans",
    "largest_cluster",
    "mean_shift",
    "two_means",
]
