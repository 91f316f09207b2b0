"""No attack: nobody is malicious.

Source: none.
Knows: nothing.
Controls: nothing.
Cost: none.
Deviations: none.
"""

from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack


@attacks.register("none")
def none() -> Attack:
    """Every client is benign; A is measured, ASR, R and V are undefined."""
    return Attack()
