"""OpenVINO imported in silence, and the graphs that it compiles."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_export.bundle import Bundle
from attn_export.engines import openvino_library
from attn_export.engines.openvino_library import (
    compile_graph,
    library,
    read_graph,
    settings,
    version,
)
from attn_export.errors import BuildFailed, MissingPackage

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]

LISTEN = """
import json, os, sys
os.environ["HOME"] = sys.argv[1]
heard = []
sys.addaudithook(lambda name, _: heard.append(name) if name.startswith("socket.") else None)
from attn_export.engines.openvino_library import library
from pathlib import Path
library().Core()
loaded = [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry
print(json.dumps({"loaded": loaded, "heard": heard}))
"""


def test_its_import_tells_nobody_writes_nothing_and_prints_nothing(
    fresh_python: FreshPython, tmp_path: Path
) -> None:
    done = fresh_python("-c", LISTEN, str(tmp_path))
    assert json.loads(done.stdout) == {"loaded": [], "heard": []}
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_has_telemetry_keeps_it(fresh_python: FreshPython) -> None:
    code = (
        "import sys, openvino_telemetry as before;"
        "from attn_export.engines.openvino_library import library; library();"
        "print(sys.modules['openvino_telemetry'] is before)"
    )
    assert fresh_python("-c", code).stdout == "True\n"


def test_where_it_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingPackage, match=r"pip install 'attn-export\[openvino\]'"):
        library()
    assert "openvino_telemetry" not in sys.modules


def test_the_version_has_no_build_number() -> None:
    assert [part.isdigit() for part in version().split(".")] == [True] * 3


@pytest.mark.parametrize(("streams", "hint"), [(1, "LATENCY"), (2, "THROUGHPUT")])
def test_streams_and_threads_are_what_was_asked_for(
    bundle: Bundle, streams: int, hint: str
) -> None:
    path = bundle.directory / "model.onnx"
    compiled = compile_graph(read_graph(path), computes="f32", streams=streams, threads=2)
    found = settings(compiled)
    assert (found["streams"], found["threads"], found["hint"]) == (streams, 2, hint)
    assert found["pinned"] is False


def test_a_version_without_the_undocumented_property_compiles_all_the_same(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO refuses a property that it does not know."""
    monkeypatch.setattr(openvino_library, "SNIPPETS_OFF", {"SNIPPETS_OF_OLD": "DISABLE"})
    path = bundle.directory / "model.onnx"
    assert compile_graph(read_graph(path), computes="f32", streams=1, threads=1)


@pytest.mark.parametrize("content", [b"not a graph", None])
def test_a_broken_graph_fails_in_one_line_and_prints_nothing(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildFailed, match=rf"OpenVINO {version()} cannot open .*model.onnx: ") as e:
        read_graph(path)
    assert "\n" not in str(e.value)
    assert capfd.readouterr() == ("", "")
