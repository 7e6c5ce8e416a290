"""A user's own module: found, called, understood; or refused in words."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

from attn_export.errors import BuildFailed, UsageError
from attn_export.exporter.eager import run_eager
from attn_export.exporter.source import LoadedModel, ModelSource, load_model

MODULE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(40, 8)
            self.head = nn.Linear(8, 2)
        def forward(self, input_ids, attention_mask):
            weights = attention_mask.unsqueeze(-1).float()
            x = self.table(input_ids) * weights
            return {"logits": self.head(x.sum(1)), "tokens": x}

    def plain():
        torch.manual_seed(0)
        net = Net()
        net.max_length = 12
        return net

    def unlimited():
        return Net()

    def full():
        ids = torch.zeros(2, 6, dtype=torch.int32)
        axes = {0: "batch", 1: "sequence"}
        mask = torch.ones(2, 6, dtype=torch.bool)
        return plain(), {"input_ids": ids, "attention_mask": mask}, {
            "input_ids": axes, "attention_mask": axes}

    def floats():
        return nn.Linear(8, 3), {"input": torch.randn(2, 8)}, {"input": {0: "batch"}}

    def raises():
        raise RuntimeError("no weights today")

    def number():
        return 3

    def odd_axis():
        return nn.Linear(8, 3), {"input": torch.randn(2, 8)}, {"input": {0: "rows"}}

    def no_batch():
        return nn.Linear(8, 3), {"input": torch.randn(2, 8)}, {"input": {}}

    def axis_out_of_range():
        return nn.Linear(8, 3), {"input": torch.randn(2, 8)}, {"input": {0: "batch", 7: "sequence"}}

    def other_inputs():
        return nn.Linear(8, 3)

    def bad_examples():
        return nn.Linear(8, 3), {"input": torch.randn(2, 9)}, {"input": {0: "batch"}}

    def text_output():
        class Text(nn.Module):
            max_length = 4
            def forward(self, input_ids):
                return {"text": "hello"}
        return Text()
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "user_model.py"
    path.write_text(textwrap.dedent(MODULE))
    return path


def load(path: Path, factory: str, max_length: int | None = None) -> LoadedModel:
    return load_model(ModelSource(model=f"{path}:{factory}", max_length=max_length))


def test_a_module_alone_is_understood(user_file: Path) -> None:
    model = load(user_file, "plain")
    ids, mask = model.inputs
    assert (ids.name, ids.dtype, ids.shape, ids.role) == (
        "input_ids",
        "int32",
        ("batch", "sequence"),
        "ids",
    )
    assert ids.limit == 40  # the size of the table that reads them
    assert mask.role == "mask"
    assert model.max_length == 12


@pytest.mark.parametrize("factory", ["plain", "full"])
def test_outputs_are_named_and_run(user_file: Path, factory: str) -> None:
    model = load(user_file, factory)
    feeds = {
        "input_ids": np.array([[1, 2, 3]], np.int32),
        "attention_mask": np.array([[1, 1, 0]], np.int32),
    }
    outputs = run_eager(model.module, feeds)
    assert outputs["logits"].shape == (1, 2)
    assert not outputs["tokens"][0, 2].any()
    assert model.module.output_names == ("logits", "tokens")


def test_float_inputs_and_a_fixed_length(user_file: Path) -> None:
    model = load(user_file, "floats")
    assert model.inputs[0].shape == ("batch", 8)
    assert model.inputs[0].dtype == "float32"
    assert model.max_length == 1


def test_max_length_can_be_given_and_must_be_known(user_file: Path) -> None:
    assert load(user_file, "unlimited", 33).max_length == 33
    with pytest.raises(UsageError, match="pass --max-length"):
        load(user_file, "unlimited")
    with pytest.raises(UsageError, match="over the model's own maximum of 12"):
        load(user_file, "plain", 13)


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [
        ("nothing", UsageError, "has no function 'nothing'; it has: "),
        ("raises", BuildFailed, "raised RuntimeError: no weights today"),
        ("number", BuildFailed, "returned int; it must return an nn.Module"),
        ("odd_axis", UsageError, "axis 'rows' of 'input'"),
        ("no_batch", UsageError, "engines need a batch axis"),
        ("axis_out_of_range", UsageError, "axis 7 is not one of them"),
        ("other_inputs", UsageError, r"forward takes \(input\)"),
        ("bad_examples", BuildFailed, "the model failed on its example inputs"),
    ],
)
def test_what_is_wrong_is_said(
    user_file: Path, factory: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load(user_file, factory)


def test_an_output_that_is_no_tensor_is_refused(user_file: Path) -> None:
    with pytest.raises(BuildFailed, match="output 'text' is a str"):
        load(user_file, "text_output")


def test_places_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        load_model(ModelSource(model=f"{tmp_path}/absent.py:make"))
    with pytest.raises(UsageError, match="no module 'absent_module_of_mine'"):
        load_model(ModelSource(model="absent_module_of_mine:make"))


def test_a_file_that_fails_to_import_says_why(tmp_path: Path) -> None:
    (tmp_path / "breaks.py").write_text("import a_package_nobody_has\n")
    with pytest.raises(BuildFailed, match="a_package_nobody_has"):
        load_model(ModelSource(model=f"{tmp_path}/breaks.py:make"))


def test_a_module_path_is_found_from_the_working_directory(
    user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(user_file.parent)
    assert load_model(ModelSource(model="user_model:plain")).max_length == 12
