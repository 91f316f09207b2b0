"""FLIP: clients search for triggers in the model that they receive, and train on them with the right labels.

A trigger that turns examples of one class into another with a small mask is a shortcut, and so is a backdoor. Each
client searches for such triggers on its own data, stamps them on its examples, which keep their labels, and trains the
model on these. That is its only training.

Source: Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023, and
    its published code. The paper also rejects predictions of a low probability: `evaluation.confidence`. The code
    averages with server.optimizer=sgd, server.learning_rate=0.1, and trains with local.optimizer=adam,
    local.momentum=0.5, local.beta2=0.9 on pixels in [0, 1] without augmentation.
Assumes: pictures; that a backdoor's trigger is small; that clients have examples of several classes.
Cost: hundreds of passes through the network and back for each search; in a first visit one search for each class, then
    one for each pair. A client keeps a trigger for each ordered pair of classes, C^2 (1 + channels) H W numbers: 63 MB
    for 100 clients of MNIST, see `storage`.
Deviations: schedule="parallel" runs all searches of a round at once against the model that was received; the code runs
    one for each batch, against the model as it is by then, and so does schedule="reference". Its one-way searches take
    batches of as many examples as the smallest search before had; here all examples are one batch. Its CIFAR searches
    begin at the place of its own attack's trigger: `oracle_mask_prior`. A trigger replaces the best one only if it is
    smaller by more than `margin`; among pairs of equal gain chance decides, in the code its sort. Pixels that were
    normalised are brought back to [0, 1] for triggers. The code trains nothing on batches that it cannot stamp:
    `also_train_clean`.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.flip import memory as memories
from fedjax_spmc.flip.inversion import COST, COST_SHORT, JITTER
from fedjax_spmc.flip.options import PRESETS, Options
from fedjax_spmc.flip.training import in_parallel, one_after_another
from fedjax_spmc.local_rules.sgd import sgd
from fedjax_spmc.options import FRACTION, NON_NEGATIVE, POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import local_rules
from fedjax_spmc.training import Hooks
from fedjax_spmc.types import (
    Array,
    ClientData,
    Context,
    LocalRule,
    Model,
    PRNGKey,
    RuleState,
    State,
    Variables,
)

COUNT = Annotated[int, Range(1, 10**6)]
"""Type of an option that counts steps, batches, examples."""
BELOW_ONE = Range(0, 1, high_open=True)


@local_rules.register("flip")
def flip(
    preset: Literal["lite", "reference"] = "lite",
    schedule: Literal["parallel", "reference"] = "parallel",
    universal_steps: COUNT | None = None,
    pair_steps: COUNT | None = None,
    short_steps: COUNT | None = None,
    pairs: COUNT | None = None,
    pair_samples: COUNT = 8,
    universal_samples: COUNT = 1,
    more_than: Annotated[int, Range(0, 10**6)] = 1,
    fraction: Annotated[float, FRACTION] = 0.5,
    visits: COUNT = 2,
    max_batches: COUNT = 110,
    size_limit: Annotated[float, POSITIVE, TRACED] | None = None,
    random_pair: Annotated[float, FRACTION, TRACED] = 0.3,
    also_train_clean: bool = False,
    threshold: Annotated[float, FRACTION, TRACED] = 0.9,
    cost: Annotated[float, POSITIVE, TRACED] = COST,
    cost_short: Annotated[float, POSITIVE, TRACED] = COST_SHORT,
    cost_up: Annotated[float, POSITIVE, TRACED] = 1.5,
    cost_down: Annotated[float, POSITIVE, TRACED] = 1.5**1.5,
    patience: COUNT = 10,
    search_rate: Annotated[float, POSITIVE, TRACED] = 0.1,
    search_beta1: Annotated[float, BELOW_ONE, TRACED] = 0.5,
    search_beta2: Annotated[float, BELOW_ONE, TRACED] = 0.9,
    jitter: Annotated[float, FRACTION] = JITTER,
    margin: Annotated[float, NON_NEGATIVE, TRACED] = 1e-6,
    mask_init: Literal["uniform", "uniform_small"] = "uniform",
    oracle_mask_prior: bool = False,
    shorten_one_way: bool = False,
    rollback_other: bool = False,
    pair_key: Literal["ordered", "reference"] = "ordered",
    storage: Literal["pairs", "targets", "none"] = "pairs",
    half: bool = False,
    triggers: Literal["inverted", "noise", "none"] = "inverted",
    noise_pixels: COUNT = 16,
    network: Model | None = None,
) -> LocalRule:
    """The config's optimiser, on batches of which some examples carry a trigger and their true label.

    Numbers are those of the code for MNIST; `configs/flip_fashion_mnist.py` and `configs/flip_cifar10.py` have the
    others. "lite" cuts the steps of the searches to an eighth and the pairs of a round to three.

    Args:
        preset: what options that are None stand for: "reference" is the code's 400 universal, 200 pair and 50 short
            steps and 45 pairs, "lite" 50, 30, 10 and 3.
        schedule: "parallel" searches for all triggers of a round at once, "reference" batch by batch (the code).
        universal_steps: of a universal search, in a client's first visit; None = the preset's.
        pair_steps: of a search for a pair; None = the preset's.
        short_steps: of a second search for a pair that went well the first time, with schedule="reference"; None = the
            preset's.
        pairs: of classes in a round, with schedule="parallel"; None = the preset's.
        pair_samples: examples of a class in a search of the parallel schedule; the code takes those of a batch.
        universal_samples: examples of each class in a universal search (CIFAR-10: 5).
        more_than: a class counts as present with more than so many examples, in a batch and on a client (CIFAR-10: 5).
        fraction: share of a batch's examples of a class that is stamped (Fashion-MNIST 0.6, CIFAR-10 0.9).
        visits: batches in a row for each pair.
        max_batches: of a round at most, whatever local.epochs says.
        size_limit: the largest sum of a mask over all channels with which a batch is trained on; None = an eighth of
            the pixels of a grey picture, a quarter of the values of one in colour (the code: 98, 768).
        random_pair: how often a pair is drawn at random in place of the one whose triggers changed most.
        also_train_clean: whether batches that cannot be stamped are trained on as they are; the code leaves them out.
        threshold: share of the examples that a trigger must turn (CIFAR-10 0.85).
        cost: weight on the mask's size at the beginning of a search.
        cost_short: the same of a short search.
        cost_up: factor on the weight behind `patience` steps that succeed.
        cost_down: divides it behind as many that fail.
        patience: see there.
        search_rate: learning rate of the search, which is Adam's.
        search_beta1: its beta1.
        search_beta2: its beta2.
        jitter: a search begins anew within this of its best trigger.
        margin: by how much a mask must be smaller than the best (the code: 0).
        mask_init: masks begin uniform in [0, 1], or "uniform_small" in [0, 0.1] (CIFAR-10).
        oracle_mask_prior: whether masks begin with a block over the place of the attack's trigger, as the CIFAR code's
            do; that tells clients what they cannot know, and marks the result.
        shorten_one_way: whether second searches of one way are shorter too, half as long behind a failure (CIFAR-10),
            with schedule="reference".
        rollback_other: whether a way of a pair that improves sets the other back (the code), with
            schedule="reference".
        pair_key: how triggers and scores are kept: "ordered" one for each ordered pair, "reference" as the code, which
            mixes up the two ways of a pair, with schedule="reference".
        storage: "pairs" keeps the triggers of all pairs from round to round, "targets" the newest of each target,
            "none" scores alone.
        half: whether kept triggers have 16 bits.
        triggers: "inverted"; or for comparison "noise", random patterns on `noise_pixels` random pixels without any
            search, or "none", the same batches without a stamp.
        noise_pixels: see there.
        network: filled in by the simulator. Without it a rule keeps nothing from round to round: each visit is a
            client's first.

    Raises:
        ConfigError: an option that another one leaves without effect, or inputs that are no pictures.
    """
    asked = {
        "short_steps": short_steps,
        "cost_short": cost_short,
        "shorten_one_way": shorten_one_way,
        "rollback_other": rollback_other,
        "pair_key": pair_key,
    }
    if schedule == "parallel":
        refuse_unused(flip, "schedule = 'parallel'", asked, "local")
    else:
        refuse_unused(flip, "schedule = 'reference'", {"pairs": pairs, "pair_samples": pair_samples}, "local")
    if triggers != "inverted":
        searching = {
            "universal_steps": universal_steps,
            "pair_steps": pair_steps,
            "short_steps": short_steps,
            "universal_samples": universal_samples,
            "pair_samples": pair_samples,
            "mask_init": mask_init,
            "oracle_mask_prior": oracle_mask_prior,
            "rollback_other": rollback_other,
            "shorten_one_way": shorten_one_way,
        }
        refuse_unused(flip, f"triggers = {triggers!r}", searching, "local")
    if triggers != "noise":
        refuse_unused(flip, f"triggers = {triggers!r}", {"noise_pixels": noise_pixels}, "local")
    if pair_key == "reference" and storage != "pairs":
        raise ConfigError(
            f"local.options.storage = {storage!r} is not allowed with pair_key = 'reference', which keeps two triggers "
            "of each pair: it must be 'pairs'."
        )
    given = {name: value for name, value in locals().items() if name in Options._fields and value is not None}
    options = Options(**PRESETS[preset] | given)._replace(growth=cost_up, fall=cost_down)
    if network is not None:
        _check_pictures(network)

    def init(variables: Variables, num_clients: int) -> RuleState:
        del variables
        if network is None:
            return RuleState()
        one = memories.empty(network.num_classes, network.input.shape, options)
        return RuleState(clients=trees.broadcast(one, num_clients))

    def train(
        rule: LocalRule,
        ctx: Context,
        variables: Variables,
        client_state: State,
        data: ClientData,
        key: PRNGKey,
        hooks: Hooks,
    ) -> tuple[Variables, State, Array, dict[str, Array]]:
        _check_pictures(ctx.model)
        steps = jnp.minimum(ctx.epochs * data.num_batches, options.max_batches).astype(jnp.int32)
        fresh = memories.empty(ctx.model.num_classes, ctx.model.input.shape, options)
        memory = fresh if network is None else client_state
        loop = in_parallel if options.schedule == "parallel" else one_after_another
        (params, stats, _, sums, _), memory, trained = loop(
            options, rule, ctx, variables, memory, data, steps, key, hooks
        )
        # Sums are read as means over steps; of those that were left out there is nothing.
        sums = jax.tree.map(lambda x: x * steps / jnp.maximum(trained, 1), sums)
        return Variables(params, stats), client_state if network is None else memory, steps, sums

    def details(rule_state: RuleState, malicious: np.ndarray) -> dict[str, np.ndarray]:
        return {} if network is None else memories.shown(rule_state.clients, malicious)

    return LocalRule(gradients=sgd().gradients, init=init, train=train, details=details)


def _check_pictures(model: Model) -> None:
    if len(model.input.shape) != 3 or not jnp.issubdtype(model.input.dtype, jnp.floating):
        raise ConfigError(
            f"local.rule = 'flip' is not allowed with inputs of shape {tuple(model.input.shape)}, on which no pixel "
            "trigger can be stamped: it must be another rule."
        )
