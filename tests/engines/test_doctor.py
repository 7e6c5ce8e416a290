"""What this machine can do: real metadata in temporary folders, no package imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from attn_export.engines import doctor
from attn_export.engines.cuda_driver import Cuda, Gpu

NO_GPU = Cuda(version=None, gpus=(), problem="no NVIDIA driver")
T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15109)
V100 = Gpu(name="Tesla V100", compute_capability="7.0", memory_mib=16160)
FreshPython = Callable[..., "subprocess.CompletedProcess[str]"]
EVERYTHING = {
    "onnxruntime": "1.31.1",
    "openvino": "2026.4.1",
    "torch": "2.13.0+cpu",
    "onnx": "1.23.2",
    "onnxscript": "0.7.2",
    "onnx-ir": "1.1.0",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
}

# As a built package says it.
OUR_REQUIREMENTS = (
    "click>=8.1",
    'onnxruntime>=1.20; extra == "cpu"',
    'onnxruntime-gpu>=1.20; extra == "gpu"',
    'openvino>=2025.0; extra == "openvino"',
    'torch>=2.9; extra == "export"',
    'onnx>=1.19; extra == "export"',
    'onnxscript>=0.5; extra == "export"',
    'onnx-ir>=0.1.10; extra == "export"',
    'safetensors>=0.4; extra == "export"',
    'tensorrt<12,>=8.6; extra == "tensorrt"',
    'cuda-bindings>=12.9; extra == "tensorrt"',
    'tokenizers>=0.20; extra == "text"',
)

# Runs without site-packages, on exactly the packages that a test lays out in its folder.
EXAMINE = """
import json, sys
from attn_export.engines import cuda_driver, doctor
found = json.loads(sys.argv[1])
gpus = tuple(cuda_driver.Gpu(**gpu) for gpu in found.pop("gpus"))
doctor.probe = lambda: cuda_driver.Cuda(gpus=gpus, **found)
report = doctor.examine()
print(json.dumps([report.to_json(), doctor.render(report)]))
"""


@dataclass
class Examined:
    """A report as JSON, and its lines."""

    report: dict[str, Any]
    lines: list[str]

    def capability(self, name: str) -> dict[str, Any]:
        (found,) = [item for item in self.report["capabilities"] if item["name"] == name]
        return dict(found)


Examine = Callable[..., Examined]


@pytest.fixture
def examine(tmp_path: Path, fresh_python: FreshPython) -> Examine:
    """Examine a machine that has exactly these packages and this driver."""

    def run(packages: dict[str, str], *, cuda: Cuda = NO_GPU, installed: bool = True) -> Examined:
        for name, version in packages.items():
            install(tmp_path, name, version)
        if installed:
            install(tmp_path, "attn-export", "0.1.0", *OUR_REQUIREMENTS)
        done = fresh_python("-S", "-c", EXAMINE, json.dumps(asdict(cuda)), cwd=tmp_path)
        return Examined(*json.loads(done.stdout))

    return run


def install(folder: Path, name: str, version: str, *requirements: str) -> None:
    """What pip leaves of a package, without its code."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_with_every_package_and_no_gpu_all_but_tensorrt_is_possible(examine: Examine) -> None:
    found = examine(EVERYTHING)
    possible = {item["name"]: item["possible"] for item in found.report["capabilities"]}
    assert possible == {
        "build": True,
        "run on CPU": True,
        "run with OpenVINO": True,
        "build TensorRT engines": False,
        "texts": True,
    }
    assert found.capability("build")["command"] is None
    assert found.report["problems"] == []


@pytest.mark.parametrize(
    ("absent", "capability", "missing", "command"),
    [
        pytest.param(
            "torch",
            "build",
            ["torch is not installed"],
            "pip install 'attn-export[export]'",
            id="torch",
        ),
        pytest.param(
            "onnxruntime",
            "build",
            ["onnxruntime is not installed"],
            "pip install 'attn-export[cpu]'",
            id="onnxruntime-to-build",
        ),
        pytest.param(
            "onnxruntime",
            "run on CPU",
            ["onnxruntime is not installed"],
            "pip install 'attn-export[cpu]'",
            id="onnxruntime-to-run",
        ),
        pytest.param(
            "openvino",
            "run with OpenVINO",
            ["openvino is not installed"],
            "pip install 'attn-export[openvino]'",
            id="openvino",
        ),
        pytest.param(
            "tokenizers",
            "texts",
            ["tokenizers is not installed"],
            "pip install 'attn-export[text]'",
            id="tokenizers",
        ),
    ],
)
def test_an_absent_package_comes_with_the_command_that_installs_it(
    examine: Examine, absent: str, capability: str, missing: list[str], command: str
) -> None:
    found = examine({k: v for k, v in EVERYTHING.items() if k != absent})
    assert found.capability(capability) == {
        "name": capability,
        "possible": False,
        "missing": missing,
        "command": command,
    }
    assert any(line.endswith(f"run: {command}") for line in found.lines)


def test_both_extras_are_named_when_both_are_missing(examine: Examine) -> None:
    assert examine({}).capability("build")["command"] == ("pip install 'attn-export[cpu,export]'")


def test_a_package_that_is_too_old_is_not_enough(examine: Examine) -> None:
    found = examine({**EVERYTHING, "torch": "2.8.1+cu128"})
    assert found.capability("build")["missing"] == [
        "torch 2.8.1+cu128 is installed, >=2.9 is needed"
    ]


@pytest.mark.parametrize(
    ("version", "needs", "fits"),
    [
        ("2.9", ">=2.9", True),
        ("2.9.0", ">=2.9", True),
        ("2.9", ">=2.9.0", True),
        ("2.10.0+cpu", ">=2.9", True),
        ("2.8.9", ">=2.9", False),
        ("11.4.0.106", "<12,>=8.6", True),
        ("12.0.1", "<12,>=8.6", False),
        ("12.0", "<12,>=8.6", False),
        ("8.5.3.1", "<12,>=8.6", False),
        ("1.0", "", True),
    ],
)
def test_a_version_is_held_to_each_limit(version: str, needs: str, fits: bool) -> None:
    assert doctor._fits(version, needs) is fits


def test_the_gpu_build_of_onnx_runtime_also_runs_on_the_cpu(examine: Examine) -> None:
    packages = {k: v for k, v in EVERYTHING.items() if k != "onnxruntime"}
    found = examine({**packages, "onnxruntime-gpu": "1.31.1"})
    assert found.capability("run on CPU")["possible"]
    assert found.report["problems"] == []


def test_two_onnx_runtimes_at_once_are_a_problem_with_a_cure(examine: Examine) -> None:
    found = examine({**EVERYTHING, "onnxruntime-gpu": "1.30.0"})
    (problem,) = found.report["problems"]
    assert problem == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.30.0 are both installed and overwrite each "
        "other's files; run: pip uninstall -y onnxruntime onnxruntime-gpu && "
        "pip install 'attn-export[cpu]'"
    )
    assert f"Problem: {problem}" in found.lines


def test_run_from_its_source_folder_it_reads_setup_cfg(examine: Examine, root: Path) -> None:
    found = examine({}, installed=False)
    extras = {k: [p["name"] for p in v] for k, v in found.report["extras"].items()}
    assert extras["cpu"] == ["onnxruntime"]
    assert extras["tensorrt"] == ["tensorrt", "cuda-bindings"]
    assert "torch" in extras["export"]
    assert found.report["extras"]["tensorrt"][0]["needs"] == ">=8.6,<12"
    command = found.capability("texts")["command"]
    assert shlex.split(command) == ["pip", "install", "-e", f"{root}[text]"]


# TensorRT


def test_without_a_gpu_it_says_that_one_is_needed(examine: Examine) -> None:
    found = examine({**EVERYTHING, "tensorrt": "11.4.0", "cuda-bindings": "13.0.1"})
    capability = found.capability("build TensorRT engines")
    assert capability["missing"] == ["no NVIDIA driver: it takes a machine with an NVIDIA GPU"]
    assert capability["command"] is None
    assert found.report["tensorrt"] == {"tensorrt": "11.4.0"}


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt-cu12", "tensorrt-cu13"])
def test_a_t4_with_any_tensorrt_package_can_build(examine: Examine, package: str) -> None:
    cuda = Cuda(version="13.0", gpus=(V100, T4), problem=None)
    found = examine({package: "10.16.1.11", "cuda-bindings": "12.9.4"}, cuda=cuda)
    assert found.capability("build TensorRT engines")["possible"]
    assert "GPU       Tesla T4, compute 7.5, 15109 MiB (driver: CUDA 13.0)" in found.lines
    assert f"TensorRT  {package} 10.16.1.11" in found.lines
    assert found.report["problems"] == []


def test_the_lean_runtime_cannot_build(examine: Examine) -> None:
    cuda = Cuda(version="13.0", gpus=(T4,), problem=None)
    found = examine({"tensorrt-lean": "10.16.1", "cuda-bindings": "12.9.4"}, cuda=cuda)
    capability = found.capability("build TensorRT engines")
    assert capability["missing"] == ["tensorrt is not installed"]
    assert capability["command"] == "pip install 'attn-export[tensorrt]'"


def test_a_gpu_that_is_too_old_is_named(examine: Examine) -> None:
    cuda = Cuda(version="12.8", gpus=(V100,), problem=None)
    found = examine({"tensorrt-cu12": "10.16.1", "cuda-bindings": "12.9.4"}, cuda=cuda)
    assert found.capability("build TensorRT engines")["missing"] == [
        "no GPU here has compute capability >=7.5"
    ]


def test_a_driver_for_cuda_12_gets_the_packages_for_cuda_12(examine: Examine) -> None:
    cuda = Cuda(version="12.8", gpus=(T4,), problem=None)
    assert examine({}, cuda=cuda).capability("build TensorRT engines")["command"] == (
        "pip install tensorrt-cu12 'cuda-bindings==12.9.*'"
    )


def test_tensorrt_for_cuda_13_on_a_driver_for_cuda_12_is_a_problem(examine: Examine) -> None:
    cuda = Cuda(version="12.8", gpus=(T4,), problem=None)
    packages = {"tensorrt": "11.4.0", "tensorrt-cu13": "11.4.0", "cuda-bindings": "12.9.4"}
    (problem,) = examine(packages, cuda=cuda).report["problems"]
    assert problem.startswith("TensorRT is built for CUDA 13, the driver supports CUDA 12.8")
    assert problem.endswith("pip uninstall -y tensorrt tensorrt-cu13 && pip install tensorrt-cu12")


# The machine


def test_this_machine_is_described() -> None:
    report = doctor.examine()
    assert report.cpu.cores == len(os.sched_getaffinity(0))
    assert report.cpu.model
    assert report.memory_mib > 100
    assert json.loads(json.dumps(report.to_json()))["python"] == report.python
    assert doctor.render(report)[0].startswith("attn-export ")


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (
            {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"},
            "FP32 by AVX-512, BF16 by AMX, INT8 by AMX",
        ),
        ({"avx2", "avx_vnni"}, "FP32 by AVX2, no BF16 unit known, INT8 by AVX VNNI"),
        (set(), "no FP32 unit known, no BF16 unit known, no INT8 unit known"),
    ],
)
def test_what_the_cpu_multiplies_in_hardware_is_a_line(present: set[str], said: str) -> None:
    report = doctor.examine()
    features = {name: name in present for name in report.cpu.features}
    lines = doctor.render(replace(report, cpu=replace(report.cpu, features=features)))
    assert f"Computes  {said}" in lines


def test_a_container_limit_counts_as_the_memory(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("104857600\n")
    assert doctor._memory_mib(limit) == 100
    limit.write_text("max\n")
    assert doctor._memory_mib(limit) == doctor._memory_mib(tmp_path / "absent") > 100


def test_nothing_heavy_is_imported(fresh_python: FreshPython) -> None:
    code = (
        "import sys; from attn_export.engines import doctor; doctor.render(doctor.examine());"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert fresh_python("-c", code).stdout == "[]\n"
