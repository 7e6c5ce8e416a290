"""Layers and roles are read from names."""

from __future__ import annotations

import pytest

from attn_export.benchmarks.sensitivity_parts import Part, split_by_layer


def test_nodes_are_split_by_layer_and_by_role() -> None:
    layers, roles = split_by_layer(
        ["layers.0.query.gemm", "layers.0.ffn.gemm", "layers.1.query.gemm", "pooler.dense.gemm"]
    )
    assert layers == [
        Part("layers.0", "layer", ("layers.0.query.gemm", "layers.0.ffn.gemm")),
        Part("layers.1", "layer", ("layers.1.query.gemm",)),
        Part("pooler.dense", "layer", ("pooler.dense.gemm",)),
    ]
    assert roles == [
        Part("layers.*.query.gemm", "role", ("layers.0.query.gemm", "layers.1.query.gemm")),
        Part("layers.*.ffn.gemm", "role", ("layers.0.ffn.gemm",)),
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["gemm", "gemm_2"], ["gemm", "gemm_2"], id="no scopes"),
        pytest.param(["a.0.gemm", "a.0.gemm_2"], ["a.0"], id="one layer"),
        pytest.param(
            ["0.bert.layer.0.q", "0.bert.layer.1.q", "0.bert.layer.2.q", "1.dense"],
            ["0.bert.layer.0", "0.bert.layer.1", "0.bert.layer.2", "1"],
            id="a stack within a stack",
        ),
        pytest.param(["x.1.y.2.q", "x.2.y.2.q"], ["x.1", "x.2"], id="the number that varies"),
        pytest.param(["x.1.y.1.q", "x.2.y.2.q"], ["x.1", "x.2"], id="different numbers below"),
    ],
)
def test_the_layer_is_the_number_that_takes_most_values(
    names: list[str], expected: list[str]
) -> None:
    layers, _ = split_by_layer(names)
    assert [part.name for part in layers] == expected


def test_encoder_and_decoder_layers_are_apart() -> None:
    layers, roles = split_by_layer(["encoder.0.q", "encoder.1.q", "decoder.0.q", "decoder.1.q"])
    assert len(layers) == 4
    assert [part.name for part in roles] == ["encoder.*.q", "decoder.*.q"]
