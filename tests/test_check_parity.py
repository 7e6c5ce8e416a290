"""What parity says of an engine in one line."""

from __future__ import annotations

import numpy as np
import pytest

from attn_export.benchmarks.judge import Run
from attn_export.benchmarks.metrics import Comparer, Comparison
from attn_export.benchmarks.parity import EngineParity, ParityReport
from attn_export.check_parity import verdicts_of

ONES = np.ones((2, 3), np.float32)


def compared(got: object, *, least_cosine: float | None = None) -> Comparison:
    comparer = Comparer("logits", atol=1e-4, rtol=1e-4, least_cosine=least_cosine)
    comparer.add(np.asarray(got, np.float32), ONES, case="case")
    return comparer.result()


def said(*runs: Run) -> dict[str, str]:
    engine = EngineParity(
        engine="x", backend="b", precision="fp32", sha256="", twin_sha256=None, runs=[*runs]
    )
    report = ParityReport(
        model="m",
        reference="eager",
        reason="",
        cases=1,
        rows=2,
        dropped=[],
        noise_floor=None,
        noise_reason="",
        engines=[engine],
        skipped={},
    )
    return verdicts_of(report)[0]


NAN = ONES.copy()
NAN[0, 0] = np.nan


@pytest.mark.parametrize(
    ("result", "verdict", "text"),
    [
        (compared(ONES), "pass", "max abs 0.0e+00 on logits, allowed 0.0001 + 0.0001·|reference|"),
        (compared(ONES + 1), "fail", "; 6 of 6 values are outside the tolerance"),
        (compared(NAN), "fail", "; 1 of 6 values are NaN or infinite"),
        (compared(np.ones((2, 4))), "fail", "; shape [2, 4], expected [2, 3] in case case"),
        (compared(-ONES, least_cosine=0.95), "fail", "cosine -1.0000 on logits, at least 0.95; "),
    ],
    ids=["pass", "outside", "nan", "shape", "cosine"],
)
def test_the_reason_is_the_verdicts_own(result: Comparison, verdict: str, text: str) -> None:
    found = said(Run(what="engine", outputs=[result]))
    assert found["verdict"] == verdict
    assert text in found["text"]
    assert found["text"].endswith("; 1 cases, 2 rows against eager")


def test_a_masked_row_that_is_not_finite_is_what_failed() -> None:
    found = said(Run(what="engine", outputs=[compared(ONES)], masked_rows=[compared(NAN)]))
    assert (found["verdict"], "1 of 6 values are NaN or infinite" in found["text"]) == (
        "fail",
        True,
    )


def test_masked_rows_that_are_finite_count_for_nothing() -> None:
    found = said(Run(what="engine", outputs=[compared(ONES)], masked_rows=[compared(ONES + 1)]))
    assert found["verdict"] == "pass"
    assert "max abs 0.0e+00" in found["text"]
