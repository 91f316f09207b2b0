"""Sequences of tokens go through all that images go through; the data sets and networks are those of `tests.tokens`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_spmc import (
    data,
    evaluate,
    evaluation,
    experiment,
    fisher,
    losses,
    models,
    one_round,
    parts,
    registry,
    setup,
    sweep,
    trees,
)
from fedjax_spmc.aggregators import _server_training, deepsight
from fedjax_spmc.config import resolve
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.pipeline import Pipeline, client_data, in_order, pad_indices
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.fisher import sample_squares
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.report import __main__ as report
from fedjax_spmc.types import Attack, Batch, Context, Examples, ServerData, Upload
from tests import small, tokens

pytestmark = pytest.mark.pictures

NAMES = ("next_token", "topics")
KEY = jax.random.key(0)
BATCH = 4
MADE = tokens.sequences(13, 7)  # three full batches and one row


@pytest.fixture(scope="module", autouse=True)
def registered():
    with tokens.registered():
        yield


@pytest.fixture(scope="module")
def finished(registered, tmp_path_factory):
    """The folder of a run of SPMC on next tokens."""
    folder = tmp_path_factory.mktemp("tokens") / "finished"
    experiment.run(tokens.config(rounds=3, presets="spmc"), folder)
    return folder


def labels_of(name: str) -> np.ndarray:
    return tokens.next_tokens(MADE) if name == "next_token" else MADE.topics


def model_of(name: str):
    return tokens.next_token_model() if name == "next_token" else tokens.topics_model()


def logits_of(name: str, params, inputs, xp=np):
    """[B, T, vocabulary] or [B, classes], stated anew."""
    table, weight, bias = (xp.asarray(leaf) for leaf in jax.tree.leaves(params))
    vectors = table[xp.asarray(inputs)]
    if name == "next_token":
        places = [vectors[:, : t + 1].mean(axis=1) for t in range(tokens.LENGTH)]
        seen = xp.stack(places, axis=1)
    else:
        words = xp.asarray(inputs != tokens.PADDING, vectors.dtype)[:, :, None]
        seen = (words * vectors).sum(axis=1) / words.sum(axis=1)
    return xp.einsum("...d,cd->...c", seen, weight) + bias.reshape((1,) * (seen.ndim - 1) + (-1,))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def flat(tree) -> np.ndarray:
    return np.asarray(models.to_torch(tree), np.float64)


# Parts.


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_have_torchs_names_and_do_what_they_say(name):
    model = model_of(name)
    variables = model.init(KEY)
    assert [".".join(path) for path in model.param_order] == ["embedding.weight", "fc.weight", "fc.bias"]
    assert list(models.to_torch_dict(variables)) == ["embedding.weight", "fc.weight", "fc.bias"]
    logits, _ = model.apply(variables.params, {}, jnp.asarray(MADE.tokens), True, KEY)
    np.testing.assert_allclose(logits, logits_of(name, variables.params, MADE.tokens), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_data_are_tokens_as_they_are(name):
    loaded = data.load(name, num_train=50, limit_test=7)
    assert loaded.train_inputs.shape == (45, tokens.LENGTH)
    assert loaded.train_inputs.dtype == loaded.train_labels.dtype == np.int32
    assert loaded.test_labels.shape == ((7, tokens.LENGTH) if name == "next_token" else (7,))
    task = task_of(loaded.info)
    assert (task.mean, task.input.dtype) == (None, jnp.int32)
    assert task.prepare(MADE.tokens, KEY) is MADE.tokens
    wide = data.dataset.as_stored(MADE.tokens.astype(np.int64))
    assert wide.dtype == np.int32


@pytest.mark.parametrize("name", NAMES)
def test_losses_count_what_is_asked_of_valid_rows(name):
    model, labels = model_of(name), labels_of(name).copy()
    labels[2] = -1
    valid = np.arange(len(labels)) < 10
    params = model.init(KEY).params
    logits = logits_of(name, params, MADE.tokens)
    counted = (labels >= 0) & valid.reshape(-1, *[1] * (labels.ndim - 1))
    logs = log_softmax(logits)
    of_label = np.take_along_axis(logs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    loss = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(valid))
    np.testing.assert_allclose(loss, -of_label[counted].mean(), rtol=1e-5)
    teacher = 2 * logits[::-1]
    soft = losses.soft_cross_entropy(jnp.asarray(logits), jnp.asarray(teacher), jnp.asarray(counted))
    np.testing.assert_allclose(soft, -(np.exp(log_softmax(teacher)) * logs).sum(axis=-1)[counted].mean(), rtol=1e-5)
    nothing = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.zeros(len(labels), bool))
    assert float(nothing) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_counts_what_is_asked(name):
    """Every label by hand, clean and as the attacker wants it; -1 is left out."""
    built = experiment.build(resolve(tokens.config(name)))
    inputs, labels = np.asarray(built.test.inputs), np.array(built.test.labels)
    labels[5] = -1
    test = Examples(built.test.inputs, jnp.asarray(labels))
    state, target = built.state, tokens.config(name).attack.target_label
    counts = built.evaluate(state.variables, test, state.roster, state.attack)
    places = np.arange(tokens.LENGTH) >= tokens.LENGTH // 2
    predicted = logits_of(name, state.variables.params, inputs).argmax(axis=-1)
    with_word = inputs.copy()
    with_word[:, 0] = tokens.TRIGGER
    turned = logits_of(name, state.variables.params, with_word).argmax(axis=-1)
    asked = labels >= 0
    wanted = asked & (places if name == "next_token" else True)
    classes = built.federation.model.num_classes
    np.testing.assert_array_equal(counts.asked, np.bincount(labels[asked], minlength=classes))
    right = labels[asked & (predicted == labels)]
    np.testing.assert_array_equal(counts.correct, np.bincount(right, minlength=classes))
    others = wanted & (labels != target)
    hit = turned == target
    numbers = [int(mask.sum()) for mask in (wanted, wanted & hit, others, others & hit)]
    assert [int(count) for count in counts[2:6]] == numbers
    assert 0 < numbers[2] < numbers[0] < asked.size
    # One entry of the histograms for each asked token.
    sure, sure_turned = (
        np.exp(log_softmax(logits_of(name, state.variables.params, given))).max(axis=-1)
        for given in (inputs, with_word)
    )
    masks = asked, asked & (predicted == labels), wanted, wanted & hit, others, others & hit
    for kept, mask, tops in zip(counts.histograms, masks, (sure, sure, *[sure_turned] * 4), strict=True):
        assert kept.sum() == mask.sum()
        for tau in (10, 20, 35):
            assert np.abs(tops - tau / 100).min() > 1e-6
            assert np.asarray(kept)[tau:].sum() == (mask & (tops >= tau / 100)).sum()


def test_rows_that_fill_up_a_batch_are_not_wanted_whatever_an_attack_says(monkeypatch):
    def careless(ctx, own, batch):
        return batch._replace(labels=jnp.zeros_like(batch.labels))

    monkeypatch.setattr(evaluation, "LOGITS_AT_ONCE", 8 * tokens.CLASSES)  # 13 sequences in two batches of 8
    loaded = data.load("topics")
    test = Examples(jnp.asarray(MADE.tokens), jnp.asarray(MADE.topics))
    evaluate_model = evaluation.make_evaluate(model_of("topics"), Attack(backdoor=careless), task_of(loaded.info))
    counts = evaluate_model(model_of("topics").init(KEY), test, None, ())
    assert int(counts.triggered) == int(counts.asked.sum()) == len(MADE.topics)


# Whole runs.


def test_a_run_is_recorded(finished):
    result = experiment.load(finished)
    assert [line["round"] for line in result.history] == [0, 1, 2]
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert all(0 <= line["ASR"] <= 100 for line in result.history)
    assert list(np.load(finished / "model.npz")) == ["embedding.weight", "fc.weight", "fc.bias"]
    assert json.loads((finished / "environment.json").read_text())["data"]["vocabulary"] == tokens.VOCABULARY
    assert not (finished / "partition.png").exists()
    assert (finished / "curves.png").exists()


def test_evaluate_prints_the_last_line(finished, capsys):
    capsys.readouterr()
    assert evaluate.main([str(finished), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: experiment.load(finished).history[-1][name] for name in printed}


def test_an_interrupted_run_goes_on_with_the_same_bits(finished, tmp_path):
    class Interrupted(BaseException):
        pass

    original, calls = RunFolder.write_model, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted
        return original(*arguments)

    config = tokens.config(rounds=3, presets="spmc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_model", interrupting)
        with pytest.raises(Interrupted):
            experiment.run(config, tmp_path / "run")
    experiment.run(config, tmp_path / "run")
    small.assert_same_run(tmp_path / "run", finished)


@pytest.mark.slow
def test_cells_of_a_sweep_are_single_runs(finished, tmp_path):
    base = tokens.config(rounds=3, presets="spmc")
    rows = sweep.run(sweep.Sweep(base, {"local.learning_rate": [0.5, 0.1]}), tmp_path)
    assert [row["status"] for row in rows] == ["finished"] * 2
    other = experiment.run(tokens.config(rounds=3, presets="spmc", local__learning_rate=0.1))
    for row, alone in zip(rows, (experiment.load(finished), other), strict=True):
        ours = experiment.load(tmp_path / row["folder"])
        np.testing.assert_allclose(flat(ours.variables.params), flat(alone.variables.params), atol=1e-5)
        for line, single in zip(ours.history, alone.history, strict=True):
            assert [line[name] for name in ("A", "ASR", "per_class")] == [single[n] for n in ("A", "ASR", "per_class")]


def test_the_report_says_that_there_are_no_pictures(finished, tmp_path, capsys):
    assert report.main([str(finished), f"--out={tmp_path / 'page'}"]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "There are no pictures for this task." in page
    assert "The partition is not shown: a sequence with a label at every place has no class." in page
    assert "No test images can be shown of these runs" in page
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("preset", ["fedavg", pytest.param("fdcr", marks=pytest.mark.slow)])
def test_topics_are_divided_by_class_and_learnt(preset, tmp_path):
    config = tokens.config(
        "topics", preset, rounds=3, partition__name="dirichlet", partition__beta=5.0, attack__name="none"
    )
    result = experiment.run(config, tmp_path)
    assert result.history[-1]["A"] > 85
    assert result.history[-1]["ASR"] is None
    assert (tmp_path / "partition.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["fdcr", "krum", "deepsight", "fltrust", "finetuning", "sageflow", "scaffold"])
def test_other_methods_learn_the_next_token(preset):
    options = {"aggregator__options__samples": 100} if preset == "deepsight" else {}
    if preset == "sageflow":  # its own threshold lies below the entropy of a network that knows nothing yet
        options = {"aggregator__options__threshold": 3.0}
    if preset == "scaffold":
        preset, options = "fedavg", {"local__rule": "scaffold"}
    history = experiment.run(tokens.config("next_token", preset, rounds=3, **options)).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert sum(line["non_finite"] + line["aggregation_failed"] for line in history) == 0
    assert all(np.isfinite(line["scores"]).all() for line in history)


# What does not fit.


@pytest.mark.parametrize("name", ["dirichlet", "shards"])
def test_a_partition_by_class_is_refused_where_every_place_has_a_label(name, tmp_path):
    sentence = (
        rf"^partition\.name = '{name}' is not allowed with data that have a label at every place of a sequence: it "
        r"must be one that goes by no class, such as iid or quantity\.$"
    )
    with pytest.raises(ConfigError, match=sentence):
        experiment.run(tokens.config(partition__name=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_partitions_divide_sequences():
    loaded = data.load("next_token")
    for name in ("iid", "quantity"):
        parts = setup.divide(resolve(tokens.config(partition__name=name, local__batch_size=4)), loaded)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(loaded.train_labels)))


def test_pixels_and_tokens_do_not_mix():
    with pytest.raises(ConfigError, match=r"^attack\.trigger = 'fdcr_paper' is not allowed: .* take no pixel trigger"):
        experiment.build(resolve(tokens.config(attack__name="badnets")))
    with pytest.raises(
        ConfigError, match=r"^model\.name = 'mlp' is not allowed with data\.name = 'next_token'.* topics"
    ):
        experiment.build(resolve(tokens.config(model__name="mlp")))
    with pytest.raises(ConfigError, match=r"^model\.name = 'topics' is not allowed with .* images: .* simple_cnn"):
        experiment.build(resolve(small.config(model__name="topics", attack__name="none")))


# Fisher.


def sample_gradients(name: str, params, rows, labels) -> np.ndarray:
    """[n, D]: of the mean over a sequence's asked places of -log p."""

    def loss(params, inputs, label):
        logs = jax.nn.log_softmax(logits_of(name, params, inputs[None], jnp)[0])
        if label.ndim == 0:
            return -logs[label] if label >= 0 else 0 * logs.sum()
        places = np.flatnonzero(label >= 0)
        return -sum(logs[t, label[t]] for t in places) / max(len(places), 1)

    return np.stack([flat(jax.grad(loss)(params, MADE.tokens[i], labels[i])) for i in rows])


def expected_fisher(kind: str, name: str, params, labels: np.ndarray, batches: list[np.ndarray]) -> np.ndarray:
    answers = (labels >= 0).reshape(len(labels), -1).sum(axis=1)
    if kind == "per_sample":
        rows = np.concatenate(batches)
        return (sample_gradients(name, params, rows, labels) ** 2).sum(axis=0) / (answers[rows] > 0).sum()
    total, means = np.zeros(1), []
    for rows in batches:
        if kind == "batch":  # the mean over the places of a batch weighs each sequence by its places
            each = sample_gradients(name, params, rows, labels)
            mean = (answers[rows, None] * each).sum(axis=0) / answers[rows].sum()
            total = total + (answers[rows] > 0).sum() * mean**2
            continue
        asked = labels[rows] >= 0

        def pairs(params, rows=rows, asked=asked):
            """Mean over every asked place and every asked label of the batch."""
            logs = jax.nn.log_softmax(logits_of(name, params, MADE.tokens[rows], jnp))[asked]
            return -jnp.mean(jnp.stack([logs[:, label].mean() for label in labels[rows][asked]]))

        means.append(flat(jax.grad(pairs)(params)))
    if kind == "batch":
        return total / (answers[np.concatenate(batches)] > 0).sum()
    return np.mean(means, axis=0) ** 2


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("kind", fisher.KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_the_fisher_is_a_sequence(name, kind, drop_last):
    model, labels = model_of(name), labels_of(name).copy()
    labels[3] = -1  # a sequence that asks nothing
    variables = model.init(KEY)
    batches = [np.arange(start, min(start + BATCH, 13)) for start in range(0, 13, BATCH)]
    batches = batches[:-1] if drop_last else batches
    theirs = expected_fisher(kind, name, variables.params, labels, batches)
    given = in_order(jnp.asarray(MADE.tokens), jnp.asarray(labels), BATCH)
    for chunk in (None, 3) if kind == "per_sample" else (None,):
        estimate = jax.jit(lambda v, chunk=chunk: fisher.estimate(kind, model, v, given, chunk, drop_last))
        np.testing.assert_allclose(flat(estimate(variables)), theirs, atol=1e-5 * theirs.max(), rtol=0)
    assert theirs.max() > 0


def test_a_layer_over_places_is_not_squared_within_itself():
    """Without an embedding every layer is known, but its columns are places and no samples."""

    class Places(nn.Module):
        sums: bool

        @nn.compact
        def __call__(self, given, train):
            columns = jax.nn.one_hot(given, tokens.VOCABULARY).reshape(-1, tokens.VOCABULARY).T
            logits = models.layers.Linear(3, name="fc")(columns).T.reshape(*given.shape, 3)
            return logits.sum(axis=1) if self.sums else logits

    for sums in (False, True):
        model = models.layers.as_model(Places(sums), 3, (tokens.LENGTH,), dtype=jnp.int32)
        assert not sample_squares.supports(model, model.init(KEY))


# The server.


@pytest.mark.parametrize("name", NAMES)
def test_the_server_trains_and_judges_by_what_is_asked(name):
    model, labels = model_of(name), labels_of(name)
    params = model.init(KEY).params
    server = ServerData(model, jnp.asarray(MADE.tokens), jnp.asarray(labels), BATCH, shuffle=False)
    logs = log_softmax(logits_of(name, params, MADE.tokens))
    asked = labels >= 0
    of_label = np.take_along_axis(logs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    entropy, loss = _server_training.evaluate(server, params, {})
    np.testing.assert_allclose(entropy, -(np.exp(logs) * logs).sum(axis=-1)[asked].mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, -of_label[asked].mean(), rtol=1e-5)

    order = _server_training.batch_order(server, 1, KEY)
    assert order.shape == (3, BATCH)
    hyper = {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}
    trained = _server_training.train(server, params, {}, order[:1], hyper, KEY)
    answers = asked.reshape(len(labels), -1).sum(axis=1)[:BATCH, None]
    gradient = (answers * sample_gradients(name, params, range(BATCH), labels)).sum(axis=0) / answers.sum()
    np.testing.assert_allclose(flat(trained), flat(params) - 0.1 * gradient, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ddifs_draw_tokens_and_average_over_places(name, monkeypatch):
    model = model_of(name)
    rows = [model.init(jax.random.key(seed)).params for seed in range(3)]
    upload = Upload(rows[0], jax.tree.map(lambda *x: jnp.stack(x), *rows[1:]), jnp.ones(2), jnp.ones(2, bool))
    monkeypatch.setattr(deepsight, "INPUTS_AT_ONCE", 2 * 4 * model.num_classes * tokens.LENGTH)  # more than one chunk
    ours = deepsight.random_input_differences(model, upload, jax.random.split(KEY, 1), 9)
    drawn = deepsight.random_inputs(jax.random.split(KEY, 1)[0], jnp.arange(9), model, tokens.VOCABULARY)
    assert drawn.dtype == jnp.int32
    assert int(drawn.min()) >= 0
    assert tokens.VOCABULARY * 0.5 < int(drawn.max()) < tokens.VOCABULARY
    logs = [log_softmax(logits_of(name, params, np.asarray(drawn))) for params in rows]
    ratios = np.stack([np.exp(own - logs[0]) for own in logs[1:]])
    means = ratios.mean(axis=(1, 2) if name == "next_token" else 1)
    np.testing.assert_allclose(ours[0], means, rtol=1e-4)


# Incomplete batches.


def data_of_client(drop_last: bool, batch_size: int = 8, passes: int = 2):
    """13 sequences, of which the client has 6."""
    arrays = Examples(jnp.asarray(MADE.tokens), jnp.asarray(labels_of("next_token")))
    indices = pad_indices([np.array([1, 3, 4, 7, 8, 12]), np.arange(13)])
    task = task_of(data.load("next_token").info)
    pipeline = Pipeline(batch_size, passes, task.prepare, drop_last)
    return client_data(
        pipeline, arrays, indices.rows[0], indices.sizes[0], jnp.int32(0), jnp.zeros((), bool), jnp.int32(0), KEY
    )


def test_a_batch_larger_than_the_client_has_rows_that_count_for_nothing():
    given = data_of_client(drop_last=False)
    assert int(given.num_batches) == 1
    batch = given.gather(jnp.int32(0), KEY)
    np.testing.assert_array_equal(batch.valid, np.arange(8) < 6)
    np.testing.assert_array_equal(np.sort(batch.sample_ids[:6]), [1, 3, 4, 7, 8, 12])
    np.testing.assert_array_equal(batch.labels[6:], -1)
    model = model_of("next_token")
    params = model.init(KEY).params
    alone = jax.tree.map(lambda x: x[:6], batch)
    rule = registry.local_rules.make("sgd")
    ctx = Context(model, None, None, {}, 1, jnp.int32(0))
    (ours, _, _), (theirs, _, _) = (rule.gradients(ctx, params, {}, Batch(*one), (), KEY) for one in (batch, alone))
    np.testing.assert_allclose(flat(ours), flat(theirs), atol=1e-7)


@pytest.mark.parametrize("drop_last", [True, False])
def test_more_epochs_than_were_prepared_give_nothing(drop_last):
    given = data_of_client(drop_last, batch_size=3)
    assert bool(given.gather(jnp.int32(3), KEY).valid.all())
    beyond = given.gather(jnp.int32(4), KEY)
    assert not bool(beyond.valid.any())
    np.testing.assert_array_equal(beyond.labels, -1)
    np.testing.assert_array_equal(beyond.inputs, 0)

    loaded = data.load("synthetic", num_train=20)
    arrays = setup.examples_of(loaded.train_inputs, loaded.train_labels)
    pipeline = Pipeline(3, 1, task_of(loaded.info).prepare, drop_last)
    live = jnp.zeros((), bool)
    pixels = client_data(pipeline, arrays, jnp.arange(6), jnp.int32(6), jnp.int32(0), live, jnp.int32(0), KEY)
    inside, beyond = (pixels.gather(jnp.int32(step), KEY) for step in (1, 2))
    assert bool(jnp.isfinite(inside.inputs).all())
    assert bool(jnp.isnan(beyond.inputs).all())
    np.testing.assert_array_equal(beyond.labels, -1)
    assert not bool(beyond.valid.any())


@pytest.mark.parametrize("name", ["next_token", pytest.param("synthetic", marks=pytest.mark.slow)])
def test_clients_smaller_than_a_batch_train_on_all_they_have(name):
    """36 examples each: batches of 50 with 14 missing rows are batches of 36."""
    fields = {"attack__name": "none", "local__learning_rate": 0.1, "partition__name": "iid"}

    def run(**more):
        config = small.config if name == "synthetic" else tokens.config
        return experiment.run(config(rounds=2, presets="fedavg", **fields, **more))

    exact = run(local__batch_size=36)
    ours = run(local__batch_size=50, local__drop_last=False)
    np.testing.assert_allclose(flat(ours.variables.params), flat(exact.variables.params), atol=1e-5)
    assert ours.history[-1]["train_loss"] == pytest.approx(exact.history[-1]["train_loss"], abs=1e-5)
    with pytest.raises(
        ConfigError, match=r"batch_size = 50 is not allowed: .* 36, .* or local\.drop_last must be False"
    ):
        run(local__batch_size=50)


@pytest.mark.slow
def test_the_fisher_of_fdcr_covers_an_incomplete_batch_where_training_does():
    config = tokens.config(rounds=1, presets="fdcr", local__batch_size=50, local__drop_last=False, attack__name="none")
    built = experiment.build(resolve(config))
    trained = jax.jit(lambda state: one_round.train(built.federation, built.arrays, built.sizes, state, KEY))
    extras = trained(built.state).trained.extras
    assert all(float(jnp.max(trees.take_rows(extras["fisher"], k)["fc"]["weight"])) > 0 for k in range(4))


def test_statistics_that_count_every_row_refuse_incomplete_batches():
    info = DatasetInfo("made_up", 10, (32, 32, 3), (0.5,) * 3, (0.5,) * 3)

    class Careless(nn.Module):
        """Batch statistics of whatever stands in a batch."""

        @nn.compact
        def __call__(self, images, train):
            return nn.Dense(10)(nn.BatchNorm(use_running_average=not train)(images.reshape(len(images), -1)))

    def careless(num_classes: int = 10, image_shape: tuple[int, int, int] = (32, 32, 3)):
        return as_model(Careless(), num_classes, image_shape)

    fields = {"local__drop_last": False, "federation__num_clients": 2, "federation__clients_per_round": 2}
    sentence = (
        r"^local\.drop_last = False is not allowed with model\.name = 'careless', whose batch statistics would count "
        r"the rows that an incomplete batch lacks: it must be True\.$"
    )
    with registry.models.temporary("careless", careless):
        with pytest.raises(ConfigError, match=sentence):
            parts.check_fits(resolve(small.config(model__name="careless", **fields)), info)
        parts.check_fits(resolve(small.config(model__name="careless")), info)
    parts.check_fits(resolve(small.config(model__name="resnet18_thin", **fields)), info)
