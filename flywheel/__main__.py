"""``python -m flywheel`` is the same program as ``flywheel``."""

from flywheel.cli import main

if __name__ == "__main__":
    main()
