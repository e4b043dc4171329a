"""The commands of the program, by what they are about; `flywheel.cli` puts them together.

    `data` logs and datasets   `run` one run, here or as a job   `runs` the runs there are
    `parity` served models     `setup` machine and editor        `options` what several share

A command parses, calls and prints: what it shows is made in `flywheel.printing`.
"""
