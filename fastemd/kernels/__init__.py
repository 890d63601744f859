"""The kernels: edge functions and operations for both targets, and one package per target."""
