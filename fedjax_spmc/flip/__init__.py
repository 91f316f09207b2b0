"""FLIP's client in parts: `flip.invert` searches for triggers, the local rule `flip` trains on them."""

from fedjax_spmc.flip.inversion import Samples, Search, Triggers, draws_of, invert, stamped

__all__ = ["Samples", "Search", "Triggers", "draws_of", "invert", "stamped"]
