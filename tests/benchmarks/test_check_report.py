"""Verdicts become one verdict and one exit code."""

from __future__ import annotations

import json

import pytest

from attn_export.benchmarks.check_report import GateResult, failed_result, skipped_result
from attn_export.errors import AttnExportError, BuildFailed, HostError, InputError, MissingPackage

from .check_results import CRASHED, PASSED, SKIPPED, SLOWER, UNCLEAR, check_report


@pytest.mark.parametrize(
    ("results", "verdict", "code"),
    [
        ([PASSED], "PASS", 0),
        ([PASSED, UNCLEAR, SKIPPED], "INCONCLUSIVE", 5),
        ([PASSED, UNCLEAR, SLOWER], "FAIL", 1),
        ([SLOWER, CRASHED], "ERROR", 3),
        ([PASSED, SKIPPED], "ERROR", 3),  # a gate that was asked for met no engine
    ],
)
def test_one_exit_code_from_many_verdicts(
    results: list[GateResult], verdict: str, code: int
) -> None:
    report = check_report(*results)
    assert report.verdict == verdict
    assert report.to_json()["exit_code"] == code
    if not code:
        report.require_pass()
        return
    with pytest.raises(AttnExportError) as caught:
        report.require_pass()
    assert caught.value.exit_code == code


def test_the_error_names_the_gate_and_its_numbers() -> None:
    with pytest.raises(AttnExportError, match=r"regression:onnxruntime-fp32: 0\.870 \[0\.850"):
        check_report(PASSED, SLOWER).require_pass()


def test_a_missing_package_keeps_its_advice() -> None:
    missing = failed_result("speedup", "x", MissingPackage("torch", "export"))
    with pytest.raises(HostError, match=r"pip install 'attn-export\[export\]'"):
        check_report(PASSED, missing).require_pass()


def test_an_engine_that_refuses_requests_is_no_wrong_call() -> None:
    refused = failed_result("parity", "x", InputError("the requests have 3 tokens"))
    with pytest.raises(BuildFailed, match="parity:x: the requests have 3 tokens"):
        check_report(PASSED, refused).require_pass()


def test_the_json_form_begins_with_the_verdict() -> None:
    data = json.loads(json.dumps(check_report(PASSED, SLOWER, CRASHED).to_json()))
    assert list(data)[:3] == ["schema_version", "verdict", "exit_code"]
    passed, slower, crashed = data["results"]
    assert (passed["ratio"], passed["rounds"], passed["error"]) == (None, 0, None)
    assert (slower["ratio"]["low"], slower["limit"], slower["rounds"]) == (0.85, 0.95, 3)
    assert crashed["error"] == "HostError"


def test_the_headline_counts() -> None:
    report = check_report(PASSED, PASSED, SLOWER, skipped_result("parity", "x", "y"))
    assert report.headline == "FAIL: 2 pass, 1 fail, 1 skipped"
