"""Trains with a learning rate of the attacker's own."""

from typing import Annotated

from fedjax_spmc import training
from fedjax_spmc.options import POSITIVE, TRACED
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack


@attacks.register("slow_learner")
def slow_learner(rate: Annotated[float, POSITIVE, TRACED] = 1e-3) -> Attack:
    """The rule's own training at another learning rate."""

    def train(rule, ctx, own, variables, client_state, data, client_id, key, hooks):
        slower = ctx._replace(hyper={**ctx.hyper, "learning_rate": rate})
        return training.sgd(rule, slower, variables, client_state, data, key, hooks)

    return Attack(train=train)
