"""``python -m attn_export`` is the ``attn-export`` command."""

from attn_export.cli import main

main()
