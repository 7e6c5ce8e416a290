"""GPU check, step runtime: the same answers with CUDA graphs, threads and batching."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.engine import Engine
from attn_export.engines.session import Feeds, Outputs
from attn_export.errors import InputError, UsageError
from attn_export.manifest import EngineRecord

from .gpu_check_cases import (
    open_session,
    padded_feeds,
    plans,
    profile_shapes,
    same_bits,
    varied_shapes,
    within,
)
from .gpu_check_child import Answer, answer, say
from .workload import Workload, synthetic_sequences

ROUNDS = 20  # of each thread over its own requests
REQUESTS = 8  # of each thread
MANY = 200  # requests of run_many
REPLAYS = 3  # the second run of a shape captures its CUDA graph, the third one replays it


def work(settings: dict[str, Any]) -> Answer:
    """Check both engines of ``bundle``; each value is the sum over them."""
    bundle = Bundle.open(settings["bundle"])
    totals = dict.fromkeys(
        ("graph_mismatches", "thread_mismatches", "run_many_mismatches", "not_refused"), 0
    )
    warnings = _Warnings()
    logging.getLogger("attn_export").addHandler(warnings)
    compared: dict[str, int] = {}
    for name, record in plans(bundle).items():
        say(name)
        found = {
            "graph_mismatches": _graphs(bundle, record, compared),
            "thread_mismatches": _threads(bundle, record, compared),
            "run_many_mismatches": _run_many(bundle, record, compared),
            "not_refused": _refusals(bundle, record),
        }
        totals = {key: totals[key] + found[key] for key in totals}
    values = {**totals, "capture_failures": len(warnings.lines)}
    return {"values": values, "numbers": {"compared": compared, "warnings": warnings.lines}}


class _Warnings(logging.Handler):
    """Keeps what the engines warn of: that a CUDA graph could not be captured."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _graphs(bundle: Bundle, record: EngineRecord, compared: dict[str, int]) -> int:
    rng = np.random.default_rng(0)
    differ = 0
    with (
        closing(open_session(bundle, record)) as graphs,
        closing(open_session(bundle, record, cuda_graphs=False)) as plain,
    ):
        for batch, length in profile_shapes(graphs.profiles):
            feeds = padded_feeds(graphs.inputs, batch, length, rng)
            wanted = plain.run(feeds)
            runs = [graphs.run(feeds) for _ in range(REPLAYS)]
            differ += sum(not same_bits(run, wanted) for run in runs)
            compared["graphs"] = compared.get("graphs", 0) + len(runs)
    return differ


def _threads(bundle: Bundle, record: EngineRecord, compared: dict[str, int]) -> int:
    differ: list[int] = []
    with closing(open_session(bundle, record, streams=2)) as session:
        work_of = [_requests(session, seed) for seed in (1, 2)]
        wanted = [[session.run(feeds) for feeds in requests] for requests in work_of]
        threads = [
            threading.Thread(target=_repeat, args=(session, requests, results, differ))
            for requests, results in zip(work_of, wanted, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    total = 2 * ROUNDS * REQUESTS
    compared["threads"] = compared.get("threads", 0) + total
    # A thread that an error ended has compared less than all.
    return sum(differ) + (total - len(differ))


def _requests(session: Any, seed: int) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    shapes = varied_shapes(session.profiles, REQUESTS, rng)
    return [padded_feeds(session.inputs, *shape, rng) for shape in shapes]


def _repeat(session: Any, requests: list[Feeds], wanted: list[Outputs], differ: list[int]) -> None:
    for _ in range(ROUNDS):
        for feeds, expected in zip(requests, wanted, strict=True):
            differ.append(not same_bits(session.run(feeds), expected))


def _run_many(bundle: Bundle, record: EngineRecord, compared: dict[str, int]) -> int:
    longest = bundle.manifest.max_length
    sequences = synthetic_sequences(bundle.manifest.inputs, longest)[:MANY]
    with closing(open_session(bundle, record, streams=2)) as session:
        engine = Engine(session, record, check_ids=False)
        many = engine.run_many(Workload(bundle.manifest.inputs, sequences).raw)
        workload = Workload(bundle.manifest.inputs, sequences)
        differ = 0
        for index, length in enumerate(workload.lengths.tolist()):
            alone = engine.run(workload.requests.feeds([index], length))
            together = {name: np.asarray(many[name][index])[None] for name in alone}
            differ += not within(together, alone, record.precision)
    compared["run_many"] = compared.get("run_many", 0) + len(sequences)
    return differ


def _refusals(bundle: Bundle, record: EngineRecord) -> int:
    """How many of two wrong calls were taken."""
    session = open_session(bundle, record)
    rng = np.random.default_rng(0)
    taken = 2
    too_long = session.buckets[-1] + 1
    try:
        session.run(padded_feeds(session.inputs, 1, too_long, rng))
    except InputError:
        taken -= 1
    session.close()
    try:
        session.run(padded_feeds(session.inputs, 1, 1, rng))
    except UsageError:
        taken -= 1
    return taken


if __name__ == "__main__":
    answer(work)
