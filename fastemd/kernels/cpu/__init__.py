"""The CPU kernels. `fastemd.kernels.cpu.driver` launches them."""
