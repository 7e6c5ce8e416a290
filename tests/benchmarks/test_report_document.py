"""Numbers in words, nested values as rows, and text that stays text in both pages."""

from __future__ import annotations

import pytest

from attn_export.benchmarks.html_page import anchor, html_page
from attn_export.benchmarks.html_parts import cell, part
from attn_export.benchmarks.markdown_report import markdown_report, plain
from attn_export.benchmarks.report_document import Document, Link, Section, Table, Verdict
from attn_export.benchmarks.report_numbers import measured, number, percent, plural
from attn_export.benchmarks.report_origin import flat


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.6, "12,346"),
        (100, "100"),
        (99.96, "100"),
        (99.94, "99.9"),
        (9.996, "10.0"),
        (1.2345, "1.23"),
        (0.9996, "1.00"),
        (0.0045, "0.0045"),
        (0, "0"),
        (-250.4, "-250"),
        (2.5e-6, "2.5e-06"),
    ],
)
def test_a_number_has_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_an_interval_keeps_its_ends() -> None:
    assert measured({"median": 19.23, "low": 18.9, "high": 1960}, "x") == "19.2x [18.9 to 1,960]"


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100.0%"), (0.9996, "99.96%"), (0.991, "99.1%"), (0, "0.0%")]
)
def test_nearly_all_does_not_read_as_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_one_is_singular() -> None:
    assert (plural(1, "run"), plural(0, "run")) == ("1 run", "0 runs")


def test_nested_values_become_rows_and_long_lists_are_cut() -> None:
    rows = flat(
        {
            "memory_mib": 24105,
            "cpu": {"model": "x", "features": {"amx": True, "sse": False}},
            "packages": {"torch": "2.13"},
            "cpus": list(range(20)),
            "governor": None,
            "quick": False,
            "share": 0.123456789,
        }
    )
    assert dict(rows) == {
        "memory mib": "24105",
        "cpu model": "x",
        "cpu features": "amx",
        "packages": "torch 2.13",
        "cpus": "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more",
        "governor": "-",
        "quick": "no",
        "share": "0.123457",
    }


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("max_abs of _it_", r"max_abs of \_it\_"),
        ("[a](b)", r"[a\](b)"),
        ("[1 to 2]", "[1 to 2]"),
        ("two\nlines", "two lines"),
        ("# no heading", r"\# no heading"),
        ("- no item", r"\- no item"),
        ("`code` *b* ~~s~~ \\", r"\`code\` \*b\* \~\~s\~\~ \\"),
    ],
)
def test_markdown_text_stays_text(text: str, escaped: str) -> None:
    assert plain(text) == escaped


@pytest.mark.parametrize("target", ["javascript:x", "JavaScript:x", "data:text/html,x", "http://x"])
def test_only_https_and_paths_become_links(target: str) -> None:
    assert cell(Link(text="<a>", target=target)) == "&lt;a&gt;"
    assert cell(Link(text="a", target='x.html"')) == '<a href="x.html&quot;">a</a>'
    assert cell(Link(text="a", target="https://x/")) == '<a href="https://x/">a</a>'


def test_a_table_names_its_rows_and_columns() -> None:
    shown = Table(caption="C", columns=("n", "v"), rows=[("a", "1")])
    text = part(shown)
    assert '<th scope="col" class="w">n</th><th scope="col">v</th>' in text
    assert '<th scope="row" class="w">a</th><td>1</td>' in text
    assert "<details>" not in text


def document(*statuses: str) -> Document:
    verdicts = [Verdict(status=s, text=f"it is {s}") for s in statuses]  # type: ignore[arg-type]
    return Document(
        title="T",
        subtitle="S",
        tiles=[],
        verdicts=verdicts,
        sections=[Section(title="A b: c", parts=[])],
        footer="F",
    )


def test_the_verdicts_are_counted_the_worst_first() -> None:
    made = document("pass", "info", "warning", "pass", "fail")
    assert made.summary == "1 failed, 1 warning, 2 passed"
    assert markdown_report(made).splitlines()[4:7] == [
        "Verdicts: 1 failed, 1 warning, 2 passed",
        "",
        "- **✓ pass** it is pass",
    ]


def test_sections_can_be_jumped_to() -> None:
    assert anchor("A b: c") == "a-b-c"
    text = html_page(document())
    assert '<a href="#a-b-c">A b: c</a>' in text
    assert '<h2 id="a-b-c">A b: c</h2>' in text
