"""A check as JUnit XML, for the test reports of Jenkins, GitLab and GitHub actions that read it.

The elements and attributes are those of junit-10.xsd, the schema of Jenkins' xUnit plugin. A
``failure`` is a gate that said no. One that noise left open is an ``error`` and no ``skipped``:
dashboards count a skipped test as good, and nobody would see that there was no answer.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from .check_report import CheckReport, GateResult

SUITE = "attn-export check"
ELEMENTS = {"fail": "failure", "inconclusive": "error", "error": "error", "skipped": "skipped"}
# What XML 1.0 cannot hold, escaped or not (its section 2.2): a crashed process may print anything.
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(report: CheckReport) -> str:
    """One test case for each gate and engine, as ``gate:engine``."""
    found = [ELEMENTS.get(result.verdict) for result in report.results]
    counts = {
        "tests": str(len(found)),
        "failures": str(found.count("failure")),
        "errors": str(found.count("error")),
    }
    seconds = f"{sum(result.seconds for result in report.results):.3f}"
    suites = ET.Element("testsuites", {"name": SUITE, "time": seconds, **counts})
    counts["skipped"] = str(found.count("skipped"))
    suite = ET.SubElement(suites, "testsuite", {"name": SUITE, "time": seconds, **counts})
    for result in report.results:
        _add_case(suite, result)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ET.Element, result: GateResult) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        name=_clean(result.name),
        classname=f"attn_export.{result.gate}",
        time=f"{result.seconds:.3f}",
    )
    kind = type(result.error).__name__ if result.error else result.verdict
    text = _clean(result.text)
    if element := ELEMENTS.get(result.verdict):
        ET.SubElement(case, element, type=kind, message=text.split("\n", 1)[0]).text = text
    else:
        ET.SubElement(case, "system-out").text = text


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)
