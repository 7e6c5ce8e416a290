"""What must stay FP32 for the rest to hold a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .sensitivity_report import Row


def by_estimate(rows: Sequence[Row]) -> list[str]:
    """All nodes, the one with the most noise first, from the noise of layers and roles alone.

    The noise of independent roundings adds up. A layer's noise is divided among its nodes as the
    noise of their roles is to each other; outside of numbered layers, evenly.

    Args:
        rows: every node in one layer, and in one role where it is in a numbered layer.
    """
    of_role = {node: row.noise for row in rows if row.kind == "role" for node in row.nodes}
    noise: dict[str, float] = {}
    for row in rows:
        if row.kind == "layer":
            noise |= {node: row.noise * share for node, share in _shares(row, of_role).items()}
    return sorted(noise, key=lambda node: noise[node], reverse=True)


def _shares(layer: Row, of_role: Mapping[str, float]) -> dict[str, float]:
    """What part of a layer's noise each of its nodes is taken to make."""
    weights = {node: of_role.get(node, 0.0) for node in layer.nodes}
    total = sum(weights.values())
    if not total:
        return dict.fromkeys(layer.nodes, 1 / len(layer.nodes))
    return {node: weight / total for node, weight in weights.items()}


def fewest_excluded(order: Sequence[str], holds: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """The shortest beginning of ``order`` whose exclusion holds the bound.

    That is the greedy search that quantizes the least harmful node first, and stops where the next
    would break the bound; walked from its other end in steps that double and then halve, because
    mostly few nodes do the harm. Every answer was tried as a whole: where nodes are harmless alone
    and not together, more are excluded.

    Args:
        order: nodes, the most harmful first; excluding none does not hold, excluding all does.
        holds: whether excluding these, and quantizing the rest, holds.
    """
    fails, enough = 0, min(1, len(order))
    while enough < len(order) and not holds(order[:enough]):
        fails, enough = enough, min(2 * enough, len(order))
    while enough - fails > 1:
        middle = (fails + enough) // 2
        if holds(order[:middle]):
            enough = middle
        else:
            fails = middle
    return order[:enough]
