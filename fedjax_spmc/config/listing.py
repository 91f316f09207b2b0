"""The text of `--list`: every part by name with its options, defaults and ranges, the fields, and the presets."""

from fedjax_spmc import config, registry
from fedjax_spmc.config import presets

PART_KINDS = (
    ("data sets", registry.datasets),
    ("partitions", registry.partitions),
    ("models", registry.models),
    ("local rules", registry.local_rules),
    ("aggregators", registry.aggregators),
    ("pre-aggregators", registry.preaggregators),
    ("attacks", registry.attacks),
    ("sampling", registry.samplings),
)


def listing() -> str:
    """All that a config can name, as text."""
    lines = []
    for title, kind in PART_KINDS:
        lines.append(f"{title}")
        for name in kind.names():
            summary = (kind.factory(name).__doc__ or "").strip().splitlines()
            lines.append(f"  {name:<14} {summary[0] if summary else ''}".rstrip())
            for option, facts in kind.describe(name).items():
                array = ", array" if facts["array"] else ""
                lines.append(f"      {option} = {facts['default']}   ({facts['allowed']}{array})")
        lines.append("")
    lines.append("presets (behind --config=FILE:, joined by commas)")
    lines += [f"  {name:<14} {what}" for name, what in presets.descriptions().items()]
    lines += ["", "fields"]
    lines += [f"  {field.name} = {field.default}   ({field.allowed()})" for field in config.FIELDS.values()]
    return "\n".join(lines)
