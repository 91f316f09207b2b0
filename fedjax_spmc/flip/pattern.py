"""The trigger of FLIP's own attack, DBA's: four bars, one for each of four malicious clients."""

BARS = {
    1: tuple((row, range(column, column + 4)) for row in (0, 3) for column in (0, 6)),
    3: tuple((row, range(column, column + 6)) for row in (0, 4) for column in (0, 9)),
}
"""Channels -> (row, columns) of each bar, which is white on all channels: grey 28 x 28, CIFAR-10."""


def positions(channels: int) -> tuple[tuple[int, int, int], ...]:
    """Pixels (channel, row, column), bar after bar: dealt out to four clients in equal parts, each has a bar.

    Args:
        channels: 1 or 3.
    """
    return tuple((c, row, x) for row, columns in BARS[channels] for c in range(channels) for x in columns)
