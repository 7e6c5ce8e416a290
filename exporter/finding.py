"""One thing that a lint found in a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Finding:
    """What was found, what is allowed and what to do.

    Args:
        severity: ``"error"``: the engine's builder refuses the graph or, worse, reads it wrongly
            and says nothing; ``"warning"``: it runs, but loses fusion, accuracy or portability.
        node: the node's name, ``""`` for the graph as a whole.
        op: its operator.
    """

    severity: Literal["error", "warning"]
    node: str
    op: str
    text: str

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def error(node: ir.Node | None, text: str) -> Finding:
    """A finding of severity ``"error"``; None is the graph as a whole."""
    return Finding("error", *_place(node), text)


def warning(node: ir.Node | None, text: str) -> Finding:
    """A finding of severity ``"warning"``."""
    return Finding("warning", *_place(node), text)


def _place(node: ir.Node | None) -> tuple[str, str]:
    return ("", "") if node is None else (node.name or "", node.op_type)


def sentences(findings: Iterable[Finding]) -> list[str]:
    """One sentence for each kind of finding, with the first node and how many more there are."""
    groups: dict[tuple[str, str], list[str]] = {}
    for item in findings:
        groups.setdefault((item.op, item.text), []).append(item.node)
    return [_sentence(op, text, nodes) for (op, text), nodes in groups.items()]


def report(findings: Iterable[Finding]) -> list[str]:
    """The same with each sentence's severity before it, errors first."""
    known = list(findings)
    return [
        f"{severity}: {sentence}"
        for severity in ("error", "warning")
        for sentence in sentences(item for item in known if item.severity == severity)
    ]


def _sentence(op: str, text: str, nodes: list[str]) -> str:
    if not op:
        return text
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return f"{op} {nodes[0]!r}{more}: {text}"
