"""One command that checks the CUDA half of the library: ``python -m benchmarks.gpu_check``."""
