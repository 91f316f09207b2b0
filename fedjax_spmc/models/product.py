"""The matrix product of the layers."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_spmc.models import forms
from fedjax_spmc.types import Array


@jax.custom_vjp
def product(weight: Array, inputs: Array) -> Array:
    """Matrix product [M, K] @ [K, N] whose two gradients are taken in the order of factors that a CPU runs fastest.

    Over the many columns of a convolution, inputs @ cotangent^T takes 0.7 ms of CPU time where cotangent @ inputs^T,
    the order of automatic differentiation, takes 1.3 ms. A large weight by few columns goes block by block
    (`forms.product_block`): weight^T @ cotangent of [128, 12544] by [128, 10] takes 0.7 ms so, and 2.6 ms in one.
    """
    return weight @ inputs


def _product_forward(weight: Array, inputs: Array) -> tuple[Array, tuple[Array, Array]]:
    return weight @ inputs, (weight, inputs)


def _product_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    weight, inputs = saved
    by_weight = lax.dot_general(inputs, cotangent, (((1,), (1,)), ((), ()))).T
    return by_weight, _by_inputs(weight, cotangent)


def _by_inputs(weight: Array, cotangent: Array) -> Array:
    """weight^T @ cotangent: [M, K], [M, N] -> [K, N]."""
    rows, columns = weight.shape
    block = forms.product_block(rows, columns, cotangent.shape[1])
    if block == columns:
        return lax.dot_general(weight, cotangent, (((0,), (0,)), ((), ())))

    def part(_: None, start: Array) -> tuple[None, Array]:
        seen = lax.dynamic_slice_in_dim(weight, start, block, 1)
        return None, lax.dot_general(cotangent, seen, (((0,), (0,)), ((), ())))

    _, parts = lax.scan(part, None, jnp.arange(0, columns, block))
    return parts.swapaxes(1, 2).reshape(columns, -1)


product.defvjp(_product_forward, _product_backward)
