"""The fingerprint of a measurement's data."""

from __future__ import annotations

import hashlib

import numpy as np

from attn_export.benchmarks.bench_settings import data_sha256


def test_the_hash_by_hand() -> None:
    stored = np.array([2, 1, 7, 8, 9], "<i4").tobytes()
    parts = [np.array([7, 8], np.int32), np.array([9], np.int32)]
    assert data_sha256(parts) == hashlib.sha256(stored).hexdigest()


def test_the_same_ids_cut_elsewhere_are_other_data() -> None:
    def cut(*sizes: int) -> str:
        return data_sha256(np.split(np.arange(6, dtype=np.int32), np.cumsum(sizes)[:-1]))

    assert cut(2, 4) != cut(4, 2)
