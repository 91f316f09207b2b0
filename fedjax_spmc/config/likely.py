"""Which fields a name may mean that is no field: by its last part, by what others call it, by its letters."""

from collections.abc import Collection

from fedjax_spmc.nearest import nearest

CALLED: dict[str, str] = {
    "lr": "local.learning_rate",
    "bs": "local.batch_size",
    "wd": "local.weight_decay",
    "decay": "local.weight_decay",
    "clients": "federation.num_clients",
    "n_clients": "federation.num_clients",
    "num_users": "federation.num_clients",
    "n_rounds": "federation.rounds",
    "num_rounds": "federation.rounds",
    "comm_round": "federation.rounds",
    "local_epochs": "local.epochs",
    "local_ep": "local.epochs",
    "optimiser": "local.optimizer",
    "server_lr": "server.learning_rate",
    "dataset": "data.name",
    "data_set": "data.name",
    "dataset_name": "data.name",
    "network": "model.name",
    "arch": "model.name",
    "method": "aggregator.name",
    "defence": "aggregator.name",
    "defense": "aggregator.name",
    "aggregation": "aggregator.name",
    "local_rule": "local.rule",
    "alpha": "partition.beta",
    "dirichlet": "partition.beta",
    "poison_ratio": "attack.poison_fraction",
    "poison_rate": "attack.poison_fraction",
    "poisoning_rate": "attack.poison_fraction",
    "pratio": "attack.poison_fraction",
    "fraction": "attack.malicious_fraction",
    "num_malicious": "attack.malicious_fraction",
    "num_attackers": "attack.malicious_fraction",
    "target": "attack.target_label",
    "target_class": "attack.target_label",
    "random_seed": "seed",
    "gamma": "attack.malicious_fraction",
    "clip": "local.clip_norm",
    "grad_clip": "local.clip_norm",
}
"""What the fields are called elsewhere, or in short."""


def likely(path: str, fields: Collection[str]) -> list[str]:
    """The fields that a name may mean, the likeliest first; none where nothing is close.

    Args:
        path: a name that is no field, with or without a section, `_` or `-` between its words.
        fields: all that there are, by dotted path.
    """
    path = path.replace("-", "_").replace("__", ".").lower()
    section, _, last = path.rpartition(".")
    for called in (path, path.replace(".", "_"), last):
        if (
            called in CALLED
            and CALLED[called] in fields
            and (not section or called != last or _within(section, called))
        ):
            return [CALLED[called]]
    if f"{path}.name" in fields:
        return [f"{path}.name"]
    within = [field for field in fields if not section or field.startswith(f"{section}.")]
    for candidates in (within, fields):
        same = [field for field in candidates if field.rpartition(".")[2] == last]
        fewest = min((field.count(".") for field in same), default=0)
        found = [field for field in same if field.count(".") == fewest]
        if found:
            return found[:3]
        words = {field.rpartition(".")[2]: field for field in sorted(candidates, key=lambda one: -one.count("."))}
        close = [words[word] for word in nearest(last, words)]
        if close:
            return close
    return nearest(path, fields)


def _within(section: str, called: str) -> bool:
    """Whether a short name stands in the section in which its field is."""
    return CALLED[called].startswith(f"{section}.")
