"""Statistics of a graph's tensors, against the same tensors computed by NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from attn_export.calibration.collect import Array, collect
from attn_export.calibration.histogram import Histogram
from attn_export.calibration.statistics_cache import collect_cached, fingerprint
from attn_export.errors import BuildFailed, BundleError, InputError, UsageError

Batch = dict[str, Array]
TABLE = np.random.default_rng(5).standard_normal((50, 16)).astype(np.float32)
WEIGHT = np.random.default_rng(6).standard_normal((16, 32)).astype(np.float32)
TENSORS = ("embedding", "gemm", "y")


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """``y = 100 * (table[input_ids] @ weight)``: the weight is large enough to stay in its file."""
    return written(tmp_path / "graph" / "model.onnx")


def written(path: Path, factor: float = 100.0) -> Path:
    nodes = [
        onnx.helper.make_node("Gather", ["table", "input_ids"], ["embedding"], name="embedding"),
        onnx.helper.make_node("MatMul", ["embedding", "weight"], ["gemm"], name="gemm"),
        onnx.helper.make_node("Mul", ["gemm", "factor"], ["y"], name="scale"),
        onnx.helper.make_node("Shape", ["gemm"], ["shape"], name="shape"),
    ]
    proto = onnx.helper.make_graph(
        nodes,
        "g",
        [
            onnx.helper.make_tensor_value_info(
                "input_ids", onnx.TensorProto.INT32, ["batch", "sequence"]
            )
        ],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(TABLE, "table"),
            onnx.numpy_helper.from_array(WEIGHT, "weight"),
            onnx.numpy_helper.from_array(np.array([factor], np.float32), "factor"),
        ],
    )
    path.parent.mkdir(exist_ok=True)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(proto, opset_imports=opset, ir_version=8), path)
    return path


class Untouched:
    """Batches that must not be run."""

    def __iter__(self) -> Iterator[Batch]:
        raise AssertionError("the batches were run")


def batches(seed: int = 7) -> list[Batch]:
    rng = np.random.default_rng(seed)
    shapes = [(4, 3), (2, 9), (1, 1)]
    return [{"input_ids": rng.integers(0, 50, shape, np.int32)} for shape in shapes]


def computed(data: list[Batch]) -> dict[str, Array]:
    ids = np.concatenate([batch["input_ids"].ravel() for batch in data])
    embedding = TABLE[ids]
    gemm = embedding @ WEIGHT
    return {"embedding": embedding, "gemm": gemm, "y": gemm * np.float32(100)}


def test_histograms_are_those_of_the_tensors(graph: Path) -> None:
    data = batches()
    found = collect(graph, TENSORS, data)
    expected = computed(data)
    assert list(found.tensors) == list(TENSORS)
    embedding = Histogram()
    embedding.add(expected["embedding"])
    assert found.tensors["embedding"].to_json() == embedding.to_json()
    for name in ("gemm", "y"):
        histogram = found.tensors[name]
        assert histogram.counts.sum() == expected[name].size
        assert histogram.low == pytest.approx(float(expected[name].min()), rel=1e-5)
        assert histogram.high == pytest.approx(float(expected[name].max()), rel=1e-5)


def test_samples_and_tokens_are_counted(graph: Path) -> None:
    seen: list[int] = []
    found = collect(graph, ["gemm"], batches(), progress=seen.append, data={"file": "a.jsonl"})
    assert (found.samples, found.tokens) == (4 + 2 + 1, 12 + 18 + 1)
    assert seen == [4, 6, 7]
    assert found.data == ({"file": "a.jsonl"},)


def test_two_runs_merge_into_one_over_both_data(graph: Path) -> None:
    first, second = batches(1), batches(2)
    merged = collect(graph, TENSORS, first, channels=["gemm"]).merged(
        collect(graph, TENSORS, second, channels=["gemm"])
    )
    whole = collect(graph, TENSORS, first + second, channels=["gemm"])
    assert {**merged.to_json(), "data": []} == {**whole.to_json(), "data": []}


def test_channel_maxima_are_those_of_the_last_axis(graph: Path) -> None:
    data = batches()
    maxima = collect(graph, ["embedding", "gemm"], data, channels=["embedding"]).channel_maxima
    assert list(maxima) == ["embedding"]
    np.testing.assert_array_equal(
        maxima["embedding"], np.abs(computed(data)["embedding"]).max(axis=0)
    )


def test_batches_are_taken_one_by_one(graph: Path) -> None:
    taken: list[int] = []
    behind: list[int] = []

    def endless() -> Iterator[Batch]:
        for number in range(5):
            taken.append(number)
            yield batches()[0]

    collect(graph, ["gemm"], endless(), progress=lambda samples: behind.append(len(taken)))
    assert behind == [1, 2, 3, 4, 5]


def test_nothing_is_written_beside_the_graph(graph: Path) -> None:
    before = graph.read_bytes()
    graph.parent.chmod(0o500)
    collect(graph, TENSORS, batches())
    graph.parent.chmod(0o700)
    assert [path.name for path in graph.parent.iterdir()] == ["model.onnx"]
    assert graph.read_bytes() == before


def test_float_inputs_have_statistics_too(tmp_path: Path) -> None:
    floats = onnx.TensorProto.FLOAT
    proto = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"], name="neg")],
        "g",
        [onnx.helper.make_tensor_value_info("x", floats, ["batch", 2])],
        [onnx.helper.make_tensor_value_info("y", floats, ["batch", 2])],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(proto, opset_imports=opset, ir_version=8)
    onnx.save(model, tmp_path / "neg.onnx")
    feeds = {"x": np.array([[1.0, -2.0], [4.0, 0.0], [0.0, 0.0]], np.float32)}
    found = collect(tmp_path / "neg.onnx", ["x", "y"], [feeds])
    bounds = {name: (item.low, item.high) for name, item in found.tensors.items()}
    assert bounds == {"x": (-2.0, 4.0), "y": (-4.0, 2.0)}
    assert (found.samples, found.tokens) == (3, 3)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 3e38])
def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path, factor: float) -> None:
    graph = written(tmp_path / "model.onnx", factor)
    with pytest.raises(BuildFailed, match=r"tensor y is NaN or infinite in \d+ of 384 values"):
        collect(graph, TENSORS, batches())


def test_values_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    """Their least and largest are each close to FP32's limits."""
    expected = np.abs(computed(batches())["gemm"]).max()
    graph = written(tmp_path / "model.onnx", float(3e38 / expected))
    assert collect(graph, ["y"], batches()).tensors["y"].largest > 2.9e38


def test_a_tensor_that_the_graph_does_not_compute_is_refused(graph: Path) -> None:
    with pytest.raises(UsageError, match="computes no tensor weight, nowhere; name outputs"):
        collect(graph, ["gemm", "weight", "nowhere"], batches())
    with pytest.raises(UsageError, match="no tensor that was named"):
        collect(graph, [], batches())


@pytest.mark.parametrize("name", ["shape", "input_ids"])
def test_a_tensor_that_is_not_float_is_refused(graph: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is a tensor\(int"):
        collect(graph, [name], batches())


def test_no_batches_are_refused(graph: Path) -> None:
    with pytest.raises(InputError, match="no calibration batches"):
        collect(graph, ["gemm"], [])


def test_feeds_that_onnxruntime_refuses_are_shown(graph: Path) -> None:
    with pytest.raises(InputError, match=r"feeds input_ids \[4\]"):
        collect(graph, ["gemm"], [{"input_ids": np.zeros(4, np.int32)}])


def test_an_id_outside_the_table_fails_with_its_batch(graph: Path) -> None:
    with pytest.raises((InputError, BuildFailed), match=r"input_ids \[1, 1\]"):
        collect(graph, ["gemm"], [{"input_ids": np.full((1, 1), 50, np.int32)}])


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="cannot be read as an ONNX graph"):
        collect(tmp_path / "model.onnx", ["gemm"], batches())


def test_a_graph_that_onnxruntime_cannot_open_is_refused(graph: Path) -> None:
    model = onnx.load(graph)
    model.graph.node[1].op_type = "NoSuchOperator"
    onnx.save(model, graph)
    with pytest.raises(BuildFailed, match=r"cannot open .*model\.onnx"):
        collect(graph, ["gemm"], batches())


def test_a_second_run_reads_the_cache(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    first, hit = collect_cached(graph, TENSORS, batches(), folder=folder, data_sha256="d")
    assert not hit
    again, hit = collect_cached(graph, TENSORS, Untouched(), folder=folder, data_sha256="d")
    assert hit
    assert again.to_json() == first.to_json()
    assert [path.name[:11] for path in folder.iterdir()] == ["statistics-"]


def test_the_cache_is_keyed_by_all_that_matters(graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    other = written(tmp_path / "other.onnx", factor=2.0)

    def hit(
        path: Path = graph,
        tensors: tuple[str, ...] = ("gemm", "y"),
        channels: tuple[str, ...] = (),
        data_sha256: str = "d",
        seed: int = 0,
    ) -> bool:
        return collect_cached(
            path,
            tensors,
            batches(),
            folder=folder,
            data_sha256=data_sha256,
            channels=channels,
            data={"seed": seed},
        )[1]

    assert not hit()
    assert hit(tensors=("y", "gemm"))
    changes = (
        hit(path=other),
        hit(tensors=("gemm",)),
        hit(channels=("gemm",)),
        hit(data_sha256="e"),
        hit(seed=1),
    )
    assert not any(changes)
    assert hit()


def test_a_broken_cache_file_is_replaced(graph: Path, tmp_path: Path) -> None:
    def run() -> bool:
        return collect_cached(graph, TENSORS, batches(), folder=tmp_path, data_sha256="d")[1]

    run()
    (kept,) = tmp_path.glob("statistics-*.json")
    kept.write_bytes(kept.read_bytes()[:-40])
    assert not run()
    assert run()


def test_a_failed_run_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    graph = written(tmp_path / "model.onnx", float("inf"))
    with pytest.raises(BuildFailed):
        collect_cached(graph, TENSORS, batches(), folder=tmp_path / "cache", data_sha256="d")
    assert not (tmp_path / "cache").exists()


def test_a_fingerprint_is_that_of_the_content() -> None:
    first, second, third = batches()
    same = fingerprint([first, second, third])
    assert fingerprint(iter(batches())) == same
    assert fingerprint([second, first, third]) != same
    wide = {"input_ids": third["input_ids"].astype(np.int64)}
    turned = {"input_ids": first["input_ids"].reshape(3, 4)}
    assert fingerprint([first, second, wide]) != same
    assert fingerprint([turned, second, third]) != same
