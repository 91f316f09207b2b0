"""The networks for texts against plain torch: forward passes, gradients, a local epoch; dropout; what does not fit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import data, experiment, local_rules, models, training
from fedjax_spmc.config import resolve
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.fisher import sample_squares
from fedjax_spmc.models.lstm import Weights, lstm_layer
from fedjax_spmc.types import Context, Variables
from tests import small

KEY = jax.random.key(0)
VOCABULARY, LENGTH, WIDTH, HIDDEN = 13, 6, 5, 4
SHAPE = {"vocabulary": VOCABULARY, "sequence_length": LENGTH}
NEXT = {**SHAPE, "num_classes": VOCABULARY}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm_lm": ("lstm_lm", {**NEXT, "width": WIDTH, "hidden": WIDTH, "dropout": 0.0}),
    "untied": ("lstm_lm", {**NEXT, "width": WIDTH, "hidden": WIDTH, "dropout": 0.0, "tied": False}),
    "single": ("lstm_classifier", {**SHAPE, "width": WIDTH, "hidden": HIDDEN, "between": 0.0, "num_classes": 2}),
    "each": ("lstm_classifier", {**SHAPE, "width": WIDTH, "hidden": HIDDEN, "between": 0.0, "num_classes": 3}),
    "transformer": ("transformer_lm", {**NEXT, "width": 8, "heads": 2, "dropout": 0.0}),
}


def theirs(torch, case: str):
    """The same network in torch, with weights of its own."""
    from fedjax_spmc.parity.torch_reference import text

    torch.manual_seed(1)
    made = {
        "lstm_lm": lambda: text.LanguageModel(VOCABULARY, WIDTH),
        "untied": lambda: text.LanguageModel(VOCABULARY, WIDTH, tied=False),
        "single": lambda: text.Classifier(1, VOCABULARY, WIDTH, HIDDEN),
        "each": lambda: text.Classifier(3, VOCABULARY, WIDTH, HIDDEN),
        "transformer": lambda: text.Transformer(VOCABULARY, LENGTH, 8, 2, 2),
    }
    return made[case]()


def examples(case: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, padding among them, and labels, some of which are not asked."""
    rng = np.random.default_rng(2)
    inputs = rng.integers(0, VOCABULARY, (rows, LENGTH)).astype(np.int32)
    if NETWORKS[case][0] == "lstm_classifier":
        return inputs, rng.integers(0, NETWORKS[case][1]["num_classes"], rows).astype(np.int32)
    labels = rng.integers(0, VOCABULARY, (rows, LENGTH))
    return inputs, np.where(rng.random(labels.shape) < 0.2, -1, labels).astype(np.int32)


def named(network) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in network.named_parameters()}


def largest_difference(tree, expected: dict[str, np.ndarray]) -> float:
    ours = models.to_torch_dict(Variables(tree, {}))
    assert list(ours) == list(expected), "names and order are torch's"
    return max(float(np.abs(ours[name] - expected[name]).max()) for name in expected)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("case", NETWORKS)
def test_the_forward_pass_is_torchs(case, torch):
    name, options = NETWORKS[case]
    model, network = models.make(name, **options), theirs(torch, case).eval()
    params = models.from_torch_dict(model, named(network)).params
    assert [".".join(path) for path in model.param_order] == list(named(network)), "names and order are torch's"
    inputs, _ = examples(case, 3)
    logits, _ = jax.jit(lambda params: model.apply(params, {}, inputs, False))(params)
    expected = network(torch.tensor(inputs).long()).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 if case == "transformer" else 1e-6)


SLOW = pytest.param("transformer", marks=pytest.mark.slow)


@pytest.mark.parametrize("case", ["lstm_lm", "single", SLOW])
def test_gradients_and_a_local_epoch_are_torchs(case, torch):
    """Steps of an epoch one by one: their gradients first, so that a difference is not hidden by what follows."""
    from fedjax_spmc.parity.torch_reference import local, text

    name, options = NETWORKS[case]
    model, network = models.make(name, **options), theirs(torch, case)
    start = models.from_torch_dict(model, named(network))
    inputs, labels = examples(case, 12)
    batches = [(torch.tensor(inputs[i : i + 4]).long(), torch.tensor(labels[i : i + 4]).long()) for i in (0, 4, 8)]
    given, rule = in_order(jnp.asarray(inputs), jnp.asarray(labels), 4), local_rules.make("sgd")
    ctx = Context(model, start, start, {"learning_rate": 0.5, "momentum": 0.9, "weight_decay": 1e-3}, 1, jnp.int32(0))

    @jax.jit
    def trained(variables):
        grads = rule.gradients(ctx, variables.params, {}, given.gather(jnp.int32(0), KEY), (), KEY)[0]
        return grads, training.train_client(rule, ctx._replace(variables=variables), (), given, KEY).variables.params

    grads, params = trained(start)
    expected = network(batches[0][0])
    torch.nn.functional.cross_entropy(
        expected.reshape(-1, expected.shape[-1]), batches[0][1].reshape(-1), ignore_index=-1
    ).backward()
    gradients = {name: tensor.grad.numpy().copy() for name, tensor in network.named_parameters()}
    assert largest_difference(grads, gradients) < 1e-6
    step = text.train_next_tokens if labels.ndim > 1 else local.train_sgd
    assert step(network, batches, local.make_optimizer(network, 0.5, 0.9, 1e-3)) == 3
    assert largest_difference(params, named(network)) < 1e-5
    assert largest_difference(params, models.to_torch_dict(start)) > 1e-2


def test_the_gradient_by_hand_is_that_of_a_plain_loop():
    """By inputs, by the state before, and by all weights, of the outputs and of the state behind; and under vmap."""
    keys = iter(jax.random.split(KEY, 20))

    def draw(*shape):
        return jax.random.normal(next(keys), shape)

    inputs, state = draw(5, 3, WIDTH), (draw(3, HIDDEN), draw(3, HIDDEN))
    weights = Weights(draw(4 * HIDDEN, WIDTH), draw(4 * HIDDEN, HIDDEN), draw(4 * HIDDEN), draw(4 * HIDDEN))
    taken = draw(5, 3, HIDDEN), draw(3, HIDDEN), draw(3, HIDDEN)

    def plain(inputs, state, weights):
        h, c = state
        outputs = []
        for x in inputs:
            gates = x @ weights.ih.T + h @ weights.hh.T + (weights.bias_ih + weights.bias_hh)[None]
            i, f, g, o = (gates[:, k * HIDDEN : (k + 1) * HIDDEN] for k in range(4))
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            outputs.append(h)
        return jnp.stack(outputs), (h, c)

    def total(layer):
        def value(*arguments):
            outputs, (h, c) = layer(*arguments)
            return sum(jnp.sum(a * b) for a, b in zip((outputs, h, c), taken, strict=True))

        return jax.value_and_grad(value, argnums=(0, 1, 2))

    ours, expected = (jax.jit(total(layer))(inputs, state, weights) for layer in (lstm_layer, plain))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)
    several = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), (inputs, state, weights))
    together = jax.jit(jax.vmap(total(lstm_layer)))(*several)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(one[0], other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["lstm_lm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lstm_classifier", "transformer_lm"))]
)
def test_dropout_draws_in_training(name):
    shape = SHAPE if name == "lstm_classifier" else NEXT
    sizes = {"width": 8, "heads": 2} if name == "transformer_lm" else {"width": WIDTH, "hidden": WIDTH}
    model, inputs = models.make(name, **shape, **sizes), jnp.asarray(examples("lstm_lm", 3)[0])
    variables = jax.jit(model.init)(KEY)
    apply = jax.jit(lambda key: model.apply(variables.params, {}, inputs, True, key)[0])
    first, second = (apply(jax.random.key(seed)) for seed in (1, 2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, apply(jax.random.key(1)))
    with pytest.raises(ValueError, match="needs a key"):
        model.apply(variables.params, {}, inputs, True)


def test_no_place_of_a_transformer_sees_what_stands_behind_it():
    name, options = NETWORKS["transformer"]
    model, inputs = models.make(name, **options), jnp.asarray(examples("transformer", 2)[0])
    apply = jax.jit(lambda inputs: model.apply(model.init(KEY).params, {}, inputs, False)[0])
    one, other = apply(inputs), apply(inputs.at[:, 4:].set((inputs[:, 4:] + 1) % VOCABULARY))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert not np.allclose(one[:, 4:], other[:, 4:])


def test_initial_weights():
    model = models.make("lstm_lm", num_classes=900, vocabulary=900, width=50, hidden=50)
    weights = models.to_torch_dict(jax.jit(model.init)(KEY))
    assert np.abs(weights["encoder.weight"]).max() == pytest.approx(0.1, abs=1e-3)
    assert np.abs(weights["rnn.weight_hh_l1"]).max() == pytest.approx(50**-0.5, abs=1e-3)
    assert not weights["decoder.bias"].any()
    weights = models.to_torch_dict(jax.jit(models.make("transformer_lm", num_classes=900, vocabulary=900).init)(KEY))
    assert weights["encoder.weight"].std() == pytest.approx(0.02, abs=1e-3)
    assert weights["transformer.layers.1.linear2.weight"].std() == pytest.approx(0.01, abs=1e-3)
    assert weights["transformer.norm.weight"].min() == 1


@pytest.mark.parametrize("case", NETWORKS)
def test_the_fisher_takes_sample_after_sample(case):
    """Their layers are not those whose squares are summed in one backward pass."""
    name, options = NETWORKS[case]
    model = models.make(name, **options)
    assert not sample_squares.supports(model, jax.eval_shape(model.init, KEY))


def test_features_of_a_classifier_are_what_its_decoder_takes():
    name, options = NETWORKS["each"]
    model = models.make(name, **options)
    params, inputs = jax.jit(model.init)(KEY).params, jnp.asarray(examples("each", 3)[0])

    @jax.jit
    def both(params):
        return model.features(params, {}, inputs, False)[0], model.apply(params, {}, inputs, False)[0]

    features, logits = both(params)
    weight, bias = (np.asarray(leaf) for leaf in jax.tree.leaves(params)[-2:])
    np.testing.assert_allclose(logits, np.asarray(features) @ weight.T + bias[None], rtol=0, atol=1e-6)
    assert models.make("lstm_lm").features is models.make("transformer_lm").features is None


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(
        ConfigError, match=r"^model\.options\.width = 7 is not allowed with model\.options\.tied = True"
    ):
        models.make("lstm_lm", width=7)
    models.make("lstm_lm", width=7, tied=False)
    with pytest.raises(ConfigError, match=r"^model\.options\.width = 7 is not allowed with model\.options\.heads = 4"):
        models.make("transformer_lm", width=7)


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("pydoc_topics", "lstm_classifier", "has a label at every place: it must be one of lstm_lm, transformer_lm."),
        ("synthetic_sentiment", "lstm_lm", "has one label for a whole row: it must be one of lstm_classifier."),
        ("synthetic_sentiment", "mlp", "which holds sequences of tokens: it must be one of lstm_classifier, "),
        ("synthetic", "lstm_lm", "which holds images: it must be one of "),
    ],
)
def test_networks_and_data_that_do_not_fit_are_refused(name, model, words):
    made = small.config(data__name=name, model__name=model, partition__name="iid", attack__name="none")
    if name != "synthetic":
        del made.data.options["num_train"], made.data.options["num_test"]
    with pytest.raises(ConfigError) as caught:
        experiment.build(resolve(made), data.load(name))
    assert str(caught.value).startswith(f"model.name = '{model}' is not allowed with data.name = '{name}', ")
    assert words in str(caught.value)
