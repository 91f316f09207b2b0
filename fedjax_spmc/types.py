"""The contracts between the parts: plain tuples of arrays and of pure functions.

"Stacked" means the same pytree with a leading client axis [K, ...]; K clients take part in a round, N exist.
Every slot of a `LocalRule` and of an `Attack` has a default that does nothing, so that a part names only what it does.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PRNGKey = jax.Array
Params = Any
"""Pytree of trainable float arrays."""
Stats = Any
"""Pytree of batch statistics; {} where a model has none."""
State = Any
"""Whatever a part carries from round to round: a pytree of arrays."""


class Variables(NamedTuple):
    """All that a model consists of."""

    params: Params
    stats: Stats


class Model(NamedTuple):
    """A network as two pure functions.

    Attributes:
        init: key -> Variables.
        apply: (params, stats, images [B, H, W, C] float32, train: bool, key) -> (logits [B, classes], stats). A network
            that draws random numbers, such as dropout's, does so from `key`, and only in training.
        param_order: parameter paths in torch registration order: the order of every flat vector and of
            `jax.tree.leaves(params)`. Every leaf has torch's layout.
        num_classes: number of logits.
        image_shape: (H, W, C) that `apply` takes.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Array, Stats]]
    param_order: tuple[tuple[str, ...], ...]
    num_classes: int
    image_shape: tuple[int, int, int]


class Upload(NamedTuple):
    """All that a server may see in one round.

    Attributes:
        global_params: the model that was broadcast.
        client_params: stacked; what the clients sent back (trainable weights only).
        num_examples: [K] float32, size of each client's index list.
        participating: [K] bool; False rows carry no information and get weight 0.
        client_ids: [K] int32 in 0..N-1; rows stand in the order in which the clients were drawn. None = 0..K-1.
        steps: [K] int32, local steps taken. None = one each.
        learning_rate: float32 scalar, the local one.
        round: int32 scalar, from 0.
        client_stats: stacked batch statistics; averaged by the verdict's weights, never part of a score.
        extras: stacked trees that a local rule sends along, such as {"fisher": ...}.
    """

    global_params: Params
    client_params: Params
    num_examples: Array
    participating: Array
    client_ids: Any = None
    steps: Any = None
    learning_rate: Array | float = 0.01
    round: Array | int = 0
    client_stats: Stats = ()
    extras: Mapping[str, Any] = {}


class Verdict(NamedTuple):
    """What an aggregator says of each client.

    Attributes:
        weights: [K] float32 >= 0, sum 1 over those used; all 0 means that the global model was kept.
        scores: [K] float32, larger = more suspicious; zeros if the rule has none.
        flagged: [K] bool, judged malicious.
    """

    weights: Array
    scores: Array
    flagged: Array


class Traits(NamedTuple):
    """What contract tests may demand of an aggregator; each False carries its reason in the docstring.

    They speak of a rule with its default options, and of other options where the docstring names them. A rule that is
    told to assume no attackers, or to keep all uploads, may become a mean and as little robust, whatever it declares.

    Attributes:
        linear: new model = sum of weights * client_params.
        consensus: identical uploads come back unchanged.
        permutation: permuting rows permutes weights and scores and nothing else.
        robust: one outlier g + 10 (w - g) moves it less than it moves the mean. This is a weak demand, and far from a
            promise against a backdoor.
        stateless: nothing is carried from round to round.
    """

    linear: bool
    consensus: bool
    permutation: bool
    robust: bool
    stateless: bool


class Picture(NamedTuple):
    """A picture of what a rule's `details` of a round hold, for the run folder and the report.

    Attributes:
        file: where the run folder keeps it; pictures of one file stand side by side.
        array: name of the array drawn: [K, K] numbers in [0, 1], drawn as a matrix, or [K, n], a line for each client.
        title: above it.
        caption: in words, as the report has it.
        label: of the vertical axis of lines.
        edges: name of the [n - 1] array of numbers that part the n classes of the horizontal axis of lines, or "" for a
            matrix.
    """

    file: str
    array: str
    title: str
    caption: str
    label: str = ""
    edges: str = ""

    def fits(self, details: Mapping[str, Any], rows: int) -> bool:
        """Whether `details` hold its arrays for so many rows."""
        array = details.get(self.array)
        if array is None or array.ndim != 2 or len(array) != rows:
            return False
        if not self.edges:
            return array.shape[1] == rows
        return self.edges in details and details[self.edges].shape == (array.shape[1] - 1,)


class Aggregator(NamedTuple):
    """What the server runs on the uploads.

    Attributes:
        init: (global_params, N) -> state.
        aggregate: (Upload, state, key) -> (params, Verdict, state); pure, jittable, vmappable over experiments.
        traits: see `Traits`.
        min_clients: with fewer usable uploads the global model is kept.
        chosen: K -> the options that were left open, as the rule fills them in for K uploads a round; they are recorded
            with the config.
        evaluated: (params, state) -> the params that are evaluated and saved as the global model, where they are not
            those that are broadcast.
        needs: the `Upload.extras` that the rule reads; the local rule must send them.
        details: Upload -> small arrays, what the rule's own pictures show; recorded of the last evaluated round.
        pictures: of these arrays.
    """

    init: Callable[[Params, int], State]
    aggregate: Callable[[Upload, State, PRNGKey], tuple[Params, Verdict, State]]
    traits: Traits
    min_clients: int = 1
    chosen: Callable[[int], dict[str, Any]] = lambda num_clients: {}
    evaluated: Callable[[Params, State], Params] = lambda params, state: params
    needs: tuple[str, ...] = ()
    details: Callable[[Upload], dict[str, Array]] = lambda upload: {}
    pictures: tuple[Picture, ...] = ()


class Batch(NamedTuple):
    """One batch of one client.

    Attributes:
        images: [B, H, W, C] float32, augmented, normalised, poisoned.
        labels: [B] int32.
        sample_ids: [B] int32, which training images these are.
        valid: [B] bool, False where a row is padding.
    """

    images: Array
    labels: Array
    sample_ids: Array
    valid: Array


class ClientData(NamedTuple):
    """One client's data for one round.

    Attributes:
        gather: (step, key) -> Batch of that local step; nothing is materialised.
        num_batches: int32 scalar, batches in one epoch (the incomplete last one is dropped).
        client_id: int32 scalar.
    """

    gather: Callable[[Array, PRNGKey], Batch]
    num_batches: Array
    client_id: Array


class Context(NamedTuple):
    """What a local rule or an attack may look at in a round.

    Attributes:
        model: the network.
        variables: the global variables that were broadcast.
        previous: the global variables one round earlier (those of round 0 in round 0).
        hyper: traced scalars: learning_rate, momentum, weight_decay and the array options of the local rule.
        epochs: local epochs, a number or an int32 scalar.
        round: int32 scalar, from 0.
        obeys: bool scalar, whether this client follows the defence (a malicious one need not); it is the client's own
            knowledge of itself, and only local rules with an option for disobedient clients look at it.
        shared: the server's part of the local rule's state, sent along with the model.
    """

    model: Model
    variables: Variables
    previous: Variables
    hyper: Mapping[str, Any]
    epochs: Array | int
    round: Array
    obeys: Array | bool = True
    shared: State = ()


class RuleState(NamedTuple):
    """State of a local rule: one part on the server, one stacked [N, ...] over all clients."""

    server: State = ()
    clients: State = ()


def _no_extras(
    ctx: Context, variables: Variables, client_state: State, data: ClientData, key: PRNGKey
) -> dict[str, Any]:
    del ctx, variables, client_state, data, key
    return {}


class LocalRule(NamedTuple):
    """What every client runs for local training.

    Attributes:
        gradients: (ctx, params, stats, batch, client_state, key) -> (grads, stats, metrics); metrics hold "loss".
        init: (variables, N) -> RuleState.
        prepare: (ctx, client_state, data, key) -> client_state, per client, before training.
        train: (rule, ctx, variables, client_state, data, key, hooks) -> (variables, client_state, steps, metrics), or
            None for SGD on `gradients` (`training.sgd`).
        finish: (ctx, variables, client_state, data, key) -> extras, what the client sends along.
        after_round: (rule_state, upload, trained_params, new_variables, verdict) -> rule_state; `trained_params` are
            the clients' models before any attack crafted them.
        needs_linear: whether the rule reads the verdict's weights as the coefficients of a weighted mean.
        sends: the names of the extras that `finish` returns; it may read one more epoch of batches.
    """

    gradients: Callable[..., tuple[Params, Stats, dict[str, Array]]]
    init: Callable[[Variables, int], RuleState] = lambda variables, num_clients: RuleState()
    prepare: Callable[..., State] = lambda ctx, client_state, data, key: client_state
    train: Callable[..., Any] | None = None
    finish: Callable[..., dict[str, Any]] = _no_extras
    after_round: Callable[..., RuleState] = lambda rule_state, upload, trained_params, new_variables, verdict: (
        rule_state
    )
    needs_linear: bool = False
    sends: tuple[str, ...] = ()


class Roster(NamedTuple):
    """Who attacks and when: the ground truth that every attack's state begins with.

    Attributes:
        malicious: [N] bool.
        first: int32 scalar, first round of the attack.
        last: int32 scalar, last round of the attack (inclusive).
        round: int32 scalar, the round in progress; kept up to date by `begin_round`.
    """

    malicious: Array
    first: Array
    last: Array
    round: Array

    def attacks_now(self, client_ids: Array) -> Array:
        """Which of `client_ids` attack in the round in progress: bool, shaped like `client_ids`."""
        on = (self.round >= self.first) & (self.round <= self.last)
        return self.malicious[client_ids] & on


class AttackState(NamedTuple):
    """State of an attack: the common roster and whatever the attack itself keeps."""

    roster: Roster
    own: State = ()


class AttackContext(NamedTuple):
    """What an attack is told once, before the first round.

    Attributes:
        roster: who attacks and when.
        image_shape: (H, W, C) of the images that `poison` sees.
        num_classes: number of classes.
        mean, std: [C] float32 with which pixel values in [0, 1] are normalised.
    """

    roster: Roster
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: Array
    std: Array


class Attack(NamedTuple):
    """What malicious clients do. A list of attacks composes (`attacks.compose`).

    Attributes:
        init: (AttackContext, key) -> AttackState.
        begin_round: (ctx, state, data, key) -> state, once per round.
        poison: (state, images, labels, sample_ids, client_id, key) -> (images, labels), on augmented, normalised
            batches.
        backdoor: (state, images, labels) -> (images, targets): triggered test images and the label that the attacker
            wants, or None where the attack has no backdoor.
        freezes: (state, client_id) -> bool scalar: the client's augmentation is drawn once for the whole run.
        mask_gradients: (state, grads, client_id) -> grads, before the optimiser's step.
        after_step: (ctx, state, params, client_id) -> params, after it.
        craft: (state, upload, key) -> client_params; sees all rows, only rows of malicious clients may change.
    """

    init: Callable[..., AttackState] = lambda ctx, key: AttackState(ctx.roster)
    begin_round: Callable[..., AttackState] = lambda ctx, state, data, key: state._replace(
        roster=state.roster._replace(round=ctx.round)
    )
    poison: Callable[..., tuple[Array, Array]] = lambda state, images, labels, sample_ids, client_id, key: (
        images,
        labels,
    )
    backdoor: Callable[..., tuple[Array, Array]] | None = None
    freezes: Callable[..., Array] = lambda state, client_id: jnp.zeros((), bool)
    mask_gradients: Callable[..., Params] = lambda state, grads, client_id: grads
    after_step: Callable[..., Params] = lambda ctx, state, params, client_id: params
    craft: Callable[..., Params] = lambda state, upload, key: upload.client_params


class ServerData(NamedTuple):
    """Clean data that the server holds, for the rules that need it: the validation split, never augmented.

    A rule may be made with it inside a compiled program, from arrays that are arguments of that program: so a round
    holds no image as a constant.

    Attributes:
        model: the network.
        images: [n, H, W, C] float32, normalised; or uint8, normalised batch by batch with `mean` and `std`.
        labels: [n] int32.
        batch_size: batch size of training on the server; an incomplete last batch is dropped.
        mean, std: [C] float32, of pixel values in [0, 1]; read where the images are uint8.
        epochs, momentum, weight_decay: the clients' own, for rules that train on the server as the clients do.
        shuffle: whether every epoch has an order of its own; False takes the batches in the order stored.
    """

    model: Model
    images: Array
    labels: Array
    batch_size: int
    mean: Any = 0.0
    std: Any = 1.0
    epochs: Any = 10
    momentum: Any = 0.9
    weight_decay: Any = 1e-5
    shuffle: bool = True
