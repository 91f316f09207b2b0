"""FLIP on CIFAR-10, the setting of its code: 100 clients, ten a round, four of them malicious, DBA's trigger.

    python -m fedjax_spmc.run --config=configs/flip_cifar10.py                      # FLIP, single shot
    python -m fedjax_spmc.run --config=configs/flip_cifar10.py:flip,continuous      # attackers in every round
    python -m fedjax_spmc.run --config=configs/flip_cifar10.py:flip,reference       # the code's schedule
    python -m fedjax_spmc.run --config=configs/flip_cifar10.py:fedavg               # averaging

5 examples of each 64 in a batch are poisoned; the network is the thin ResNet-18. Meant for a GPU; not played at this
size yet.

* Without a word the clients search with the code's numbers of steps, for all triggers of a round at once; `lite` cuts
  the steps to an eighth and the pairs to three, `reference` searches batch by batch as the code does.
* Single shot (without a word): the four attack one after another in rounds 203, 205, 207 and 209, each with its update
  times 100, which at a server rate of 0.1 puts its model in the place of the global one. `continuous`: all four in each
  of rounds 200 to 300, unscaled, with predictions below 0.4 rejected.
* `noise`: random triggers in place of those found. `clean_steps`: the same steps without a trigger. `oracle`: masks
  begin over the place of the attack's trigger, as in the code; such results are marked.
* `start` plays the 200 clean rounds by averaging (`:fedavg,start`), to be kept; give it
  `--workdir=runs/flip_cifar10_start`. `kept` begins with what is there. Without it the same clients play them with the
  rule of the run.

Other methods of `--list` may stand beside these words. The code's attackers have batches of 64, hardening clients of
128; here all have 128 where clients harden and 64 else.
"""

from fedjax_spmc.config.flip_setting import FlipSetting, make_flip_config

SETTING = FlipSetting(
    fields={"data.name": "cifar10", "model.name": "resnet18_thin"},
    rates=(0.001, 0.1),
    epochs=(8, 2, 6),
    batch_size=128,
    per_batch=5,
    milestones=(),
    clean=200,
    first=200,
    last=300,
    shot=203,
    rounds=301,
    confidence=0.4,
    trigger="dba_cifar",
    options={"more_than": 5, "fraction": 0.9},
    searching={
        "universal_samples": 5,
        "threshold": 0.85,
        "mask_init": "uniform_small",
        "shorten_one_way": True,
    },
    steps={"universal_steps": 600, "pair_steps": 200, "short_steps": 50},
    start="runs/flip_cifar10_start",
)


def get_config(arg: str = ""):
    return make_flip_config(arg, SETTING)
