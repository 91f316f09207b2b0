"""What uploads hold beyond the models, and who is malicious, which rules with an `oracle_` option alone are told."""

from typing import Any

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import TRUTH, Array, Upload


def extra(upload: Upload, aggregator: str, name: str, wanted: str) -> Any:
    """What an upload holds beyond the models.

    Raises:
        ConfigError: nothing of that name; says what is wanted.
    """
    if name not in upload.extras:
        raise ConfigError(f"aggregator {aggregator}: extras[{name!r}] is missing: it must be {wanted}.")
    return upload.extras[name]


def truth_of(upload: Upload, aggregator: str, option: str) -> Array:
    """[K] bool: who is malicious, which an upload holds only where an `oracle_` option is on; raises as `extra`."""
    return extra(upload, aggregator, TRUTH, f"there with {option} = True")
