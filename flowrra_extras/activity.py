"""Figures that pages compute from the recorded work of the workers (`flowrra.Activity`)."""

from collections.abc import Mapping

__all__ = ["quantile"]


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the duration in seconds that `share` (0 to 1) of the durations do not exceed; None if there are none.

    Durations inside a bucket (see `flowrra.length_bucket`) are assumed to be evenly spread on a logarithmic scale.
    """
    rank = share * sum(histogram.values())
    for bucket, number in sorted(histogram.items()):
        if 0 < number >= rank:
            return float(0.0001 * 2.0 ** (bucket - 1 + rank / number))
        rank -= number
    return None
