"""Test examples with predictions, as the page shows them, and what a finished run is opened with to make them."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_spmc import parts
from fedjax_spmc.report.read import Run

CLASSES: Mapping[str, Sequence[str]] = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
    "emnist_byclass_part": tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase),
    **dict.fromkeys(("imdb_reviews", "sentiment140_30k", "synthetic_sentiment"), ("negative", "positive")),
}  # fmt: skip
"""Names of the classes; other data sets show the numbers."""
JUDGED = {
    "hit": "what the attacker wants",
    "right": "right",
    "wrong": "wrong",
    "anyway": "no doing of the trigger",
}
"""What is said of a prediction of each kind."""


class Prediction(NamedTuple):
    """A test image or text and what the global model takes it for.

    Attributes:
        image: the picture as an img element; "" of a text.
        heat: its Grad-CAM as an img element; None where the network has no convolution.
        label: name of the true class; of a next token, the one that is asked.
        prediction: name of the predicted class, or the likeliest tokens, and in brackets whether that is right.
        kind: "right", "wrong", or "hit" where a triggered example has what the attacker wants; "anyway" where it would
            have that without a trigger too.
        text: the text; "" of an image.
    """

    image: str
    heat: str | None
    label: str
    prediction: str
    kind: str
    text: str = ""


class TestImages(NamedTuple):
    """Clean and triggered test images, or texts, of one run with the predictions of its global model.

    Attributes:
        clean: of the test set.
        triggered: the same with the trigger, or test examples of the attack's own.
        caption: which of the two, for a heading.
        note: a sentence on them.
    """

    __test__ = False  # no class of tests, whatever pytest makes of its name

    clean: list[Prediction]
    triggered: list[Prediction]
    caption: str
    note: str

    def named(self, of: str) -> "TestImages":
        """With what they are of in the names of the pictures, so that no two on a page are named alike."""
        from fedjax_spmc.report.figures import named_markup

        def one(shown: Prediction, number: int) -> Prediction:
            own = f"{of}, {number}"
            heat = shown.heat and named_markup(shown.heat, own)
            return shown._replace(image=named_markup(shown.image, own), heat=heat)

        clean, triggered = ([one(each, i) for i, each in enumerate(row, 1)] for row in (self.clean, self.triggered))
        return self._replace(clean=clean, triggered=triggered)


def disowned(one: Prediction) -> Prediction:
    """The prediction, not counted as the attacker's doing."""
    if one.kind != "hit":
        return one
    return one._replace(kind="anyway", prediction=one.prediction.replace(JUDGED["hit"], JUDGED["anyway"]))


AT_CHANCE = "The model is at chance: what it takes anything for says nothing of the attack."


def without_credit(shown: TestImages) -> TestImages:
    """The examples of a model at chance: one that predicts a single class has not learnt a backdoor."""
    return shown._replace(
        triggered=[disowned(one) for one in shown.triggered], note=f"{AT_CHANCE} {shown.note}".strip()
    )


class Opened(NamedTuple):
    """What a finished run is shown with.

    Attributes:
        task, model, attack: of its federation.
        variables: its model.
        ctx: what the attack's `backdoor` sees.
        own: the attack's state.
    """

    task: Any
    model: Any
    attack: Any
    variables: Any
    ctx: Any
    own: Any


def opened_run(run: Run, config: Any, dataset: Any) -> Opened:
    """A run with its model and its attack's state, on data that must be its own.

    Raises:
        UserError: something of it is missing or damaged, or the data are others.
    """
    from fedjax_spmc import experiment
    from fedjax_spmc.record.folder import RunFolder
    from fedjax_spmc.starting import without_start
    from fedjax_spmc.types import AttackContext

    assert run.folder is not None
    task = parts.task_of(config, dataset.info)
    built = experiment.build(without_start(config), dataset)
    folder = RunFolder(run.folder, config, read_only=True)
    model, attack, held = built.federation.model, built.federation.attack, built.federation.held
    folder.check_data(dataset.fingerprint, held, "the pictures need the run's own data.")
    variables = folder.read_model(model)
    ctx, own = None, None
    if attack.backdoor is not None:
        own = folder.read_attack(built.state.attack)
        ctx = AttackContext(model=model, variables=variables, task=task, roster=folder.roster(), held=held)
    return Opened(task, model, attack, variables, ctx, own)
