"""What the contestants of a check answer: requests that every one of them takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attn_export.bundle import Bundle
from attn_export.engines.feeds import Requests
from attn_export.manifest import EngineRecord

from .baseline import Baseline, BuildBaseline
from .bench_settings import fitting_sequences
from .candidates import longest_of
from .workload import Ids, Workload

Side = tuple[Bundle, Mapping[str, EngineRecord]]


def checked_sequences(
    bundle: Bundle,
    chosen: Mapping[str, EngineRecord],
    baseline: Baseline | None,
    given: Sequence[Ids] | None,
) -> Sequence[Ids]:
    """The given sequences, if this build and the baseline's take them; or synthetic ones.

    Raises:
        InputError: if one is empty or too long, or holds an id outside of the vocabulary.
    """
    sides: list[Side] = [(bundle, chosen)]
    if isinstance(baseline, BuildBaseline):
        engines = baseline.bundle.manifest.engines
        shared = {name: engines[name] for name in chosen if name in engines}
        sides += [(baseline.bundle, shared)] if shared else []
    sequences = fitting_sequences(*min(sides, key=_longest), given)
    inputs = bundle.manifest.inputs
    Requests(Workload(inputs, sequences).raw, inputs, check_ids=True)
    return sequences


def _longest(side: Side) -> int:
    bundle, engines = side
    return min(longest_of(bundle, record) for record in engines.values())
