"""The bundle on disk: whole or not at all, and refused when it was touched."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attn_export import bundle as bundle_module
from attn_export.bundle import (
    MANIFEST,
    Bundle,
    extended,
    file_record,
    locked,
    staged,
    write_atomic,
    write_manifest,
)
from attn_export.errors import BundleError, HostError
from attn_export.manifest import SCHEMA_VERSION, EngineRecord, GraphRecord, Manifest
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

NOBODY = 65534


def make_manifest(staging: Path, second: str) -> Manifest:
    return Manifest(
        model={"source": "tiny"},
        inputs=[TensorSpec(name="input_ids", dtype="int32", shape=(BATCH, SEQUENCE), role="ids")],
        outputs=[TensorSpec(name="logits", dtype="float32", shape=(BATCH, 3))],
        buckets={"edges": [16, 32]},
        graphs={
            "fp32": GraphRecord(
                precision="fp32",
                files=[
                    file_record(staging / "model.onnx", root=staging),
                    file_record(staging / "model.onnx.data", root=staging),
                ],
            ),
            second: GraphRecord(
                precision=second,
                files=[file_record(staging / f"model.{second}.onnx", root=staging)],
                twin=file_record(staging / "twins" / f"{second}.onnx", root=staging),
            ),
        },
        engines={
            "onnxruntime-fp32": EngineRecord(
                backend="onnxruntime", precision="fp32", graph="fp32", parity={"passed": True}
            )
        },
        reference=file_record(staging / "reference.npz", root=staging),
    )


def fill(staging: Path, text: str, second: str = "fp16") -> None:
    (staging / "twins").mkdir()
    for name in ("model.onnx", "model.onnx.data", "reference.npz"):
        (staging / name).write_text(f"{name} {text}")
    for name in (f"model.{second}.onnx", f"twins/{second}.onnx"):
        (staging / name).write_text(f"{name} {text}")
    write_manifest(staging, make_manifest(staging, second))


def build(directory: Path, text: str, second: str = "fp16") -> None:
    with staged(directory) as staging:
        fill(staging, text, second)


def build_and_fail(directory: Path, error: BaseException) -> None:
    with staged(directory) as staging:
        fill(staging, "failed")
        raise error


def snapshot(directory: Path) -> dict[str, str]:
    """Every file below a directory, with its content."""
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def verify_all(directory: Path) -> Manifest:
    opened = Bundle.open(directory)
    for graph in opened.manifest.graphs.values():
        opened.verify_graph(graph)
        if graph.twin:
            opened.verify(graph.twin)
    assert opened.manifest.reference is not None
    opened.verify(opened.manifest.reference)
    return opened.manifest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A finished bundle."""
    path = tmp_path / "some-bundle"
    build(path, "first")
    return path


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """Permissions do not bind root: give its rights up, and get a folder that nobody may write."""
    was = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        if was == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            os.seteuid(was)


@pytest.fixture
def child() -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -c code *arguments`` with this module and the package on its path."""

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        here = Path(__file__).parent
        paths = [str(here), str(here.parent / "src")]
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


# Writing


def test_a_finished_bundle_holds_what_was_staged_and_nothing_else(directory: Path) -> None:
    assert sorted(snapshot(directory)) == [
        MANIFEST,
        "model.fp16.onnx",
        "model.onnx",
        "model.onnx.data",
        "reference.npz",
        "twins/fp16.onnx",
    ]
    manifest = verify_all(directory)
    assert manifest.max_length == 32
    assert manifest.engines["onnxruntime-fp32"].name == "onnxruntime-fp32"
    assert manifest.inputs[0].shape == (BATCH, SEQUENCE)


def test_a_manifest_survives_its_file(directory: Path) -> None:
    manifest = Bundle.open(directory).manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_rebuild_removes_the_old_graphs_and_their_reports_and_keeps_other_files(
    directory: Path,
) -> None:
    (directory / "notes.txt").write_text("mine")
    write_atomic(directory / "reports" / "bench.json", "{}")
    build(directory, "second", second="int8")
    assert sorted(snapshot(directory)) == [
        MANIFEST,
        "model.int8.onnx",
        "model.onnx",
        "model.onnx.data",
        "notes.txt",
        "reference.npz",
        "twins/int8.onnx",
    ]
    assert list(verify_all(directory).graphs) == ["fp32", "int8"]


@pytest.mark.parametrize("error", [RuntimeError("export failed"), KeyboardInterrupt()])
def test_a_failed_build_leaves_the_old_bundle_as_it_was(
    directory: Path, error: BaseException
) -> None:
    before = snapshot(directory)
    with pytest.raises(type(error)):
        build_and_fail(directory, error)
    assert snapshot(directory) == before
    assert [path.name for path in directory.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("error", [RuntimeError("export failed"), KeyboardInterrupt()])
def test_a_failed_first_build_leaves_no_directory(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(type(error)):
        build_and_fail(tmp_path / "kept" / "new" / "bundle", error)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_failed_build_keeps_an_empty_directory_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError), staged(tmp_path / "empty"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_a_build_that_wrote_no_manifest_does_not_replace_a_bundle(directory: Path) -> None:
    before = snapshot(directory)
    with pytest.raises(FileNotFoundError, match=MANIFEST), staged(directory) as staging:
        (staging / "model.onnx").write_text("second")
    assert snapshot(directory) == before


def test_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(HostError, match=r"holds other files \(thesis.tex\) and no bundle"):
        build(tmp_path, "first")
    assert snapshot(tmp_path) == {"thesis.tex": "mine"}


def test_ctrl_c_while_files_move_in_completes_the_new_bundle(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "model.onnx.data":
            calls.append(target)
            if len(calls) == 1:
                raise KeyboardInterrupt
        return real(self, target)

    def build_and_interrupt() -> None:
        with staged(directory) as staging:
            fill(staging, "second", second="int8")
            monkeypatch.setattr(Path, "replace", interrupted)

    with pytest.raises(KeyboardInterrupt):
        build_and_interrupt()
    assert len(calls) == 2
    assert list(verify_all(directory).graphs) == ["fp32", "int8"]
    assert "twins/fp16.onnx" not in snapshot(directory)


# Being killed

PAUSE_IN_THE_BODY = """
import sys, time
from pathlib import Path
from attn_export.bundle import staged
with staged(Path(sys.argv[1])) as staging:
    (staging / "model.onnx").write_text("half")
    print("staged", flush=True)
    time.sleep(60)
"""

DIE_AT_A_STEP = """
import os, signal, sys
from pathlib import Path
from test_bundle import fill
from attn_export.bundle import staged

left = int(sys.argv[2])

def dying(real):
    def step(self, *arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *arguments, **options)
    return step

with staged(Path(sys.argv[1])) as staging:
    fill(staging, "second", second="int8")
    for name in ("rename", "replace", "unlink", "mkdir"):
        setattr(Path, name, dying(getattr(Path, name)))
"""


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over-an-old-one"])
def test_a_killed_build_leaves_no_lock_and_the_next_one_completes(
    tmp_path: Path, child: Callable[..., subprocess.Popen[str]], existing: bool
) -> None:
    target = tmp_path / "bundle"
    if existing:
        build(target, "first")
    with child(PAUSE_IN_THE_BODY, str(target)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        process.kill()
    assert any(path.name.startswith(".") for path in target.iterdir())
    if existing:
        assert "model.onnx first" in snapshot(target).values()
        verify_all(target)
    build(target, "second")
    verify_all(target)
    assert [path.name for path in target.iterdir() if path.name.startswith(".")] == []
    assert snapshot(target)["model.onnx"] == "model.onnx second"


def test_killed_at_any_step_of_publishing_the_next_build_completes(
    tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    outcomes = set()
    for step in range(1, 40):
        target = tmp_path / str(step)
        build(target, "first")
        with child(DIE_AT_A_STEP, str(target), str(step)) as process:
            died = process.wait() == -signal.SIGKILL
        try:
            second = list(verify_all(target).graphs)[1]
        except BundleError:
            second = "no bundle"
        outcomes.add(second)
        with pytest.raises(RuntimeError), staged(target):
            raise RuntimeError  # even a build that fails leaves a whole bundle
        verify_all(target)
        build(target, "third", second="fp16")
        verify_all(target)
        assert len(snapshot(target)) == 6
        if not died:
            break
    else:
        pytest.fail("publishing never ran to its end")
    assert step > 10
    assert outcomes == {"fp16", "no bundle", "int8"}


# The lock


def test_a_second_build_is_refused_while_the_first_runs(
    directory: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    with child(PAUSE_IN_THE_BODY, str(directory)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = snapshot(directory)
        with pytest.raises(HostError, match="another attn-export is writing"):
            build(directory, "second")
        assert snapshot(directory) == before
        verify_all(directory)
        process.kill()
    build(directory, "second")
    verify_all(directory)


def test_the_lock_is_free_after_an_error(directory: Path) -> None:
    with pytest.raises(RuntimeError), locked(directory):
        raise RuntimeError
    with (
        locked(directory),
        pytest.raises(HostError, match="another attn-export"),
        locked(directory),
    ):
        pytest.fail("two holders of one lock")


# A disk that refuses


def test_a_full_disk_leaves_the_old_bundle_as_it_was(directory: Path) -> None:
    before = snapshot(directory)

    def build_on_a_full_disk() -> None:
        with staged(directory) as staging:
            (staging / "model.onnx").symlink_to("/dev/full")
            (staging / "model.onnx").write_text("x" * 10_000)

    with pytest.raises(HostError, match="has no space left"):
        build_on_a_full_disk()
    assert snapshot(directory) == before


def test_a_file_that_is_too_large_leaves_no_half_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_atomic(tmp_path / "report.json", "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(HostError, match="does not take a file this large"):
            write_atomic(tmp_path / "report.json", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(tmp_path) == {"report.json": "old"}


@pytest.mark.parametrize("where", ["sealed/bundle", "sealed"])
def test_a_directory_without_write_permission_is_refused(as_nobody: Path, where: str) -> None:
    sealed = as_nobody / "sealed"
    sealed.mkdir()
    sealed.chmod(0o555)
    with pytest.raises(HostError, match="may not be written"):
        build(as_nobody / where, "first")
    assert list(sealed.iterdir()) == []


def test_a_bundle_without_write_permission_can_be_read_but_not_replaced(
    as_nobody: Path,
) -> None:
    target = as_nobody / "bundle"
    build(target, "first")
    target.chmod(0o555)
    try:
        before = snapshot(target)
        verify_all(target)
        with pytest.raises(HostError, match="may not be written"):
            build(target, "second")
        with pytest.raises(HostError, match="may not be written"):
            write_manifest(target, Bundle.open(target).manifest)
        assert snapshot(target) == before
    finally:
        target.chmod(0o755)


@pytest.mark.parametrize("where", ["file", "file/bundle"])
def test_a_path_through_a_file_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(HostError, match="is not a directory"):
        build(tmp_path / where, "first")
    assert snapshot(tmp_path) == {"file": "mine"}


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="too long a name"):
        build(tmp_path / ("x" * 300), "first")


def test_an_error_about_another_file_is_not_blamed_on_the_bundle(
    tmp_path: Path, directory: Path
) -> None:
    with pytest.raises(PermissionError), staged(directory):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "model.py"))


# Reading


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_bundle_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=rf"{name} is not a bundle: .* 'attn-export build -o"):
        Bundle.open(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "is not JSON", id="truncated"),
        pytest.param("\xff", "is not JSON", id="binary"),
        pytest.param("[]", "holds no JSON object", id="list"),
        pytest.param("{}", "schema None", id="empty"),
        pytest.param('{"schema_version": "1"}', "schema 1", id="text-version"),
        pytest.param('{"schema_version": 1}', "the manifest is broken", id="fields-missing"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused(
    directory: Path, text: str, message: str
) -> None:
    (directory / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=message):
        Bundle.open(directory)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        pytest.param(
            "schema_version",
            SCHEMA_VERSION + 1,
            f"has schema {SCHEMA_VERSION + 1}, .* reads up to {SCHEMA_VERSION}; upgrade",
            id="newer-schema",
        ),
        pytest.param("surprise", 1, "the manifest is broken", id="unknown-field"),
        pytest.param("graphs", [], "the manifest is broken", id="graphs-not-a-dict"),
        pytest.param("graphs", {"fp32": {"files": 3}}, "the manifest is broken", id="files"),
        pytest.param("inputs", [3], "the manifest is broken", id="inputs"),
        pytest.param("buckets", {"edges": []}, "the manifest is broken", id="no-bucket"),
        pytest.param("buckets", {"edges": ["x"]}, "the manifest is broken", id="edge"),
        pytest.param(
            "graphs",
            {"fp32": {"precision": "fp32", "files": [], "twin": None}},
            "a graph without a file",
            id="no-file",
        ),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(
    directory: Path, key: str, value: object, message: str
) -> None:
    edit_manifest(directory, lambda data: data.update({key: value}))
    with pytest.raises(BundleError, match=message):
        Bundle.open(directory)


@pytest.mark.parametrize("file", ["/etc/passwd", "../other/model.onnx", "a/../../model.onnx"])
@pytest.mark.parametrize("place", ["graph", "twin", "reference"])
def test_a_path_outside_the_bundle_is_refused(directory: Path, file: str, place: str) -> None:
    def point_outside(data: dict[str, Any]) -> None:
        graph = data["graphs"]["fp16"]
        record = {"graph": graph["files"][0], "twin": graph["twin"], "reference": data["reference"]}
        record[place]["file"] = file

    edit_manifest(directory, point_outside)
    with pytest.raises(BundleError, match=f"names '{file}', which is outside the bundle"):
        Bundle.open(directory)


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((directory / MANIFEST).read_text())
    edit(data)
    (directory / MANIFEST).write_text(json.dumps(data))


def test_an_unreadable_manifest_says_why(directory: Path) -> None:
    (directory / MANIFEST).unlink()
    (directory / MANIFEST).mkdir()
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        Bundle.open(directory)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.unlink(), "is missing", id="missing"),
        pytest.param(
            lambda path: os.truncate(path, 4), "has 4 bytes, the manifest says", id="truncated"
        ),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b"first", b"fIrst")),
            "was altered: its sha256 is",
            id="altered",
        ),
    ],
)
def test_a_damaged_graph_is_refused(
    directory: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(directory / name)
    opened = Bundle.open(directory)
    with pytest.raises(BundleError, match=message):
        opened.verify_graph(opened.graph("fp32"))
    opened.verify_graph(opened.graph("fp16"))


def test_a_file_that_is_a_directory_is_refused(directory: Path) -> None:
    path = directory / "model.onnx"
    path.unlink()
    path.mkdir()
    opened = Bundle.open(directory)
    record = opened.graph("fp32").files[0]
    record.bytes = path.stat().st_size
    with pytest.raises(BundleError, match="cannot be read: Is a directory"):
        opened.verify(record)


def test_a_graph_that_was_not_built_lists_those_that_were(directory: Path) -> None:
    with pytest.raises(BundleError, match=r"holds no int8 graph \(it holds: fp32, fp16\)"):
        Bundle.open(directory).graph("int8")


def test_the_hash_is_sha256_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert bundle_module.sha256(tmp_path / "abc") == expected
    block = b"x" * (1 << 20)
    (tmp_path / "a").write_bytes(block + b"1")
    (tmp_path / "b").write_bytes(block + b"2")
    assert bundle_module.sha256(tmp_path / "a") != bundle_module.sha256(tmp_path / "b")


# Adding engines to a bundle


def add_plan(directory: Path, text: str) -> None:
    with extended(directory) as bundle:
        plan = bundle.directory / "trt" / "sm75" / "model.plan"
        write_atomic(plan, text)
        record = EngineRecord(backend="tensorrt", precision="fp32", graph="fp32")
        record.files = [file_record(plan, root=bundle.directory)]
        bundle.manifest.engines[record.name] = record


def test_an_engine_is_added_and_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    build(directory, "one")
    before = Bundle.open(directory).manifest
    for text in ("a plan", "another plan"):
        add_plan(directory, text)
        bundle = Bundle.open(directory)
        assert bundle.manifest.graphs == before.graphs
        assert set(bundle.manifest.engines) == {"onnxruntime-fp32", "tensorrt-fp32"}
        for record in bundle.manifest.files:
            bundle.verify(record)
        assert (directory / "trt/sm75/model.plan").read_text() == text
    assert sorted(path.name for path in directory.iterdir() if path.name.startswith(".")) == []


def interrupt_addition(directory: Path) -> None:
    with extended(directory) as bundle:
        write_atomic(bundle.directory / "trt/sm75/model.plan", "half a pl")
        raise KeyboardInterrupt


def test_a_failed_addition_leaves_the_old_plan(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    build(directory, "one")
    add_plan(directory, "a plan")
    with pytest.raises(KeyboardInterrupt):
        interrupt_addition(directory)
    bundle = Bundle.open(directory)
    for record in bundle.manifest.files:
        bundle.verify(record)


def test_an_addition_to_no_bundle_or_to_half_of_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"), extended(tmp_path / "absent"):
        pass
    assert not (tmp_path / "absent").exists()
    directory = tmp_path / "bundle"
    build(directory, "one")
    (directory / "model.fp16.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.fp16\.onnx is missing"), extended(directory):
        pass


def test_files_are_copied_where_second_names_are_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "not here", str(self))

    directory = tmp_path / "bundle"
    build(directory, "one")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    add_plan(directory, "a plan")
    bundle = Bundle.open(directory)
    for record in bundle.manifest.files:
        bundle.verify(record)


def test_reports_stay_with_their_graphs_and_go_with_them(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    build(directory, "one")
    write_atomic(directory / "reports/bench.json", "{}")
    write_atomic(directory / "cache/timing.bin", b"\x00")
    add_plan(directory, "a plan")
    assert (directory / "reports/bench.json").exists()
    build(directory, "two")
    assert not (directory / "reports").exists()
    assert not (directory / "trt/sm75/model.plan").exists()
    assert (directory / "cache/timing.bin").read_bytes() == b"\x00"
