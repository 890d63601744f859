"""python -m fastemd merge: join the parts that ``unifrac --block`` has written."""

import argparse
from pathlib import Path

from fastemd.commands.files import OUTPUTS, parse_options, read_parts, write_distances


def main(arguments: list[str]) -> int:
    """Run the command; return the process's exit code."""
    description = "Join the parts that unifrac --block has written."
    parser = argparse.ArgumentParser(prog="python -m fastemd merge", description=description)
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="all parts, once each")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help=f"where to write the distances: {OUTPUTS}"
    )
    options = parse_options(parser, arguments)
    write_distances(options.out, *read_parts(options.parts))
    return 0
