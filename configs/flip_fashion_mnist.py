"""FLIP on Fashion-MNIST, the setting of its code: 100 clients, ten a round, four of them malicious, DBA's trigger.

    python -m fedjax_spmc.run --config=configs/flip_fashion_mnist.py                      # FLIP, single shot
    python -m fedjax_spmc.run --config=configs/flip_fashion_mnist.py:flip,continuous      # attackers in every round
    python -m fedjax_spmc.run --config=configs/flip_fashion_mnist.py:flip,reference       # the code's schedule
    python -m fedjax_spmc.run --config=configs/flip_fashion_mnist.py:fedavg               # averaging

20 examples of each 64 in a batch are poisoned. Meant for a GPU; not played at this size yet.

* Without a word the clients search with the code's numbers of steps, for all triggers of a round at once; `lite` cuts
  the steps to an eighth and the pairs to three, `reference` searches batch by batch as the code does.
* Single shot (without a word): the four attack one after another in rounds 202, 204, 206 and 208, each with its update
  times 100, which at a server rate of 0.1 puts its model in the place of the global one. `continuous`: all four in each
  of rounds 201 to 300, unscaled, with predictions below 0.4 rejected.
* `noise`: random triggers in place of those found. `clean_steps`: the same steps without a trigger.
* `start` plays the 200 clean rounds by averaging (`:fedavg,start`), to be kept; give it
  `--workdir=runs/flip_fashion_mnist_start`. `kept` begins with what is there. Without it the same clients play them
  with the rule of the run.

Other methods of `--list` may stand beside these words. The code's attackers
have batches of 64, hardening clients of 128; here all have 128 where clients harden and 64 else. Its partition deals
out the size of class 0 of every class; here all examples are dealt out.
"""

from fedjax_spmc.config.flip_setting import FlipSetting, make_flip_config

SETTING = FlipSetting(
    fields={"data.name": "fashion_mnist", "model.name": "mnist_net", "data.options.resize": False},
    rates=(0.01, 0.1),
    epochs=(5, 1, 20),
    batch_size=128,
    per_batch=20,
    milestones=(4, 16),
    clean=200,
    first=201,
    last=300,
    shot=202,
    rounds=301,
    confidence=0.4,
    trigger="dba_mnist",
    options={"fraction": 0.6},
    searching={},
    steps={"universal_steps": 600, "pair_steps": 400, "short_steps": 100},
    start="runs/flip_fashion_mnist_start",
)


def get_config(arg: str = ""):
    return make_flip_config(arg, SETTING)
