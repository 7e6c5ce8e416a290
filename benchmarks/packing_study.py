"""Is it worth packing? Packed rows against buckets, for several lengths and ways of arriving.

Three ways answer the same requests, in turn and in the opposite order of the round before:

* ``packed``: ``run_many`` of the packed engine;
* ``bucketed``: ``run_many`` of the padded engine, which sorts requests by length;
* ``padded``: the padded engine, up to 64 requests as they come, padded to their own longest.

Requests come all at once, or in groups that are answered before the next one is looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.engine import Engine
from attn_export.engines.feeds import Requests
from attn_export.engines.packing import break_even_width
from attn_export.engines.packing_session import PackingSession, is_packed, provider_of
from attn_export.engines.session import LoadOptions, Session, backend
from attn_export.errors import BundleError
from attn_export.manifest import EngineRecord

from .packing_work import arithmetic, edges_work, empty_share, packed_work, sorted_work
from .stats import Interval, ratio_interval
from .workload import Ids, synthetic_sequences

PACKED, BUCKETED, PADDED = "packed", "bucketed", "padded"
AT_EDGES = "at edges"
GROUPS = (8, 16, 32, 64)
PADDED_BATCH = 64
COUNT = 2000  # made-up requests of each kind of lengths
ROUNDS, QUICK_ROUNDS = 7, 3
TURN_S, QUICK_TURN_S = 0.5, 0.1
LEAST_AT_ONCE = 256

Way = Callable[[Sequence[Ids]], object]
Ratios = dict[str, Interval]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One kind of lengths, arriving in one way.

    Args:
        lengths: the kind.
        group: requests that come together; None where all come at once.
        requests: in a turn.
        ratios: how many times the throughput of ``bucketed``, by way.
        cpu: how many times less CPU time than ``bucketed``. Other processes hardly move it; it
            says nothing of how well the threads are used, nor of a GPU.
        empty: the share of computed tokens that are padding: of ``packed``, of ``bucketed`` where
            a batch stops at its own longest, and where texts are padded ``at edges`` of buckets.
        arithmetic: of the latter two over that of ``packed``: an estimate from the dimensions.
    """

    lengths: str
    group: int | None
    requests: int
    ratios: Ratios
    cpu: Ratios
    empty: dict[str, float]
    arithmetic: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class PackingStudy:
    """All cells, and what they were measured on."""

    model: str
    packed: str
    bucketed: str
    rounds: int
    cells: list[Cell]
    cpus: int
    load_average: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def study_packing(
    bundle: Bundle,
    *,
    sequences: Sequence[Ids] | None = None,
    quick: bool = False,
    say: Say = lambda text: None,
) -> PackingStudy:
    """Measure a bundle's packed engine against the padded engine of the same provider.

    Args:
        sequences: int32 ids, each of shape [tokens]; None for synthetic ones as long as tweets.
        quick: short turns and few rounds: a first impression, without intervals to rely on.

    Raises:
        BundleError: if the bundle holds no such pair, or a file of it was altered.
        InputError: if a sequence does not fit the engines.
        HostError: if this host cannot run them.
    """
    records = _pair(bundle)
    manifest = bundle.manifest
    rounds, turn_s = (QUICK_ROUNDS, QUICK_TURN_S) if quick else (ROUNDS, TURN_S)
    before = os.getloadavg()[0]
    cells = []
    given = "tweets" if sequences is None else "given"
    if sequences is None:
        sequences = synthetic_sequences(manifest.inputs, manifest.max_length)
    with ExitStack() as stack:
        sessions = [
            backend(record.backend).load(bundle, record, LoadOptions()) for record in records
        ]
        engines = [
            stack.enter_context(Engine(session, record, check_ids=False))
            for session, record in zip(sessions, records, strict=True)
        ]
        limit = next(spec.limit for spec in manifest.inputs if spec.role == "ids") or 1
        for name, texts in {given: sequences, **made_up(limit, manifest.max_length)}.items():
            for group in (None, *GROUPS):
                say(f"{name}, {'all at once' if group is None else f'groups of {group}'}")
                turn = _turn(engines[1], texts, group, turn_s)
                raced = _race(ways(*engines), turn, rounds)
                cells.append(_cell(bundle, sessions, (name, group), turn, raced))
    return PackingStudy(
        model=str(manifest.model.get("name", "")),
        packed=records[0].name,
        bucketed=records[1].name,
        rounds=rounds,
        cells=cells,
        cpus=len(os.sched_getaffinity(0)),
        load_average=(before, os.getloadavg()[0]),
    )


def made_up(limit: int, longest: int, seed: int = 0) -> dict[str, list[Ids]]:
    """Requests of uniform ids by kind of lengths, each at most ``longest`` tokens.

    ``uniform`` from 1 on; ``equal``, a quarter of the longest; ``bimodal``, half of them a tenth
    and half of them nine tenths, give or take a fifth; ``long-tailed``, log-normal (sigma 0.8)
    around a ninth.
    """
    rng = np.random.default_rng(seed)
    peaks = rng.choice([0.1, 0.9], COUNT) * rng.uniform(0.8, 1.2, COUNT)
    kinds = {
        "uniform": rng.integers(1, longest + 1, COUNT),
        "equal": np.full(COUNT, longest / 4),
        "bimodal": peaks * longest,
        "long-tailed": rng.lognormal(np.log(longest / 9), 0.8, COUNT),
    }
    return {
        name: [
            rng.integers(0, limit, n).astype(np.int32)
            for n in np.clip(lengths, 1, longest).astype(int).tolist()
        ]
        for name, lengths in kinds.items()
    }


def ways(packed: Engine, padded: Engine) -> dict[str, Way]:
    """The three ways, by name."""

    def as_they_come(texts: Sequence[Ids]) -> None:
        requests = Requests(texts, padded.inputs, check_ids=False)
        for start in range(0, len(texts), PADDED_BATCH):
            indices = range(start, min(start + PADDED_BATCH, len(texts)))
            padded.run(requests.feeds(indices, max(requests.lengths[i] for i in indices)))

    return {PACKED: packed.run_many, BUCKETED: padded.run_many, PADDED: as_they_come}


def _pair(bundle: Bundle) -> tuple[EngineRecord, EngineRecord]:
    """The packed engine, and the padded one of its precision and provider."""
    engines = bundle.manifest.engines.values()
    for record in filter(is_packed, engines):
        for other in engines:
            same = (other.backend, other.precision) == (record.backend, record.precision)
            if same and other.variant == provider_of(record):
                return record, other
    raise BundleError(
        f"{bundle.directory} holds no packed engine beside a padded one (its engines: "
        f"{', '.join(bundle.manifest.engines) or 'none'}); make both with 'attn-export build "
        "--packed'"
    )


def _turn(
    engine: Engine, texts: Sequence[Ids], group: int | None, turn_s: float
) -> list[Sequence[Ids]]:
    """The groups that take the padded engine about ``turn_s``, one at least."""
    few = texts[: group or LEAST_AT_ONCE]
    engine.run_many(few)
    parts = max(1, round(turn_s / _seconds(engine.run_many, [few])[0]))
    if group is None:
        return [texts[: parts * LEAST_AT_ONCE]]
    starts = range(0, len(texts) - group + 1, group)[:parts]
    return [texts[start : start + group] for start in starts] or [few]


def _race(
    contenders: Mapping[str, Way], turn: Sequence[Sequence[Ids]], rounds: int
) -> tuple[Ratios, Ratios]:
    """How many times the throughput of ``bucketed``, and how many times less CPU time."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):  # the first one warms up
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            found[name].append(_seconds(contenders[name], turn))
    wall, cpu = (
        {name: [times[clock] for times in found[name][1:]] for name in found} for clock in (0, 1)
    )
    return _ratios(wall), _ratios(cpu)


def _ratios(seconds: Mapping[str, Sequence[float]]) -> Ratios:
    base = seconds[BUCKETED]
    return {name: ratio_interval(base, of) for name, of in seconds.items() if name != BUCKETED}


def _seconds(way: Way, turn: Sequence[Sequence[Ids]]) -> tuple[float, float]:
    """On the wall, and of this process's threads."""
    start, used = time.perf_counter(), time.process_time()
    for group in turn:
        way(group)
    return time.perf_counter() - start, time.process_time() - used


def _cell(
    bundle: Bundle,
    sessions: Sequence[Session],
    kind: tuple[str, int | None],
    turn: Sequence[Sequence[Ids]],
    raced: tuple[Ratios, Ratios],
) -> Cell:
    packed, padded = sessions
    assert isinstance(packed, PackingSession)
    lengths = [[len(text) for text in texts] for texts in turn]
    edges = tuple(bundle.manifest.buckets["edges"])
    width = break_even_width(bundle.manifest.model["spec"])
    works = {
        PACKED: packed_work(lengths, width=packed.width, ways=packed.threads),
        BUCKETED: sorted_work(lengths, padded),
        AT_EDGES: edges_work(lengths, edges=edges),
    }
    costs = {name: arithmetic(work, width) for name, work in works.items()}
    return Cell(
        lengths=kind[0],
        group=kind[1],
        requests=sum(map(len, turn)),
        ratios=raced[0],
        cpu=raced[1],
        empty={name: empty_share(work, lengths) for name, work in works.items()},
        arithmetic={name: costs[name] / costs[PACKED] for name in (BUCKETED, AT_EDGES)},
    )
