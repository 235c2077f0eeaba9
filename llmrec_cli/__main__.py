"""``python -m llmrec_cli``, and the ``llmrec`` command."""

from __future__ import annotations

from llmrec_cli.cli.app import main

if __name__ == "__main__":
    main()
