"""setup.cfg, the links in src/, constraints.txt and the built wheel say the same thing."""

from __future__ import annotations

import configparser
import importlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import attn_export
from attn_export.engines import session
from attn_export.engines.doctor import _fits

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["benchmarks", "calibration", "engines", "exporter"]


@pytest.fixture(scope="module")
def setup() -> configparser.ConfigParser:
    """The content of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def pairs(text: str) -> dict[str, str]:
    """The ``name = value`` lines of a setup.cfg field."""
    lines = (line.partition(" = ") for line in text.strip().splitlines())
    return {name: value for name, _, value in lines}


def test_the_mapping_and_the_links_agree(setup: configparser.ConfigParser) -> None:
    folders = pairs(setup["options"]["package_dir"])
    assert sorted(folders) == sorted(setup["options"]["packages"].split())
    for package, folder in folders.items():
        link = ROOT / "src" / package.replace(".", "/")
        assert link.resolve() == (ROOT / folder).resolve(), package
    links = [path for path in (ROOT / "src/attn_export").iterdir() if path.is_symlink()]
    assert sorted(path.name for path in links) == FOLDERS
    assert all(not path.readlink().is_absolute() for path in links)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_holds_a_package_that_the_wheel_would_drop(folder: str) -> None:
    nested = [path.parent.name for path in (ROOT / folder).glob("*/**/*.py")]
    assert nested == []
    assert (ROOT / folder / "__init__.py").is_file()


def test_the_version_is_written_once(setup: configparser.ConfigParser) -> None:
    assert setup["metadata"]["version"] == "attr: attn_export.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", attn_export.__version__)


def test_what_is_installed_says_the_same_as_the_source(
    setup: configparser.ConfigParser,
) -> None:
    try:
        installed = importlib.metadata.metadata("attn-export")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("attn-export is not installed here")
    assert installed["Version"] == attn_export.__version__
    assert sorted(installed.get_all("Provides-Extra") or []) == sorted(
        setup["options.extras_require"]
    )


def test_the_extras_are_the_ones_that_messages_name(setup: configparser.ConfigParser) -> None:
    extras = set(setup["options.extras_require"])
    gpu = {"gpu", "tensorrt", "lean"}
    assert extras == gpu | {"cpu", "openvino", "export", "text", "data", "plot", "peers", "dev"}
    sources = [*ROOT.glob("src/attn_export/*.py"), *ROOT.glob("src/attn_export/*/*.py")]
    named = {
        name
        for path in sources
        for name in re.findall(r"extra=\"(\w+)\"", path.read_text(encoding="utf-8"))
    }
    assert named <= extras


def test_every_entry_point_resolves(setup: configparser.ConfigParser) -> None:
    points = setup["options.entry_points"]
    module, _, name = pairs(points["console_scripts"])["attn-export"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    assert pairs(points[session.ENTRY_POINTS]) == session.BACKENDS


@pytest.mark.parametrize("name", sorted(session.BACKENDS))
def test_every_backend_has_its_two_functions(name: str) -> None:
    module = session.backend(name)
    assert callable(module.compile)
    assert callable(module.load)


@pytest.mark.parametrize("python", ["3.10", "3.11"])
def test_constraints_pin_each_requirement_once_within_its_limits(
    setup: configparser.ConfigParser, python: str
) -> None:
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"([\w-]+)==([\w.]+)(?:; python_version (<|>=) \"3.11\")?", line)
        if line and not line.startswith("#"):
            assert found is not None, line
            name, version, side = found.groups()
            if side is None or (side == "<") == (python == "3.10"):
                pins.setdefault(name, []).append(version)
    lines = setup["options"]["install_requires"].split()
    for extra in ("cpu", "export", "text", "dev"):
        lines += setup["options.extras_require"][extra].split()
    for line in lines:
        found = re.fullmatch(r"([\w-]+)([<>=\d.,]*)", line)
        assert found is not None, line
        assert len(pins[found[1]]) == 1, line
        assert _fits(pins[found[1]][0], found[2]), line
    assert all(len(versions) == 1 for versions in pins.values())


@pytest.mark.parametrize("with_links", [True, False], ids=["links", "no-links"])
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path, with_links: bool) -> None:
    needs = re.findall(r"setuptools(>=\d+)", (ROOT / "pyproject.toml").read_text())[0]
    version = next((d.version for d in importlib.metadata.distributions(name="setuptools")), "0")
    if not _fits(version, needs):
        pytest.skip(f"setuptools{needs} is not installed: no wheel can be built offline")
    source = tmp_path / "source"
    for folder in ("src", *FOLDERS):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    if not with_links:
        for folder in FOLDERS:
            (source / "src/attn_export" / folder).unlink()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("attn_export-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"attn_export/{p.name}" for p in (ROOT / "src/attn_export").glob("*.py")}
    expected |= {f"attn_export/{f}/{p.name}" for f in FOLDERS for p in (ROOT / f).glob("*.py")}
    assert names == {*expected, "attn_export/py.typed"}


def test_the_continuous_integration_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
