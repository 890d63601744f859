"""Run ``python -m fastemd``: the demonstration, or one of the commands."""

import importlib
import sys

from fastemd import commands, demo
from fastemd.progress import show_status

INTERRUPTED = 130  # the exit code that a shell reports after SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration or a command; return the process's exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    try:
        if name in commands.COMMANDS:
            return _run_on_files(name, arguments[1:])
        is_command = name in demo.COMMANDS
        program = importlib.import_module(f"fastemd.demo.{name if is_command else 'demonstration'}")
        return int(program.main(arguments[1:] if is_command else arguments))
    except KeyboardInterrupt:
        show_status()
        return INTERRUPTED


def _run_on_files(name: str, arguments: list[str]) -> int:
    """Run a command whose errors are those of the user's files."""
    program = importlib.import_module(f"fastemd.commands.{name}")
    try:
        return int(program.main(arguments))
    except (ImportError, MemoryError, OSError, TypeError, ValueError) as error:
        show_status()
        message = " ".join(str(error).split())  # those of other packages have several lines
        print(f"fastemd {name}: error: {message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
