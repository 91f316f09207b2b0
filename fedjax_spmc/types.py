"""The contracts between the parts: plain tuples of arrays and of pure functions.

"Stacked" means the same pytree with a leading client axis [K, ...]; K clients take part in a round, N exist.
Every slot of a `LocalRule` has a default that does nothing and an absent slot of an `Attack` is None, so that a part
names only what it does.
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


class Task(NamedTuple):
    """What a data set makes of a model's work; static, closed over by programs.

    Attributes:
        num_classes: number of labels, or size of the vocabulary.
        input: shape and dtype of one example as the model sees it: (H, W, C) float32 or (T,) int32.
        prepare: (raw [B, ...], keys [B] or None) -> inputs [B, ...]. With keys as in training (pixels: crop and flip
            are drawn from each example's key), with None as the test set; tokens stay as they are.
        mean, std: [C] of pixel values in [0, 1], with which pixels are normalised; None for tokens.
        tokenizer: of tokens, or None.
    """

    num_classes: int
    input: jax.ShapeDtypeStruct
    prepare: Callable[[Array, Array | None], Array]
    mean: Any = None
    std: Any = None
    tokenizer: Any = None


class Model(NamedTuple):
    """A network as pure functions.

    Attributes:
        init: key -> Variables.
        apply: (params, stats, inputs [B, ...], train: bool, key, valid=None) -> (logits, stats); logits are
            [B, classes] or, where every place of a sequence is asked, [B, T, vocabulary]. A network that draws random
            numbers, such as dropout's, does so from `key`, and only in training. With `valid` [B] bool, batch
            statistics count valid rows alone; a network that cannot do so raises a ValueError.
        param_order: parameter paths in torch registration order: the order of every flat vector and of
            `jax.tree.leaves(params)`. Every leaf has torch's layout.
        num_classes: number of logits.
        input: shape and dtype of one example that `apply` takes.
        features: `apply`'s arguments -> (what the last linear layer takes [B, features], stats); the last two of
            `param_order` are that layer's weight and bias. None where a network does not end in such a layer, or in
            one without a bias.
        left: layers of Flax's own that a CPU computes with the library, whose gradients are slow there, each with why;
            see `models.flax_layers`.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Array, Stats]]
    param_order: tuple[tuple[str, ...], ...]
    num_classes: int
    input: jax.ShapeDtypeStruct
    features: Callable[..., tuple[Array, Stats]] | None = None
    left: tuple[str, ...] = ()


TRUTH = "malicious"
"""The extra that the server adds where an `oracle_` option of its rule is on: [K] bool, who is malicious."""


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
        extras: stacked trees that a local rule sends along, such as {"fisher": ...}; and `TRUTH` for an oracle.
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
        differentiable: the new model has a useful gradient with respect to the uploads, almost everywhere.
    """

    linear: bool
    consensus: bool
    permutation: bool
    robust: bool
    stateless: bool
    differentiable: bool = True


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
        needs: the `Upload.extras` that the rule reads; the local rule must send them, but for `TRUTH`.
        details: Upload -> small arrays, what the rule's own pictures show; recorded of the last evaluated round.
        pictures: of these arrays.
        flags: whether the rule judges clients at all. One that never flags any has no TPR and no FPR, where one that
            flagged nobody this time has 0; the rows that the guard rejects are not its doing.
        rows: client ids [K] -> [K] int32: of a state all of whose leaves are [N, ...], the rows that `aggregate` reads
            and writes. The round may then give it these alone, in this order, with `Upload.client_ids` 0..K-1. None =
            it is always given the whole state.
        coefficients: (num_examples, usable), of one client or of all -> float32 >= 0 of that shape, 0 where not usable,
            for a rule whose new model is the mean of the usable uploads with these weights, whatever is uploaded, and
            whose verdict says no more. A round of many clients may then sum their models as they are trained, see
            `summing`, and never call `aggregate`.
        light: whether the rule takes no longer than a copy of the uploads. It is then compiled twice, so that none is
            made where every upload is usable.
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
    flags: bool = True
    rows: Callable[[Array], Array] | None = None
    coefficients: Callable[[Array, Array], Array] | None = None
    light: bool = False


class PreAggregator(NamedTuple):
    """What mixes or cuts the uploads before an aggregator sees them; a list of them stands in front of any rule.

    Attributes:
        mix: (Upload, key) -> (Upload, back), pure and jittable. Rows that do not take part are zeros on both sides; at
            least one takes part. `back` makes of a verdict on the rows that come out one on the rows that came in.
        rows: K -> number of rows that come out.
        fewest: rows that the rule behind needs -> usable rows that are needed.
        linear: the rows that come out are weighted means of those that came in.
        consensus: identical uploads come out unchanged.
        permutation: permuting rows permutes what comes out.
        per_client: row k that comes out stands for client k. Else rules with a state for each client, or that read
            `Upload.extras`, cannot stand behind it.
        chosen: K -> the options that were left open, as they are filled in for K uploads a round.
    """

    mix: Callable[[Upload, PRNGKey], tuple[Upload, Callable[[Verdict], Verdict]]]
    rows: Callable[[int], int] = lambda num_clients: num_clients
    fewest: Callable[[int], int] = lambda needed: needed
    linear: bool = True
    consensus: bool = True
    permutation: bool = True
    per_client: bool = True
    chosen: Callable[[int], dict[str, Any]] = lambda num_clients: {}


class Batch(NamedTuple):
    """One batch of one client.

    Attributes:
        inputs: [B, ...] as the model takes them: [B, H, W, C] float32, augmented, normalised, poisoned; or [B, T]
            int32.
        labels: [B], or [B, T] for a label at each place, int32; -1 = not asked: counts for nothing, in losses and in
            metrics. Rows that are not valid have -1.
        sample_ids: [B] int32, which training examples these are.
        valid: [B] bool, False where a row is padding.
    """

    inputs: Array
    labels: Array
    sample_ids: Array
    valid: Array


class Examples(NamedTuple):
    """Raw examples as a data set stores them: inputs [n, H, W, C] uint8 or [n, T] int32, labels [n] or [n, T] int32."""

    inputs: Array
    labels: Array


class ClientData(NamedTuple):
    """One client's data for one round; nothing is materialised.

    Attributes:
        gather: (step, key) -> Batch of that local step. Behind the epochs that a round may read (the local ones and
            `LocalRule.extra_passes`) rows are not valid and inputs are NaN, so that a careless rule shows itself.
        num_batches: int32 scalar, batches in one epoch.
        client_id: int32 scalar.
        size: int32 scalar, examples of the client; 0 where it is not known.
        take: (positions [B], key) -> Batch of the client's list in stored order, for loops of many passes, which draw
            an order of their own; augmentation is drawn from the key. None where there is none.
        order: key -> [M] int32, a random order of the list's positions 0..size-1, followed by padding, for such loops.
            None where there is none.
    """

    gather: Callable[[Array, PRNGKey], Batch]
    num_batches: Array
    client_id: Array
    size: Any = 0
    take: Callable[[Array, PRNGKey], Batch] | None = None
    order: Callable[[PRNGKey], Array] | None = None


class Context(NamedTuple):
    """What a local rule may look at in a round.

    Attributes:
        model: the network.
        variables: the global variables that were broadcast.
        previous: the global variables one round earlier (those of round 0 in round 0).
        hyper: traced scalars: learning_rate (this round's), momentum, weight_decay; beta2 where the local optimiser is
            Adam, whose beta1 is momentum; clip_norm where gradients are clipped. `training.sgd` goes by them.
        epochs: local epochs, a number or an int32 scalar.
        round: int32 scalar, from 0.
        obeys: bool scalar, whether this client follows the defence (an attacking one need not); it is the client's own
            knowledge of itself, and only local rules with an option for disobedient clients look at it.
        shared: the server's part of the local rule's state, sent along with the model.
        task: what the data set makes of the model's work.
    """

    model: Model
    variables: Variables
    previous: Variables
    hyper: Mapping[str, Any]
    epochs: Array | int
    round: Array
    obeys: Array | bool = True
    shared: State = ()
    task: Task | None = None


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
        needs_sgd: whether the rule's formula holds for SGD alone.
        needs_linear: whether the rule reads the verdict's weights as the coefficients of a weighted mean.
        sends: the names of the extras that `finish` returns.
        extra_passes: epochs of batches that the rule may read besides the local ones.
        details: (rule_state, malicious [N] bool) -> small arrays of what a client keeps, for pictures alone: the run
            folder's `rule.npz`. On the host, where `rule_state.clients` may be a `store.Store`; {} = none.
        drawn_only: whether `after_round` looks at no other rows of `rule_state.clients` than those of
            `upload.client_ids`. The round may then give it these alone, in this order, with `client_ids` 0..K-1.
        running: (server, before, after, N) -> server, for a rule whose `after_round` makes the server's part of all
            clients' states and does no more: the same, but for rounding, from the rows of those drawn alone, before and
            after the round. It is taken where clients are too many to keep them on the device, see `store`.
    """

    gradients: Callable[..., tuple[Params, Stats, dict[str, Array]]]
    init: Callable[[Variables, int], RuleState] = lambda variables, num_clients: RuleState()
    prepare: Callable[..., State] = lambda ctx, client_state, data, key: client_state
    train: Callable[..., Any] | None = None
    finish: Callable[..., dict[str, Any]] = _no_extras
    after_round: Callable[..., RuleState] = lambda rule_state, upload, trained_params, new_variables, verdict: (
        rule_state
    )
    needs_sgd: bool = False
    needs_linear: bool = False
    sends: tuple[str, ...] = ()
    extra_passes: int = 0
    details: Callable[[RuleState, Any], dict[str, Any]] = lambda rule_state, malicious: {}
    drawn_only: bool = False
    running: Callable[[State, State, State, int], State] | None = None


class Roster(NamedTuple):
    """Who attacks and when: the ground truth. The round keeps its clock; no attack has to.

    Attributes:
        malicious: [N] bool.
        first: int32 scalar, first round of the attack.
        last: int32 scalar, last round of the attack (inclusive).
        round: int32 scalar, the round in progress.
        every: int32 scalar, from the first on every so many rounds are attack rounds.
        turns: int32 scalar: 0 = all malicious clients attack in every attack round, 1 = one after another by id.
    """

    malicious: Array
    first: Array
    last: Array
    round: Array
    every: Array | int = 1
    turns: Array | int = 0

    def attack_round(self) -> Array:
        """Whether the round in progress is one of the schedule: bool, shaped like `round`."""
        since = self.round - self.first
        return (since >= 0) & (self.round <= self.last) & (since % self.every == 0)

    def attacks_now(self, client_ids: Array) -> Array:
        """Which of `client_ids` attack in the round in progress: bool, shaped like `client_ids`."""
        ranks = jnp.cumsum(self.malicious.astype(jnp.int32)) - 1
        turn = ((self.round - self.first) // self.every) % jnp.maximum(self.malicious.sum(dtype=jnp.int32), 1)
        has_turn = (ranks[client_ids] == turn) | (jnp.asarray(self.turns) == 0)
        return self.malicious[client_ids] & self.attack_round() & has_turn


class AttackContext(NamedTuple):
    """What an attack may look at: all that a local rule sees, and what an attacker is taken to know.

    `init` is given model, variables, task, roster and held, `backdoor` (also in evaluation and report) model, task,
    roster and held; the slots of a round are given everything. `hyper` and `epochs` are the client's own.

    Attributes:
        model, variables, previous, hyper, epochs, round, obeys, shared, task: see `Context`.
        roster: who attacks and when.
        client_ids: [K], who takes part in the round.
        num_batches: int32 scalar, batches in an epoch of the client in question.
        held: what `Attack.hold` brought to the device: arguments of the program, never constants.
        clean_data: client_id -> ClientData, unpoisoned.
        poisoned_data: client_id -> ClientData as the whole list of attacks poisons it.
        backdoor: Batch -> Batch, the trigger of the whole list.
        benign: client_id -> Variables, what the benign rule trains on that client's clean data. Costs a training. Of a
            client that takes part in the round: of others nobody has the state, and where the rule keeps one the result
            is NaN.
        defend: Upload -> (params, verdict), the server's aggregator under the attacker's own key; in `craft` alone.
        server_learning_rate: of the server's step.
        trained_clean: whether the whole list of attacks leaves data and training alone, so that attacking clients have
            trained on clean data; known when the program is made.
    """

    model: Any = None
    variables: Any = None
    previous: Any = None
    hyper: Any = None
    epochs: Any = None
    round: Any = None
    obeys: Any = False
    shared: Any = ()
    task: Any = None
    roster: Any = None
    client_ids: Any = None
    num_batches: Any = None
    held: Any = ()
    clean_data: Any = None
    poisoned_data: Any = None
    backdoor: Any = None
    benign: Any = None
    defend: Any = None
    server_learning_rate: Any = 1.0
    trained_clean: bool = False


class Attack(NamedTuple):
    """What attacking clients do; an absent slot is None. A list of attacks composes (`attacks.compose`).

    The round fences every slot: what an attack returns for a client that does not attack is thrown away, so that no
    attack needs a guard of its own. `own` is the attack's state, a pytree of arrays.

    Attributes:
        hold: (dataset, load) -> arrays on the host, once; `load` reads another data set as `data.load` does. It must
            not depend on the seed, so that a sweep shares one copy: draws belong in `init`.
        test: (held) -> Examples of its own, raw; then `backdoor` is given these in place of the test set.
        init: (ctx, key) -> own.
        begin_round: (ctx, own, key) -> own, in rounds in which a drawn client attacks.
        poison: (ctx, own, batch, client_id, step, key) -> batch of the same shapes.
        gradients: (ctx, own, params, stats, batch, client_id, step, key) -> (grads, stats, metrics), in place of the
            rule's; it may gather more batches.
        mask_gradients: (ctx, own, grads, params, client_id, step) -> grads, before the optimiser's step.
        after_step: (ctx, own, params, client_id, step) -> params, after it.
        train: (rule, ctx, own, variables, client_state, data, client_id, key, hooks) -> (variables, client_state,
            steps, metrics), in place of the rule's training; `data` as the list poisons it, `hooks` with the list's
            masks and steps, as `training.sgd` takes them. Metrics are cut to the rule's names; a missing one counts 0.
        craft: (ctx, own, upload, key) -> (upload, own), in rounds in which a drawn client attacks; sees all rows. Of
            attacking rows client_params, client_stats, extras and num_examples are taken.
        backdoor: (ctx, own, batch) -> batch: triggered test examples, labels as the attacker wants them, -1 = left out.
    """

    hold: Callable[..., Any] | None = None
    test: Callable[..., Examples] | None = None
    init: Callable[..., State] | None = None
    begin_round: Callable[..., State] | None = None
    poison: Callable[..., Batch] | None = None
    gradients: Callable[..., tuple[Params, Stats, dict[str, Array]]] | None = None
    mask_gradients: Callable[..., Params] | None = None
    after_step: Callable[..., Params] | None = None
    train: Callable[..., Any] | None = None
    craft: Callable[..., tuple[Upload, State]] | None = None
    backdoor: Callable[..., Batch] | None = None


class ServerData(NamedTuple):
    """Clean data that the server holds, for the rules that need it: the validation split, never augmented.

    A rule may be made with it inside a compiled program, from arrays that are arguments of that program: so a round
    holds no example as a constant.

    Attributes:
        model: the network.
        inputs: [n, ...] as the model takes them; or raw, prepared batch by batch where there is a task.
        labels: [n] or [n, T] int32.
        batch_size: batch size of training on the server; an incomplete last batch is dropped.
        task: prepares raw inputs; None = they are as the model takes them.
        epochs, momentum, weight_decay: the clients' own, for rules that train on the server as the clients do.
        shuffle: whether every epoch has an order of its own; False takes the batches in the order stored.
    """

    model: Model
    inputs: Array
    labels: Array
    batch_size: int
    task: Task | None = None
    epochs: Any = 10
    momentum: Any = 0.9
    weight_decay: Any = 1e-5
    shuffle: bool = True
