"""Where the program begins, as ``flywheel`` and as ``python -m flywheel``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program; Ctrl-C is no error, even while its parts are still being imported."""
    try:
        from flywheel import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
