"""Who may import whom, and what a light start leaves alone."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("exporter", "calibration", "engines")
FOLDERS = (*STAGES, "benchmarks")
SHARED = {"errors", "spec", "lazy", "bundle", "manifest", "roles", "user_code"}
# What each part may import besides itself. The other modules of src/attn_export put the stages
# together: they stand above them all, and below only the command line.
ALLOWED = {
    **{name: {"attn_export", *SHARED} for name in (*SHARED, *STAGES)},
    "benchmarks": {"attn_export", *SHARED, *STAGES},
    "attn_export": {"engines"},
    "__main__": {"cli"},
}
HEAVY = {
    "matplotlib",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pyarrow",
    "safetensors",
    "tensorrt",
    "tokenizers",
    "torch",
    "transformers",
}
FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


def source_files() -> dict[str, Path]:
    """Every module of the package by its full name."""
    files = {f"attn_export.{path.stem}": path for path in (ROOT / "src/attn_export").glob("*.py")}
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            files[f"attn_export.{folder}.{path.stem}"] = path
    return {name.removesuffix(".__init__"): path for name, path in files.items()}


MODULES = source_files()


def imported(module: str) -> Iterator[tuple[str, int]]:
    """The names that a module imports anywhere, absolute, each with its relative level."""
    path = MODULES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                full = f"{name}.{alias.name}"
                yield (full if full in MODULES else name), node.level


def part(module: str) -> str:
    """The shared module or folder that a module belongs to."""
    return module.split(".")[1] if "." in module else module


# A light start


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import attn_export"),
        ("-c", "import attn_export.cli"),
        ("-c", "import attn_export.engines.session"),
        ("-m", "attn_export", "--help"),
    ],
    ids=["package", "cli", "seam", "help"],
)
def test_a_light_start_imports_nothing_heavy(
    fresh_python: FreshPython, arguments: tuple[str, ...]
) -> None:
    done = fresh_python("-X", "importtime", *arguments)
    found = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "attn_export" in found
    assert sorted(HEAVY & found) == []


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import attn_export

    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = attn_export.lode


# The direction of imports


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_stands_below_it(module: str) -> None:
    here = part(module)
    above_all = {part(name) for name in MODULES} - {"cli", "__main__"}
    allowed = {here, *ALLOWED.get(here, above_all)}
    for name, _ in imported(module):
        if name.split(".")[0] == "attn_export":
            assert part(name) in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_are_relative_inside_a_folder_and_absolute_across(module: str) -> None:
    here = part(module)
    for name, level in imported(module):
        assert name.split(".")[0] not in FOLDERS, f"{module}: say attn_export.{name}"
        assert level <= 1, f"{module} climbs out of its folder to {name}"
        if here in FOLDERS and name.startswith("attn_export."):
            assert (level == 1) == (part(name) == here), f"{module} imports {name}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: {name for name, _ in imported(module) if name in MODULES} - {module}
        for module in MODULES
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize(
    "module",
    sorted(name for name in MODULES if part(name) in {"engines", *SHARED}),
)
def test_the_server_side_never_names_the_export_packages(module: str) -> None:
    found = {name.split(".")[0] for name, _ in imported(module)}
    assert sorted(found & {"torch", "onnx", "onnx_ir", "onnxscript", "transformers"}) == []


# The project speaks of itself alone

TEXTS = {"", ".cfg", ".html", ".json", ".jsonl", ".md", ".py", ".toml", ".txt"}
OUTSIDE = re.compile("|".join((r"\biss" + r"ues?\b", "/wo" + "rk/", r"\.\./sha" + "red")), re.I)


def own_texts() -> list[Path]:
    """Every text file of the project."""
    files = [*ROOT.iterdir()]
    for folder in (*FOLDERS, "src", "tests", "docs", "examples"):
        files += (ROOT / folder).rglob("*")
    return [p for p in files if p.is_file() and p.suffix in TEXTS and p.name != "LICENSE"]


def test_no_text_points_outside_the_project() -> None:
    texts = own_texts()
    assert {ROOT / "setup.cfg", ROOT / "tests/test_imports.py"} <= set(texts)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if OUTSIDE.search(line)
    ]
    assert found == []
