"""JUnit XML as Jenkins' xUnit plugin reads it."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from attn_export.benchmarks.junit import junit_xml

from .check_results import CRASHED, PASSED, SKIPPED, SLOWER, UNCLEAR, check_report

# Of junit-10.xsd: element -> attributes that it may have, with those that it must.
ATTRIBUTES = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set()),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"},
        {"name", "tests", "failures", "errors"},
    ),
    "testcase": ({"name", "time", "classname", "group"}, {"name"}),
    "failure": ({"type", "message"}, set()),
    "error": ({"type", "message"}, set()),
    "skipped": ({"type", "message"}, set()),
    "system-out": (set(), set()),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error", "skipped", "system-out"},
}
REPORT = check_report(PASSED, SLOWER, UNCLEAR, CRASHED, SKIPPED)


def parsed() -> ET.Element:
    return ET.fromstring(junit_xml(REPORT))


def test_only_what_the_schema_knows() -> None:
    root = parsed()
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed, needed = ATTRIBUTES[element.tag]
        assert needed <= set(element.attrib) <= allowed
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())


def test_a_case_for_each_gate_and_engine_with_its_numbers() -> None:
    cases = {case.get("name"): case for case in parsed().iter("testcase")}
    assert list(cases) == [result.name for result in REPORT.results]
    failure = cases["regression:onnxruntime-fp32"].find("failure")
    assert failure is not None
    assert failure.get("message") == failure.text == SLOWER.text
    assert cases["regression:onnxruntime-fp32"].get("time") == "12.500"


def test_no_answer_is_an_error_and_never_looks_green() -> None:
    cases = {case.get("name"): case for case in parsed().iter("testcase")}
    unclear = cases["speedup:onnxruntime-fp32"].find("error")
    crashed = cases["speedup:onnxruntime-int8"].find("error")
    assert unclear is not None
    assert crashed is not None
    assert (unclear.get("type"), crashed.get("type")) == ("inconclusive", "HostError")
    assert unclear.text == UNCLEAR.text
    assert crashed.get("message") == "ended by SIGKILL"
    assert crashed.text == "ended by SIGKILL\n\ufffd[31mred"  # XML cannot hold an escape


def test_the_counts() -> None:
    suite = parsed().find("testsuite")
    assert suite is not None
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")]
    assert counts == ["5", "1", "2", "1", "14.000"]
