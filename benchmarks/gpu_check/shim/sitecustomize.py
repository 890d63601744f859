"""Restore ``numpy.row_stack``, which numba-cuda 0.30 needs and NumPy 2.5 removed.

Python imports this module when it starts, if its folder is in PYTHONPATH.
"""

import numpy

if not hasattr(numpy, "row_stack"):
    numpy.row_stack = numpy.vstack  # noqa: NPY201
