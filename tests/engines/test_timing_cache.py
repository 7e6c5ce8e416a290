"""The timing cache's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attn_export.engines.cuda_driver import Gpu
from attn_export.engines.timing_cache import TimingCache, cache_file
from attn_export.engines.trt_api import make_log

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
MakeDouble = Callable[[str], Any]


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, tensorrt_double: MakeDouble) -> Any:
    return tensorrt_double(request.param)


@pytest.fixture
def config(trt: Any) -> Any:
    return trt.Builder(make_log(trt)).create_builder_config()


@pytest.mark.parametrize(
    ("version", "name", "sm", "expected"),
    [
        ("10.16.1.11", "Tesla T4", "7.5", "timing-10.16.1-sm75-tesla-t4.bin"),
        ("8.6.1", "NVIDIA A100-SXM4-40GB", "8.0", "timing-8.6.1-sm80-nvidia-a100-sxm4-40gb.bin"),
    ],
)
def test_the_name_tells_the_version_and_the_gpu(
    version: str, name: str, sm: str, expected: str
) -> None:
    gpu = Gpu(name=name, compute_capability=sm, memory_mib=1)
    assert cache_file(Path("cache"), version, gpu) == Path("cache") / expected


def test_a_cache_is_attached_and_written_and_taken_up_again(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "timing.bin"
    first = TimingCache(config, path)
    assert config.get_timing_cache() is not None
    first.save()
    assert (first.state, first.notes) == ("new", [])
    written, inode = path.read_bytes(), path.stat().st_ino
    assert written == bytes(config.get_timing_cache().serialize())
    again = TimingCache(config, path)
    again.save()
    assert (again.state, again.notes) == ("complete", [])
    assert path.stat().st_ino == inode  # nothing new, so nothing is written


def test_a_broken_file_is_refused_with_a_note_and_replaced(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "timing.bin"
    path.write_bytes(b"not a timing cache")
    cache = TimingCache(config, path)
    assert cache.state == "refused"
    assert cache.notes == [
        f"{path} is broken, or of another TensorRT or GPU: a new timing cache is begun"
    ]
    cache.save()
    assert cache.state == "refused"
    assert TimingCache(config, path).state == "reused"


@pytest.mark.parametrize(("other", "sm"), [("10.16.1.11", "8.9"), ("11.4.0.106", "7.5")])
def test_a_cache_of_another_gpu_or_version_is_refused(
    other: str, sm: str, tensorrt_double: MakeDouble, tmp_path: Path
) -> None:
    path = tmp_path / "timing.bin"
    foreign = tensorrt_double(other)
    foreign.double.compute_capability = sm
    TimingCache(foreign.Builder(make_log(foreign)).create_builder_config(), path).save()
    trt = tensorrt_double("10.16.1.11")
    trt.double.compute_capability = "7.5"
    config = trt.Builder(make_log(trt)).create_builder_config()
    assert TimingCache(config, path).state == "refused"


def test_a_folder_that_takes_no_file_is_a_note(config: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = TimingCache(config, tmp_path / "cache" / "timing.bin")
    cache.save()
    assert [note.partition(":")[0] for note in cache.notes] == [
        f"the timing cache {tmp_path / 'cache' / 'timing.bin'} cannot be read",
        "the timing cache was not kept",
    ]
