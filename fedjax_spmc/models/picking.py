"""The largest of a few values, of which on a tie the first gets the gradient, as in torch."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_spmc.types import Array


@jax.custom_vjp
def max_of_first(values: Array) -> Array:
    """Maximum over the leading axis, [4, ...] -> [...]; on an exact tie the first gets the gradient, as in torch."""
    return max_and_index(values)[0]


def max_and_index(values: Array) -> tuple[Array, Array]:
    """The maximum over the leading axis, [4, ...] -> [...], and its place, int8: the first on a tie."""
    largest = values[0]
    index = jnp.zeros(largest.shape, jnp.int8)
    for phase in range(1, 4):
        above = values[phase] > largest
        largest = jnp.where(above, values[phase], largest)
        index = jnp.where(above, jnp.int8(phase), index)
    return largest, index


def to_index(index: Array, cotangent: Array) -> Array:
    """[...] -> [4, ...], zero but where `index` says. By hand: automatic differentiation pads and adds four parts."""
    phases = lax.broadcasted_iota(jnp.int8, (4, *index.shape), 0)
    return jnp.where(phases == index[None], cotangent[None], jnp.zeros((), cotangent.dtype))


max_of_first.defvjp(max_and_index, lambda index, cotangent: (to_index(index, cotangent),))


@jax.custom_vjp
def first_largest(values: Array) -> Array:
    """As `max_of_first` for any number of values, at most 127, and with NaN as the largest of all."""
    return _first_largest(values)[0]


def _first_largest(values: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = values[0]
    index = jnp.zeros(largest.shape, jnp.int8)
    for place in range(1, len(values)):
        above = (values[place] > largest) | (values[place] != values[place])
        largest = jnp.where(above, values[place], largest)
        index = jnp.where(above, jnp.int8(place), index)
    return largest, (index, jnp.zeros((len(values), 0), jnp.int8))  # the second tells how many there are


def _sent_to_first(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    index, places = saved
    numbers = lax.broadcasted_iota(jnp.int8, (len(places), *index.shape), 0)
    return (jnp.where(numbers == index[None], cotangent[None], jnp.zeros((), cotangent.dtype)),)


first_largest.defvjp(_first_largest, _sent_to_first)
