"""`python -m hf_tome` is `hf-tome`, for `torchrun -m`."""

from __future__ import annotations

from .cli.app import main

if __name__ == "__main__":
    main()
