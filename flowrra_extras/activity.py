"""What workers did (`flowrra.Activity`) in figures, as pages show it."""

from collections.abc import Mapping

__all__ = ["quantile"]


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """The length in seconds that `share` (0 to 1) of a histogram's lengths do not exceed; None if it has none.

    Inside a bucket (see `flowrra.length_bucket`) they are taken to be spread evenly on a logarithmic scale.
    """
    rank = share * sum(histogram.values())
    for bucket, number in sorted(histogram.items()):
        if 0 < number >= rank:
            return float(0.0001 * 2.0 ** (bucket - 1 + rank / number))
        rank -= number
    return None
