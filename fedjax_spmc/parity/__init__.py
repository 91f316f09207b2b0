"""Numerics against the public references: `python -m fedjax_spmc.parity`."""

from fedjax_spmc.parity.walker import Outcome, walk

__all__ = ["Outcome", "walk"]
