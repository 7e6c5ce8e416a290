"""The matrix as JSON, and what it makes of cells that failed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attn_export.benchmarks.matrix_report import MatrixReport, require_measured
from attn_export.errors import BundleError, HostError, UsageError

from .matrix_samples import sample_report


def test_a_report_survives_json() -> None:
    report = sample_report()
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert MatrixReport.from_json(data) == report
    assert data["schema_version"] == 1
    assert len(data["factors"]) == len(report.factors) > 0
    assert len(data["savings"]) == len(report.savings) > 0


@pytest.mark.parametrize("data", [None, [], {}, {"cells": []}, {"results": [], "settings": {}}])
def test_something_else_is_refused(data: Any) -> None:
    with pytest.raises(UsageError, match=r"not the result of a matrix; give the matrix\.json"):
        MatrixReport.from_json(data)


def test_a_newer_schema_is_refused() -> None:
    with pytest.raises(BundleError, match="schema 2, this version of attn-export reads up to 1"):
        MatrixReport.from_json(sample_report().to_json() | {"schema_version": 2})


@pytest.mark.parametrize(
    "broken",
    [{"cells": [{"model": "mha"}]}, {"cells": [3]}, {"load_average": [1]}, {"environment": 3}],
)
def test_a_broken_one_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="the result of the matrix is broken"):
        MatrixReport.from_json(sample_report().to_json() | broken)


def test_cells_that_failed_are_an_error_and_those_not_run_are_none() -> None:
    with pytest.raises(
        HostError, match=r"24 of 144 cells .* mha engine-int8, batch 16 padded: .*SIGKILL"
    ):
        require_measured(sample_report())
    cells = [cell for cell in sample_report().cells if not cell.failed]
    require_measured(sample_report(cells=cells))
