"""A backdoor's life in three phases: clean rounds, attack rounds, rounds after; in one run or from a kept model.

A config file gives a `Phases` and takes `fields()` and `words()` of it. Without a word a run plays all three phases and
needs nothing. `start` plays the clean rounds alone, to be kept; `kept` begins with what it left, and says so in
`model.start`. Which of them a run is stands in its `config.json`; nothing is looked up or chosen by what files exist.
"""

from typing import Any, NamedTuple


class Phases(NamedTuple):
    """Lengths in rounds.

    Attributes:
        clean: before the attack.
        attack: in a row.
        after: behind it.
        start: the run folder that `start` is to be played into and that `kept` begins with.
        scheduled: whether the learning rate follows a schedule, which then goes on behind the clean rounds.
    """

    clean: int
    attack: int
    after: int
    start: str
    scheduled: bool = False

    def fields(self) -> dict[str, Any]:
        """Of a run with all phases."""
        return {
            "federation.rounds": self.clean + self.attack + self.after,
            "attack.schedule.first": self.clean,
            "attack.schedule.last": self.clean + self.attack - 1,
        }

    def words(self) -> dict[str, dict[str, Any]]:
        """`start` and `kept`: word -> the fields that it sets.

        With `kept` the attack begins in round 1, so that there is an update of the round before to look at; draws are
        folded with the round, so that clients and batches are others than behind clean rounds of the same run.
        """
        kept = {
            "model.start": self.start,
            "federation.rounds": 1 + self.attack + self.after,
            "attack.schedule.first": 1,
            "attack.schedule.last": self.attack,
        }
        return {
            "start": {
                "attack.name": "none",
                "attack.options": {},
                "federation.rounds": self.clean,
                "attack.schedule.first": 0,
                "attack.schedule.last": None,
            },
            "kept": kept | ({"local.schedule_offset": self.clean} if self.scheduled else {}),
        }
