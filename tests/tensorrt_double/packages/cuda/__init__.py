"""The package ``cuda``: the double's ``bindings.runtime``, everything else from the real one."""

import os

if "ATTN_EXPORT_DOUBLE_CUDA" in os.environ:
    __path__.append(os.path.join(os.environ["ATTN_EXPORT_DOUBLE_CUDA"], "cuda"))  # noqa: PTH118
