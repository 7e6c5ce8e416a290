"""Which reference an engine is compared with, and why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.oracle import choose_oracle
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, UsageError

WITHOUT_TORCH = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"}:
            raise ModuleNotFoundError(f"no module {name}", name=name.partition(".")[0])

sys.meta_path.insert(0, Block())
from attn_export.benchmarks.parity import run_parity
from attn_export.bundle import Bundle
report = run_parity(Bundle.open(sys.argv[1]), engines=["onnxruntime-fp32"])
print(report.passed, report.reference, report.reason)
"""


def test_eager_and_golden_hold_the_same_cases_and_outputs(bundle: Bundle) -> None:
    eager, golden = choose_oracle(bundle, "auto"), choose_oracle(bundle, "golden")
    assert (eager.kind, golden.kind) == ("eager", "golden")
    pairs = list(zip(eager.stream(bundle), golden.stream(bundle), strict=True))
    for (case, fresh), (kept_case, kept) in pairs:
        assert case.name == kept_case.name
        np.testing.assert_allclose(fresh["logits"], kept["logits"], atol=1e-6)


def test_auto_takes_the_golden_file_where_the_weights_differ_and_says_why(bundle: Bundle) -> None:
    bundle.manifest.model["weights_sha256"] = "0" * 64
    oracle = choose_oracle(bundle, "auto")
    assert oracle.kind == "golden"
    assert "has other weights than the bundle" in oracle.reason


def test_eager_asked_for_and_impossible_is_an_error(bundle: Bundle) -> None:
    bundle.manifest.model["weights_sha256"] = "0" * 64
    with pytest.raises(BundleError, match="other weights"):
        choose_oracle(bundle, "eager")


def test_without_torch_the_golden_file_is_the_reference(exported: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(exported)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.startswith("True golden eager PyTorch cannot be had here: torch"), (
        found.stderr
    )
    assert "attn-export[export]" in found.stdout


def test_a_bundle_without_a_golden_file_says_both_reasons(bundle: Bundle) -> None:
    bundle.manifest.model["weights_sha256"] = "0" * 64
    bundle.manifest.reference = None
    with pytest.raises(BundleError, match=r"has no golden file .*other weights"):
        choose_oracle(bundle, "auto")


def test_an_altered_golden_file_is_refused(bundle: Bundle) -> None:
    path = bundle.directory / "reference.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="altered"):
        choose_oracle(bundle, "golden")


def test_another_kind_is_refused(bundle: Bundle) -> None:
    kind: Any = "torch"
    with pytest.raises(UsageError, match="'torch': it must be one of auto, eager, golden"):
        choose_oracle(bundle, kind)
