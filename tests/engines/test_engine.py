"""Which engine of a bundle is loaded, and that what it runs is what was asked for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attn_export
from attn_export.bundle import Bundle, write_manifest
from attn_export.engines.engine import Engine, load
from attn_export.errors import BundleError, InputError, UsageError
from attn_export.manifest import EngineRecord, GraphRecord

Twin = Callable[[Any, Any], dict[str, Any]]
LENGTHS = [3, 16, 1, 8, 5, 16, 2, 11, 4, 4, 7, 1]


@pytest.fixture
def engine(directory: Path) -> Iterator[Engine]:
    with load(directory) as engine:
        yield engine


def requests_of(lengths: list[int]) -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 50, length) for length in lengths]


def batch(ids: Any) -> dict[str, Any]:
    array = np.atleast_2d(ids)
    return {"input_ids": array, "attention_mask": np.ones(array.shape, np.int64)}


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_an_engine_describes_itself(engine: Engine) -> None:
    assert [spec.name for spec in engine.inputs] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in engine.outputs] == ["logits", "hidden"]
    assert engine.buckets == (4, 8, 16)
    assert (engine.backend, engine.precision) == ("onnxruntime", "fp32")


def test_the_package_offers_load() -> None:
    assert attn_export.load is load


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (5, 16)])
def test_run_equals_numpy(engine: Engine, twin: Twin, shape: tuple[int, int]) -> None:
    ids = np.random.default_rng(0).integers(0, 50, shape)
    mask = np.ones(shape, np.int64)
    mask[0, 1:] = 0
    outputs = engine.run({"input_ids": ids, "attention_mask": mask})
    expected = twin(ids, mask)
    close(outputs["logits"], expected["logits"])
    close(outputs["hidden"], expected["hidden"])


def test_run_checks_its_feeds(engine: Engine) -> None:
    with pytest.raises(InputError, match="missing inputs: attention_mask"):
        engine.run({"input_ids": [[1]]})
    with pytest.raises(InputError, match="input_ids has 17 tokens; the buckets are 4, 8, 16"):
        engine.run(batch([1] * 17))


@pytest.mark.parametrize("threads", [1, 2])
def test_run_many_equals_numpy_one_by_one_in_order(
    directory: Path, twin: Twin, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(LENGTHS * 5)
    with load(directory, threads=threads) as engine:
        # Small batches: many of them, some with padding.
        monkeypatch.setattr(engine._session, "batch_tokens", 24)
        outputs = engine.run_many(requests)
    assert isinstance(outputs["logits"], np.ndarray)
    assert outputs["logits"].shape == (60, 3)
    assert [len(hidden) for hidden in outputs["hidden"]] == LENGTHS * 5
    for ids, logits, hidden in zip(requests, outputs["logits"], outputs["hidden"], strict=True):
        alone = twin(ids[None], np.ones((1, len(ids))))
        close(logits, alone["logits"][0])
        close(hidden, alone["hidden"][0])


def test_a_single_batch_is_run_like_many(engine: Engine) -> None:
    ids = [1, 2, 3]
    many = engine.run_many([ids])
    close(many["logits"], engine.run(batch(ids))["logits"])


def test_requests_may_be_lists_mappings_or_an_iterator(engine: Engine) -> None:
    ids = requests_of(LENGTHS)
    expected = engine.run_many(ids)["logits"]
    close(engine.run_many(iter(row.tolist() for row in ids))["logits"], expected)
    close(engine.run_many([{"input_ids": row} for row in ids])["logits"], expected)


def test_a_request_may_bring_its_own_mask(engine: Engine, twin: Twin) -> None:
    ids, mask = np.array([[4, 5, 6, 7]]), np.array([[0, 1, 1, 0]])
    outputs = engine.run_many([[1, 2], {"input_ids": ids[0], "attention_mask": mask[0]}])
    close(outputs["logits"][1], twin(ids, mask)["logits"][0])


def test_no_requests_give_empty_outputs(engine: Engine) -> None:
    outputs = engine.run_many([])
    assert isinstance(outputs["logits"], np.ndarray)
    assert outputs["logits"].shape == (0, 3)
    assert outputs["logits"].dtype == np.float32
    assert outputs["hidden"] == []


@pytest.mark.parametrize("length", [0, 17])
def test_a_request_of_a_wrong_length_is_named(engine: Engine, length: int) -> None:
    with pytest.raises(InputError, match=rf"2 \(from 0\) has {length} tokens; the buckets are"):
        engine.run_many([[1], [2], [1] * length])


def test_ids_outside_the_vocabulary_are_named_where_asked(directory: Path) -> None:
    with load(directory, check_ids=True) as engine:
        with pytest.raises(InputError, match=r"the id -1 at position \[0, 1\]"):
            engine.run(batch([1, -1]))
        with pytest.raises(InputError, match=r"request 1 \(from 0\).* the id 50 at position \[0\]"):
            engine.run_many([[1], [50]])
        assert len(engine.run_many([[0], [49]])["logits"]) == 2


def test_a_large_id_is_an_input_error_also_unasked(engine: Engine) -> None:
    with pytest.raises(InputError, match="out of data bounds"):
        engine.run_many([[1], [50]])


@pytest.mark.parametrize(("requests", "way"), [(1, "run"), (3, "run"), (4, "run_all")])
def test_fewer_requests_than_threads_get_all_threads_in_turn(
    directory: Path, requests: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    with load(directory, threads=4) as engine:
        other = {"run": "run_all", "run_all": "run"}[way]
        monkeypatch.setattr(engine._session, other, None)
        assert len(engine.run_many(requests_of([16, 3, 5, 4][:requests]))["logits"]) == requests


def test_eight_threads_share_one_engine(engine: Engine) -> None:
    requests = requests_of(LENGTHS * 4)
    expected = np.asarray(engine.run_many(requests)["logits"])

    def client(n: int) -> None:
        for _ in range(5):
            close(engine.run_many(requests[n:])["logits"], expected[n:])
            close(engine.run(batch(requests[n]))["logits"][0], expected[n])

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(client, range(8)))


def test_a_closed_engine_says_so(directory: Path) -> None:
    with load(directory) as engine:
        engine.run(batch([1]))
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run(batch([1]))
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run_many([[1], [2]])


def test_loading_and_running_leave_a_read_only_bundle_as_it_was(directory: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [directory, *directory.rglob("*")]}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with load(directory) as engine:
            engine.run(batch([1]))
            engine.run_many([[1], [2, 3]])
    finally:
        directory.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in [directory, *directory.rglob("*")]} == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(flip, "was altered: its sha256 is", id="one-bit"),
        pytest.param(lambda path: os.truncate(path, 100), "has 100 bytes.*truncated", id="short"),
        pytest.param(lambda path: path.unlink(), "is missing", id="missing"),
    ],
)
def test_a_damaged_graph_is_refused(
    directory: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(directory / "model.onnx")
    with pytest.raises(BundleError, match=message):
        load(directory)


def test_a_bundle_from_a_newer_version_is_refused(directory: Path) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(BundleError, match=r"has schema 99.*upgrade attn-export"):
        load(directory)


def test_a_directory_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


PASSED, FAILED = {"passed": True}, {"passed": False}


def with_engines(bundle: Bundle, *engines: tuple[str, dict[str, Any] | None, float]) -> Path:
    """Give a bundle engines of (precision, parity, ms); all run the one graph."""
    graph = bundle.manifest.graphs["fp32"]
    for precision, parity, ms in engines:
        record = EngineRecord(
            backend="onnxruntime",
            precision=precision,
            graph=precision,
            buckets=[{"edge": 16, "batch": 24, "ms": ms}],
            parity=parity and {**parity, "sha256": graph.files[0].sha256},
        )
        bundle.manifest.engines[record.name] = record
        bundle.manifest.graphs[precision] = GraphRecord(precision=precision, files=graph.files)
    write_manifest(bundle.directory, bundle.manifest)
    return bundle.directory


@pytest.mark.parametrize(
    ("engines", "chosen"),
    [
        pytest.param([("fp32", PASSED, 3), ("int8-cpu", PASSED, 1)], "int8-cpu", id="fastest"),
        pytest.param([("fp32", PASSED, 1), ("int8-cpu", PASSED, 3)], "fp32", id="measured"),
        pytest.param([("fp32", PASSED, 3), ("int8-cpu", FAILED, 1)], "fp32", id="not-failed"),
        pytest.param([("fp32", PASSED, 3), ("int8-cpu", None, 1)], "fp32", id="not-unproven"),
        pytest.param([("fp32", PASSED, 3), ("fp16", PASSED, 1)], "fp32", id="no-fp16"),
    ],
)
def test_the_fastest_proven_engine_that_suits_a_cpu_is_loaded(
    bundle: Bundle,
    engines: list[Any],
    chosen: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = with_engines(bundle, *engines)
    for backend in (None, "onnxruntime"):
        with load(directory, backend=backend) as engine:
            assert engine.precision == chosen
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("parity", "state"), [(FAILED, "parity failed"), (None, "parity never checked")]
)
def test_an_engine_without_proof_is_loaded_only_by_name_with_a_warning(
    bundle: Bundle, parity: Any, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = with_engines(bundle, ("int8-cpu", parity, 1))
    with pytest.raises(BundleError, match=rf"no proven engine.*onnxruntime-int8-cpu \({state}\)"):
        load(directory)
    with load(directory, precision="int8-cpu") as engine:
        engine.run(batch([1]))
    assert caplog.messages == [
        f"loaded because it was asked for by name: onnxruntime-int8-cpu ({state})"
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "int4"}, "no int4 engine.*its engines: onnxruntime-fp32"),
        ({"backend": "tensorrt"}, "no tensorrt engine.*its engines: onnxruntime-fp32"),
        ({"backend": "tensorrt", "precision": "fp32"}, "no tensorrt fp32 engine"),
    ],
)
def test_an_engine_the_bundle_does_not_hold_is_refused(
    directory: Path, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        load(directory, **asked)  # type: ignore[arg-type]


def test_a_bundle_without_engines_says_how_to_make_one(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"its engines: none; .*attn-export build"):
        load(bundle.directory)


SERVER = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnx_ir", "onnxscript", "tokenizers"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import attn_export

with attn_export.load(sys.argv[1]) as engine:
    print(len(engine.run_many([[1], [2, 3]])["logits"]), engine.run(
        {"input_ids": [[1]], "attention_mask": [[1]]})["logits"].shape)
"""


def test_a_server_needs_neither_torch_nor_onnx(
    directory: Path, fresh_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = fresh_python("-W", "error", "-c", SERVER, str(directory))
    assert (done.stdout, done.stderr) == ("2 (1, 3)\n", "")


@pytest.mark.parametrize(
    ("precision", "warnings"),
    [
        pytest.param(
            "fp16",
            [
                "loaded because it was asked for by name: onnxruntime-fp16 (parity passed; "
                "a CPU computes FP16 graphs in FP32; serve FP32 or INT8 there)"
            ],
            id="fp16",
        ),
        pytest.param("fp32", [], id="fp32"),
    ],
)
def test_only_fp16_is_warned_of_on_a_cpu(
    precision: str, warnings: list[str], bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = bundle.manifest
    record = EngineRecord(
        backend="onnxruntime",
        precision=precision,
        graph="fp32",
        parity={"passed": True, "sha256": bundle.manifest.graphs["fp32"].files[0].sha256},
    )
    manifest.engines = {record.name: record}
    write_manifest(bundle.directory, manifest)
    with caplog.at_level(logging.INFO, "attn_export"):
        load(bundle.directory, precision=precision).close()
    assert caplog.messages == warnings
