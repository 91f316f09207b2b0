"""The diagonal of the empirical Fisher information, as FDCR needs it: `fisher.estimate(kind, model, ...)`."""

from fedjax_spmc.fisher.estimate import KINDS, Kind, estimate

__all__ = ["KINDS", "Kind", "estimate"]
