"""The entry point `gpupool`, also `python -m gpupool.cli`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from .app import run  # noqa: PLC0415  (the base installation has no click)
    except ModuleNotFoundError as error:
        if error.name not in {"click", "yaml", "rich"}:
            raise
        print(
            f"error: the command line needs {error.name}; install it with: pip install 'gpupool[cli]'", file=sys.stderr
        )
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
