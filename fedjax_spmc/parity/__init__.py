"""Numerics against the public references: `python -m fedjax_spmc.parity`, or `parity.walk(folder)`."""

from fedjax_spmc.parity.comparison import Outcome
from fedjax_spmc.parity.walker import walk

__all__ = ["Outcome", "walk"]
