"""A double of TensorRT: the classes of a real version, without a GPU.

``ATTN_EXPORT_DOUBLE_SURFACE`` names the JSON that ``dump_surface.py`` wrote for that version.
"""

import importlib
import os

importlib.import_module("inside_tensorrt.module").fill(
    globals(), os.environ["ATTN_EXPORT_DOUBLE_SURFACE"], lean=False
)
