"""How the tags of `spmc_server_*` map to aggregators of ours; every module `tags_*` holds some in its `TAGS`."""

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Tag(NamedTuple):
    """How a tag of the reference maps to ours.

    Every function is given `(arrays, layout, tag name, ...)`; with `buffers` the layout counts float buffers among the
    leaves.

    Attributes:
        name: our aggregator.
        options: its options.
        buffers: the reference's rule works on the whole state: float buffers enter ours as further leaves, in state
            order. Integer counters are left out and not compared; where they differ among the clients the case is
            skipped.
        weights: the recorded `<tag>__weights` and `<tag>__aggregated_weights` are the verdict's weights (False where
            they are nominal).
        norm_and_sum: `<tag>__global_norm_and_sum` can be compared (False where a file holds only a sample of what the
            rule starts from).
        prepare: (arrays, layout, tag, upload) -> upload with the round index, learning rate, ... of the tag; called for
            each round, whose index `upload.round` holds.
        rule: (arrays, layout, tag) -> the aggregator with recorded draws put in, in place of `name` with `options`.
        state: (arrays, layout, tag, state) -> the first state with recorded draws put in.
        second_round: `<tag>__global_round2` is compared too.
        skip: (arrays, source) -> the reason to skip a case, or "".
        compare: (comparison, arrays, layout, tag, our state vector, verdict) -> None: compares further arrays.
    """

    name: str
    options: Mapping[str, Any] = {}
    buffers: bool = False
    weights: bool = True
    norm_and_sum: bool = True
    prepare: Callable[..., Any] | None = None
    rule: Callable[..., Any] | None = None
    state: Callable[..., Any] | None = None
    second_round: bool = False
    skip: Callable[..., str] | None = None
    compare: Callable[..., None] | None = None


@functools.cache
def merged() -> dict[str, Tag]:
    """All tags, from every module `fedjax_spmc.parity.tags_*`.

    Raises:
        ValueError: two modules hold the same tag.
    """
    tags: dict[str, Tag] = {}
    for module in sorted(Path(__file__).parent.glob("tags_*.py")):
        for name, tag in importlib.import_module(f"{__package__}.{module.stem}").TAGS.items():
            if name in tags:
                raise ValueError(f"tag {name!r} is given twice, by {module.name} too")
            tags[name] = tag
    return tags
