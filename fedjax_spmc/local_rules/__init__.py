"""Local rules: what every client runs for local training, one file each."""

from fedjax_spmc import registry

make = registry.local_rules.make
names = registry.local_rules.names
describe = registry.local_rules.describe

__all__ = ["describe", "make", "names"]
