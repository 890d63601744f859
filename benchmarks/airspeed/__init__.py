"""Benchmarks of airspeed velocity, which imports all modules of this folder to find them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # for `benchmarks`; the installed fastemd is first
