"""Roles are read from names."""

from __future__ import annotations

import pytest

from attn_export import roles
from attn_export.roles import role_of


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("layers.3.attention.scores", roles.SCORES),
        ("layers.11.attention.query.gemm", roles.GEMM),
        ("mask", roles.MASK),
        ("mask_4", roles.MASK),
        ("layers.0.attention.mask_add", roles.MASK_ADD),
        ("norms.0.norm_statistics_12", roles.NORM_STATISTICS),
        ("layers.3.reshape_2", "reshape"),
        ("", ""),
    ],
)
def test_the_last_part_without_its_number_is_the_role(name: str, role: str) -> None:
    assert role_of(name) == role


def test_no_role_looks_numbered() -> None:
    assert all(role_of(role) == role for role in roles.ROLES)
