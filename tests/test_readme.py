"""README.md and the notebooks: every command runs as printed, in order, at toy size; links are links."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from fedjax_spmc import compiled, demo, experiment
from fedjax_spmc import config as configs
from fedjax_spmc.__main__ import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- with cifar10 -->\n\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(bool(known), language, text) for known, language, text in BLOCK.findall(README)]
TOY = {"federation.rounds": "1", "local.epochs": "1", "federation.devices": "1"}
"""What every command that trains is given on top."""
AS_THE_DEMO = {
    "attack.trigger": "fdcr_code",
    "attack.augmentation": "frozen",
    "attack.poison_fraction": "0.5",
    "sampling.options.order": "sorted",
    "partition.min_size": "16",
}
"""What the digits' own methods are given too: the demo has compiled their programs."""
PLAIN = ({"--config=digits"}, {"--config=digits:fedavg"})
TRAINS = ("run", "sweep", "demo")


def commands(needs_data: bool) -> list[str]:
    """The command lines of the blocks that need CIFAR-10, or of the others, in order."""
    texts = [text for known, language, text in BLOCKS if language == "" and known == needs_data]
    lines = [line.partition("#")[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line]


def toy(words: list[str]) -> list[str]:
    """A command at toy size: what it says itself stays, but for a number of rounds, which becomes 2."""
    if words[0] == "report":
        return [*words, "--details=0"]  # pictures of single runs take time
    if words[0] not in TRAINS or "--dry-run" in words:
        return words
    kept = [
        "--config.federation.rounds=2" if word.startswith("--config.federation.rounds=") else word for word in words
    ]
    if words[0] == "run" and not any(word.startswith("--config=") for word in words):
        return kept  # it goes on with a run that is small
    given = {word.partition("=")[0].removeprefix("--config.") for word in kept}
    more = TOY | (AS_THE_DEMO if {word for word in kept if word.startswith("--config")} in PLAIN else {})
    return kept + [f"--config.{name}={value}" for name, value in more.items() if name not in given]


@pytest.mark.slow
def test_every_command_runs_as_printed(tmp_path, small_cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compiled, "KEPT", 30)  # as many as the commands take in turn
    played = []
    for line in commands(needs_data=False):
        program, *words = shlex.split(line)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            continue
        assert (program, words[:2]) == ("python", ["-m", "fedjax_spmc"]), line
        capsys.readouterr()
        assert main(toy(words[2:])) == 0, (line, capsys.readouterr().err)
        played.append(words[2])
        if words[2] == "demo":
            said = capsys.readouterr().out.splitlines()
            assert [
                text.split()[0] for text in said if text.endswith(tuple(f"runs/demo/{name}" for name in demo.METHODS))
            ]
            assert sum(text.partition(":")[0] in demo.METHODS for text in said) == len(demo.METHODS)  # a sentence each
            assert said[-2] == "report: runs/demo/report/index.html"
            assert said[-1].startswith("next: ")
    assert {"demo", "run", "compare", "evaluate", "list", "sweep", "report"} <= set(played)
    for file in (
        "runs/demo/report/index.html",
        "runs/curves.png",
        "report/tables/main.wide.csv",
        "runs/spmc/model.npz",
    ):
        assert (tmp_path / file).is_file(), file

    # What stands in Python, with the folders that the commands have left.
    whole = experiment.run

    def quick(config, *arguments, **named):
        for name, value in (TOY | AS_THE_DEMO).items():
            configs.set_field(config, name, configs.parse_override(config, name, value))
        return whole(config, *arguments, **named)

    monkeypatch.setattr(experiment, "run", quick)
    for _, language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})


def test_commands_with_cifar10_have_a_config_that_fits(monkeypatch, tmp_path, capsys):
    """They are read and resolved; training is left to a machine with the data."""
    seen = []

    def run(config, *arguments, **named):
        seen.append(configs.resolve(config))
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.chdir(tmp_path)
    lines = commands(needs_data=True)
    assert len(lines) >= 3
    for line in lines:
        _, *words = shlex.split(line)
        if words[0].startswith("experiments/"):
            assert (ROOT / words[0]).is_file()
            continue
        assert main(words[2:]) == 130, capsys.readouterr().err
    assert {config.data.name for config in seen} == {"cifar10"}


def test_links_are_links():
    text = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    named = re.findall(
        r"`?\bdocs/[\w/]+\.(?:md|ipynb)\b`?", re.sub(r"^\[.*\]: .*$|\[[^\]]*\]", "", text, flags=re.MULTILINE)
    )
    assert named == [], "a page that is named is a link"
    targets = dict(re.findall(r"^\[([^\]]+)\]: (\S+)$", README, re.MULTILINE))
    used = set(re.findall(r"\[([^\]]+\.(?:md|ipynb|py|cff))\](?!:)", text))
    assert used == set(targets)
    for name, target in targets.items():
        assert (ROOT / name).is_file(), name
        assert target == f"https://github.com/fedjax-spmc/fedjax_spmc/blob/main/{name}"


NOTEBOOKS = sorted(path.stem for path in (ROOT / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_at_toy_size(name, small_cache, monkeypatch):
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        import notebook
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    content = json.loads((ROOT / "docs" / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    whole = experiment.run

    def quick(config, *arguments, **named):
        config.local.epochs, config.federation.devices = 1, 1
        return whole(config, *arguments, **named)

    monkeypatch.setattr(experiment, "run", quick)
    made = notebook.executed(content, {"ROUNDS = 12": "ROUNDS = 2"})
    shown = [output for cell in made["cells"] for output in cell.get("outputs", ())]
    text = json.dumps(shown)
    assert "<Result: fedavg, digits, badnets, 30 % malicious; 2 rounds" in text
    assert any("image/png" in output.get("data", {}) for output in shown)
    with pytest.raises(ValueError, match="no cell has ROUNDS = 13"):
        notebook.executed({"cells": []}, {"ROUNDS = 13": ""})
