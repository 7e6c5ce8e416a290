"""What this machine can do, and what to install for the rest.

Only metadata is read: no optional package is imported and no TensorRT object is made.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import platform
import re
import shlex
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from attn_export import __version__
from attn_export.errors import HostError

from .cpu import Cpu, examine_cpu
from .cuda_driver import Cuda, probe
from .targets import LEAST_COMPUTE_CAPABILITY

DISTRIBUTION = "attn-export"
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
# The lean runtimes run engines and cannot build them.
TENSORRT_BUILDERS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
TENSORRT_LEAN = ("tensorrt-lean", "tensorrt-lean-cu12", "tensorrt-lean-cu13")
LEAST_GPU = ">=" + ".".join(map(str, LEAST_COMPUTE_CAPABILITY))


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that an extra asks for; ``version`` is None when it is not installed."""

    name: str
    needs: str
    version: str | None
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One thing to do here: whether it is possible, what is missing, the command that helps."""

    name: str
    possible: bool
    missing: tuple[str, ...]
    command: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found. ``problems`` are defects of the installation, with their cure."""

    attn_export: str
    python: str
    platform: str
    cpu: Cpu
    memory_mib: int
    cuda: Cuda
    tensorrt: dict[str, str]
    extras: dict[str, tuple[Package, ...]]
    capabilities: tuple[Capability, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def examine() -> Report:
    """Look at this machine.

    Raises:
        HostError: if attn-export is neither installed nor run from its source folder.
    """
    cuda = probe()
    extras = _extras()
    tensorrt = {
        name: version
        for name in (*TENSORRT_BUILDERS, *TENSORRT_LEAN)
        if (version := _version(name)) is not None
    }
    return Report(
        attn_export=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=examine_cpu(),
        memory_mib=_memory_mib(Path("/sys/fs/cgroup/memory.max")),
        cuda=cuda,
        tensorrt=tensorrt,
        extras=extras,
        capabilities=_capabilities(extras, cuda, tensorrt),
        problems=_problems(cuda, tensorrt),
    )


def render(report: Report) -> list[str]:
    """The report as lines of text."""
    cpu, cuda = report.cpu, report.cuda
    features = " ".join(name for name, present in cpu.features.items() if present)
    gpus = [f"{g.name}, compute {g.compute_capability}, {g.memory_mib} MiB" for g in cuda.gpus]
    driver = f" (driver: CUDA {cuda.version})" if cuda.version else ""
    tensorrt = ", ".join(f"{name} {version}" for name, version in report.tensorrt.items())
    lines = [
        f"attn-export {report.attn_export}, Python {report.python}, {report.platform}",
        f"CPU       {cpu.model}, {cpu.cores} cores, {features or 'no vector features known'}",
        f"Computes  {_computes(cpu)}",
        f"Memory    {report.memory_mib} MiB",
        *[f"GPU       {text}{driver}" for text in gpus or [f"none: {cuda.problem}"]],
        f"TensorRT  {tensorrt or 'not installed'}",
        "",
        "Packages",
    ]
    for extra, packages in report.extras.items():
        found = ", ".join(f"{p.name} {p.version or '(not installed)'}" for p in packages)
        lines.append(f"  {extra:<9} {found}")
    lines += ["", "Can it"]
    for item in report.capabilities:
        verdict = "yes" if item.possible else f"no: {'; '.join(item.missing)}"
        lines.append(f"  {item.name:<23} {verdict}")
        if item.command:
            lines.append(f"  {'':<23} run: {item.command}")
    return lines + [f"Problem: {text}" for text in report.problems]


def _computes(cpu: Cpu) -> str:
    """What the CPU multiplies in hardware, by its fastest unit for each precision."""
    units = {
        "FP32": {"avx512f": "AVX-512", "avx2": "AVX2"},
        "BF16": {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"},
        "INT8": {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI"},
    }
    found = []
    for precision, names in units.items():
        unit = next((text for name, text in names.items() if cpu.features[name]), None)
        found.append(f"{precision} by {unit}" if unit else f"no {precision} unit known")
    return ", ".join(found)


def _memory_mib(limit: Path) -> int:
    """The machine's memory, or the container's limit where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        total = min(total, int(limit.read_text(encoding="utf-8")))
    return total >> 20


def _source_folder() -> Path | None:
    """The project's folder, when this file runs from it."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "setup.cfg").is_file() else None


def _requirements() -> list[str]:
    """Our own requirements in the form of package metadata."""
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        folder = _source_folder()
    if folder is None:
        raise HostError("attn-export is not installed; run: pip install attn-export")
    config = configparser.ConfigParser()
    config.read(folder / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].split()
    for extra, wanted in config["options.extras_require"].items():
        lines += [f'{line}; extra == "{extra}"' for line in wanted.split()]
    return lines


def _extras() -> dict[str, tuple[Package, ...]]:
    extras: dict[str, tuple[Package, ...]] = {}
    for line in _requirements():
        found = re.fullmatch(r"([\w.-]+)\s*([^;]*?)\s*(?:;\s*extra == [\"']([\w-]+)[\"'])?", line)
        if found is None:
            raise HostError(f"the requirement {line!r} of attn-export cannot be understood")
        name, needs, extra = found.groups()
        version = _version(name)
        fits = version is not None and _fits(version, needs)
        package = Package(name=name, needs=needs, version=version, fits=fits)
        key = extra or "base"
        extras[key] = (*extras.get(key, ()), package)
    return extras


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, needs: str) -> bool:
    """Whether a version meets ``needs``, a list of ``>=`` and ``<``."""
    for clause in filter(None, needs.split(",")):
        below = clause.startswith("<")
        if (_numbers(version) < _numbers(clause)) != below:
            return False
    return True


def _numbers(version: str) -> list[int]:
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def _install(*extras: str) -> str:
    """The pip command that adds extras to this installation."""
    names = ",".join(extras)
    if _version(DISTRIBUTION) is None:
        return f"pip install -e {shlex.quote(f'{_source_folder()}[{names}]')}"
    return f"pip install '{DISTRIBUTION}[{names}]'"


def _missing(packages: tuple[Package, ...]) -> list[str]:
    return [
        f"{p.name} {p.version} is installed, {p.needs} is needed"
        if p.version
        else f"{p.name} is not installed"
        for p in packages
        if not p.fits
    ]


def _capability(name: str, missing: list[str], command: str | None) -> Capability:
    return Capability(
        name=name,
        possible=not missing,
        missing=tuple(missing),
        command=command if missing else None,
    )


def _capabilities(
    extras: dict[str, tuple[Package, ...]], cuda: Cuda, tensorrt: dict[str, str]
) -> tuple[Capability, ...]:
    runtime = [] if any(p.fits for p in extras["gpu"]) else _missing(extras["cpu"])
    export = _missing(extras["export"])
    wanted = [*(["cpu"] if runtime else []), *(["export"] if export else [])]
    return (
        _capability("build", runtime + export, _install(*wanted)),
        _capability("run on CPU", runtime, _install("cpu")),
        _capability("run with OpenVINO", _missing(extras["openvino"]), _install("openvino")),
        _tensorrt(extras["tensorrt"], cuda, tensorrt),
        _capability("texts", _missing(extras["text"]), _install("text")),
    )


def _tensorrt(packages: tuple[Package, ...], cuda: Cuda, installed: dict[str, str]) -> Capability:
    builder = any(name in installed for name in TENSORRT_BUILDERS)
    missing = _missing(tuple(p for p in packages if p.name != "tensorrt" or not builder))
    command = _install("tensorrt") if missing else None
    if missing and cuda.version and not _fits(cuda.version, ">=13"):
        # The plain packages on PyPI are built for CUDA 13.
        command = "pip install tensorrt-cu12 'cuda-bindings==12.9.*'"
    if cuda.problem:
        missing.insert(0, f"{cuda.problem}: it takes a machine with an NVIDIA GPU")
    elif not any(_fits(gpu.compute_capability, LEAST_GPU) for gpu in cuda.gpus):
        missing.insert(0, f"no GPU here has compute capability {LEAST_GPU}")
    return _capability("build TensorRT engines", missing, command)


def _problems(cuda: Cuda, tensorrt: dict[str, str]) -> tuple[str, ...]:
    problems = []
    runtimes = {name: version for name in ONNX_RUNTIMES if (version := _version(name))}
    if len(runtimes) > 1:
        found = " and ".join(f"{name} {version}" for name, version in runtimes.items())
        problems.append(
            f"{found} are both installed and overwrite each other's files; run: "
            f"pip uninstall -y {' '.join(runtimes)} && {_install('cpu')}"
        )
    if "tensorrt-cu13" in tensorrt and cuda.version and not _fits(cuda.version, ">=13"):
        problems.append(
            f"TensorRT is built for CUDA 13, the driver supports CUDA {cuda.version}; run: "
            f"pip uninstall -y {' '.join(tensorrt)} && pip install tensorrt-cu12"
        )
    return tuple(problems)
