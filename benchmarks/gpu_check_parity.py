"""GPU check, step parity: each engine against eager PyTorch's outputs, kept in files.

The golden file brings all masks at each bucket's edges, and the judge every profile's optimal and
largest batch; the further cases are each profile's smallest shape, and rows without a real token.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.manifest import EngineRecord

from .cases import load_reference
from .gpu_check_cases import open_session, plans
from .gpu_check_child import Answer, answer, say
from .judge import Judge
from .oracle import choose_oracle
from .tolerances import Tolerances

# A shape's second run captures its CUDA graph, the third one replays it.
REPEATS = {True: 3, False: 1}


def work(settings: dict[str, Any]) -> Answer:
    """Judge every engine of ``bundle`` on its golden file and on ``extra``."""
    bundle = Bundle.open(settings["bundle"])
    further = load_reference(Path(settings["extra"]))
    pairs = [*choose_oracle(bundle, "golden").pairs, *further.pairs]
    rows = []
    for name, record in plans(bundle).items():
        for cuda_graphs in (True, False):
            say(f"{name}, CUDA graphs {'on' if cuda_graphs else 'off'}")
            rows.append(_judge(bundle, record, pairs, cuda_graphs=cuda_graphs))
    failures = sum(not row["passed"] for row in rows)
    return {"values": {"parity_failures": failures}, "numbers": {"engines": rows}}


def _judge(
    bundle: Bundle, record: EngineRecord, pairs: list[Any], *, cuda_graphs: bool
) -> dict[str, Any]:
    tolerances = Tolerances()
    names = [spec.name for spec in bundle.manifest.outputs]
    allowed = {name: tolerances.allowed(name, record.precision) for name in names}
    with closing(open_session(bundle, record, cuda_graphs=cuda_graphs)) as session:
        judge = Judge("engine", session, bundle, allowed)
        for case, expected in pairs:
            for _ in range(REPEATS[cuda_graphs]):
                judge.add(case, expected, noise=False)
        run = judge.result(None)
    return {
        "engine": record.name,
        "cuda_graphs": cuda_graphs,
        "passed": run.passed,
        "cases": len(pairs),
        "outputs": [asdict(output) for output in run.outputs],
    }


if __name__ == "__main__":
    answer(work)
