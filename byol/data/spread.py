"""A few places spread over many: what to look at when looking at everything would cost too much."""

import numpy as np

SAMPLE = 64


def spread(count: int, most: int = SAMPLE) -> list[int]:
    """At most `most` indices below `count`, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, most)]
