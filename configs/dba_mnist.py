"""DBA as its authors play it on MNIST: four attackers, each with a bar of the trigger, and raw pixels.

    python -m fedjax_spmc.run --config=configs/dba_mnist.py --workdir=runs/dba              # the scaled single shot
    python -m fedjax_spmc.run --config=configs/dba_mnist.py:continuous                      # all four in every round
    python -m fedjax_spmc.evaluate runs/dba --part=0                                        # one attacker's bar alone
    python -m fedjax_spmc.run --config=configs/dba_mnist.py:start --workdir=runs/dba_mnist_start
    python -m fedjax_spmc.run --config=configs/dba_mnist.py:kept                            # begins where `start` ended

100 clients, ten a round, Dirichlet 0.5, `mnist_net`, 28 x 28 pixels in [0, 1]; attackers poison 20 of 64 pictures and
train ten epochs, at a tenth of their rate from the third on and at a hundredth from the ninth.

* `single_shot` (as without a word): the attackers take part one after another in rounds 12, 14, 16 and 18, each with
  an update that is a hundred times as long. The server moves a tenth of the mean update: 100 x 0.1 / 10 = 1, so that
  each upload replaces the model.
* `continuous`: all four attack in every round from 11 on; nothing is scaled, and the server takes the whole mean.
* The code begins with a model of ten clean rounds. Here they are the first of the run, in which a server that moves a
  tenth learns little. `start` plays them alone, with the whole mean; `kept` begins with the model that it left in
  `runs/dba_mnist_start`, and counts rounds from there: 2, 4, 6 and 8, or from 1 on.

Deviation: the shares of the code's Dirichlet partition are drawn in another way.

Other methods of `--list` may stand beside these words, such as `:continuous,krum`.
"""

from fedjax_spmc.config import make_config, set_field

FIELDS = {
    "data.name": "mnist",
    "data.options.resize": False,
    "data.normalise": False,
    "data.val_fraction": 0.0,
    "model.name": "mnist_net",
    "federation.num_clients": 100,
    "federation.clients_per_round": 10,
    "sampling.options.attackers": "forced",
    "local.epochs": 1,
    "local.drop_last": False,
    "local.learning_rate": 0.1,
    "local.weight_decay": 5e-4,
    "server.optimizer": "sgd",
    "attack.malicious_fraction": 0.04,
    "attack.target_label": 2,
    "attack.trigger": "dba_mnist",
    "attack.options.poison_per_batch": 20,
    "attack.local.epochs": 10,
    "attack.local.learning_rate": 0.05,
    "attack.local.milestones": (2, 8),
}
SINGLE_SHOT = {
    "attack.name": ("dba", "model_replacement"),
    "attack.options.factor": 100.0,
    "attack.schedule.every": 2,
    "attack.schedule.turns": 1,
    "server.learning_rate": 0.1,
}
CONTINUOUS = {"attack.name": "dba", "server.learning_rate": 1.0}
CLEAN, ROUNDS = 10, 70
START = {
    "attack.name": "none",
    "attack.options": {},
    "attack.schedule.first": 0,
    "attack.schedule.last": None,
    "federation.rounds": CLEAN,
    "server.learning_rate": 1.0,
}


def get_config(arg: str = ""):
    given = {word.strip() for word in arg.split(",")}
    (first, last), chosen = ((11, 69), CONTINUOUS) if "continuous" in given else ((12, 18), SINGLE_SHOT)

    def rounds(before: int) -> dict[str, int]:
        return {
            "attack.schedule.first": first - before,
            "attack.schedule.last": last - before,
            "federation.rounds": ROUNDS - before,
        }

    words = {
        "single_shot": SINGLE_SHOT,
        "continuous": CONTINUOUS,
        "start": START,
        "kept": {"model.start": "runs/dba_mnist_start", **rounds(CLEAN)},
    }
    config = make_config(arg, method="fedavg", words=words, fields=FIELDS | chosen | rounds(0))
    if config.aggregator.name == "mean":
        set_field(config, "aggregator.options.weights", "uniform")
    return config
