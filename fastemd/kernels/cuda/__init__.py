"""Kernels for CUDA, by Numba.

Only `fastemd.kernels.cuda.numba_cuda` imports Numba's CUDA target, and nothing here is imported
before there is an array on a CUDA device.
"""
