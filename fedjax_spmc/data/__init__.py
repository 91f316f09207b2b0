"""Data sets and how they are divided among the clients.

A data set is one file that registers a factory with `@datasets.register("name")`; the factory returns a `Source`.
"""

from fedjax_spmc.data import partition
from fedjax_spmc.data.dataset import Dataset, DatasetInfo, Source, Splits, load
from fedjax_spmc.registry import datasets

names = datasets.names
describe = datasets.describe

__all__ = ["Dataset", "DatasetInfo", "Source", "Splits", "describe", "load", "names", "partition"]
