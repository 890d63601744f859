"""Run ``python -m fastemd``: the demonstration, or one of the commands that reproduce the paper."""

import importlib
import sys

from fastemd.demo import COMMANDS
from fastemd.progress import show_status

INTERRUPTED = 130  # the exit code that a shell reports after SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration or a command; return the process's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = bool(arguments) and arguments[0] in COMMANDS
    module = arguments[0] if command else "demonstration"
    try:
        program = importlib.import_module(f"fastemd.demo.{module}")
        return int(program.main(arguments[1:] if command else arguments))
    except KeyboardInterrupt:
        show_status()
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
