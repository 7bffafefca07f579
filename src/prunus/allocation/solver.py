"""Shares out what may stay over groups of weights: the one solver behind every allocation.

K weights stay. Every group keeps its floor (1 − p_max)·n_g; what is left is shared out in proportion to the scores, and
a group that is full drops out (ECoFLaP, section 3.2, as the published code computes it). In closed form

    k_g = min(n_g, (1 − p_max)·n_g + λ·s_g),   Σ k_g = K.

λ is found exactly, group by group in the order in which they fill up; then the k_g are rounded to integers that still
sum to K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from prunus.errors import PrunusError

TOLERANCE = 1e-9
"""Products such as 0.7 · 10 are a hair off; this is not taken for a fraction of a weight."""


def share_out(sizes: Mapping[str, int], scores: Mapping[str, float], keep: int, max_sparsity: float) -> dict[str, int]:
    """How many weights every group keeps.

    Args:
        sizes: weights of each group, n_g.
        scores: how much each group matters, s_g ≥ 0.
        keep: weights that stay in all, K.
        max_sparsity: the largest sparsity of a single group, p_max. At the average sparsity, everything is uniform.

    Returns:
        group → k_g, whole numbers that sum to K exactly; ⌈(1 − p_max)·n_g⌉ ≤ k_g ≤ n_g, except that rounding up the
        floors may take more than K, and then some are rounded down. Remainders go to the largest fractions, ties to
        the group that comes first.

    Raises:
        PrunusError: a score is negative or not finite, all are zero, or the floors alone are more than K.
    """
    for name, score in scores.items():
        if not math.isfinite(score) or score < 0:
            raise PrunusError(
                "scores", f"{name}: {score}", "a group's score must be finite and not negative; look at the loss of the batches"
            )  # fmt: skip
    total = sum(sizes.values())
    if not 0 <= keep <= total:
        raise PrunusError("keep", keep, f"take 0 to the {total} weights there are")
    floors = {name: (1 - max_sparsity) * size for name, size in sizes.items()}
    left = keep - math.fsum(floors.values())
    if left <= -1:  # floors that are no whole numbers may be rounded down, but by less than one in all
        raise PrunusError(
            "max_sparsity", max_sparsity, f"with it at most {max_sparsity:.4g} of the weights can go, and {1 - keep / total:.4g} are "
            "to go; raise it, or ask for less",
        )  # fmt: skip
    if left > 1 and not any(scores.values()):
        raise PrunusError(
            "scores", f"all {len(scores)} are zero", "the loss does not depend on any of these weights; look at the batches and the loss"
        )  # fmt: skip
    _, exponent = math.frexp(max(scores.values(), default=0.0))
    near_one = {
        name: math.ldexp(score, -exponent) for name, score in scores.items()
    }  # tiny ones lose no bits by a quotient
    return _rounded(_real_shares(sizes, floors, near_one, max(left, 0.0)), sizes, floors, keep)


def _real_shares(
    sizes: Mapping[str, int], floors: Mapping[str, float], scores: Mapping[str, float], left: float
) -> dict[str, float]:
    """k_g before rounding: groups with a score fill up in the order of (n_g − floor_g) / s_g."""
    room = {name: sizes[name] - floors[name] for name in sizes}
    queue = sorted((name for name in sizes if scores[name] > 0), key=lambda name: room[name] / scores[name])
    remaining = math.fsum(scores[name] for name in queue)
    shares = dict(floors)
    for place, name in enumerate(queue):
        if left * scores[name] >= room[name] * remaining:  # it fills up
            shares[name] = float(sizes[name])
            left -= room[name]
            remaining = math.fsum(scores[other] for other in queue[place + 1 :])
        else:
            for other in queue[place:]:
                shares[other] = floors[other] + left * (scores[other] / remaining)
            return shares
    open_room = math.fsum(sizes[name] - shares[name] for name in sizes)
    if left > 0 and open_room > 0:  # everybody with a score is full: the others share the rest by size
        for name in sizes:
            shares[name] += left * (sizes[name] - shares[name]) / open_room
    return shares


def _rounded(
    shares: Mapping[str, float], sizes: Mapping[str, int], floors: Mapping[str, float], keep: int
) -> dict[str, int]:
    """Whole numbers with the sum `keep`, next to the shares: the largest fractions are rounded up."""
    kept = {name: min(math.floor(share + TOLERANCE), sizes[name]) for name, share in shares.items()}
    least = {name: math.ceil(floor - TOLERANCE * sizes[name]) for name, floor in floors.items()}
    missing = keep - sum(kept.values())
    lowest = sorted((name for name in kept if kept[name] > 0), key=lambda name: shares[name] - kept[name])
    for name in lowest[: max(-missing, 0)]:  # floors a hair below a whole number
        kept[name] -= 1
    while missing > 0:
        room = [name for name in kept if kept[name] < sizes[name]]
        # groups below their floor first, then the largest fractions; sorting is stable, so ties go to the first
        room.sort(key=lambda name: (kept[name] >= least[name], kept[name] - shares[name]))
        for name in room[:missing]:
            kept[name] += 1
        missing -= min(missing, len(room))
    return kept
