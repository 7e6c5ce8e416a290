"""What the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attn_export.engines import cuda_driver

from .tensorrt_double.fixtures import (
    child_environment,
    cuda_double,
    lean_double,
    surface,
    tensorrt_double,
    tensorrt_version,
)

__all__ = [
    "child_environment",
    "cuda_double",
    "lean_double",
    "surface",
    "tensorrt_double",
    "tensorrt_version",
]

ROOT = Path(__file__).resolve().parent.parent
FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU, with the reason that was found."""
    if item.get_closest_marker("gpu"):
        problem = cuda_driver.probe().problem
        if problem:
            pytest.skip(problem)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's top folder."""
    return ROOT


@pytest.fixture(scope="session")
def fresh_python() -> FreshPython:
    """Run ``python *arguments`` in an interpreter that has imported nothing of ours."""

    def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
            check=True,
        )

    return run


@pytest.fixture(autouse=True, scope="session")
def short_races() -> Iterator[None]:
    """Engines race in short turns: no test asserts which one wins."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LEAST_TURN_S", "MOST_TURN_S"):
            patch.setattr(f"attn_export.benchmarks.race.{name}", 0.03)
        yield
