"""Compile the CUDA kernels without a GPU, and print what their machine code costs.

    python -m benchmarks.cuda_code [--space tree] [--dtype f] [--operations gradient ...]
    python -m benchmarks.cuda_code --count

It needs numba-cuda and ptxas, which the extras `cuda12` and `cuda13` install. For every kernel it
prints the instructions and registers of a thread, the bytes of its local memory (registers that did
not fit), the warps that a multiprocessor of an H100 holds on the ImageNet tree, the widths of its
loads and stores, and the seconds of its compilation to PTX, which depend on the machine. It fails
if a kernel has local memory, or exceeds its limit of instructions or registers.

With ``--count`` it interprets the PTX of the gradient and the loss on the ImageNet tree instead,
and prints what a warp of 32 threads executes for a row of float32: instructions of PTX, wavefronts
of shared memory (bank conflicts add some), and sectors of 32 bytes of global memory. It fails
beyond limits, too.
"""

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

CC = (9, 0)
REGISTERS, SHARED, WARPS = 65536, 227 * 1024, 64  # of a multiprocessor
# Threads per row; whether their scratch is shared; bins that a thread processes side by side;
# whether the bins are strided; the normalisation of a loss, whether its targets are labels,
# and whether it has options for which there are kernels of their own.
KINDS = (
    (32, True, 4, False), (32, True, 1, False), (32, False, 4, False), (8, True, 1, False),
    (128, True, 4, False), (128, False, 4, False),
)  # fmt: skip
LOSS_KINDS = (  # the first one and every sixth after it for more operations
    (*KINDS[0], ("softmax", True, False)), (*KINDS[0], ("softmax", False, False)),
    (*KINDS[0], ("l1", False, False)), (*KINDS[0], (None, False, False)),
    (*KINDS[1], ("softmax", True, False)), (*KINDS[0], ("softmax", True, True)),
    (*KINDS[0], ("softmax", False, True)),
    *((*kind, ("softmax", True, False)) for kind in KINDS[2:]),
    (32, True, 1, True, ("softmax", False, False)), (128, False, 1, True, ("softmax", False, True)),
)  # fmt: skip

# Most instructions and registers of a thread: a tenth more than those of the largest variant. For
# value and gradient on a tree 40 registers were the aim; with so few, some go to local memory.
LIMITS = {
    "gradient": (1920, 71), "hessian_diag": (1990, 62), "hvp": (2490, 69),
    "constant_hvp": (2010, 71), "curvature": (1790, 62), "flow": (1350, 69), "embed": (1030, 62),
    "loss": (2480, 93), "loss_diagonal": (2200, 100), "loss_product": (2940, 106),
    "extended loss": (3200, 106), "extended loss_diagonal": (4030, 116),
    "extended loss_product": (4580, 115), "find_row_weights": (2170, 47), "": (1630, 71),
}  # fmt: skip
LIMITS["gradient_2_tree_f, 32, shared, 4 bins"] = 1000, 56

# Most instructions of PTX, wavefronts of shared memory and sectors of global memory of a row.
MOST_EXECUTED = {
    "value and gradient": (5000, 1190, 2200),
    "loss of labels and its gradient": (7100, 1400, 2200),
}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_code")
    parser.add_argument("--space", choices=("tree", "chain"), nargs="*", default=["tree", "chain"])
    parser.add_argument("--dtype", choices=("f", "d"), nargs="*", default=["f", "d"])
    parser.add_argument("--operations", nargs="*", help="by default all")
    parser.add_argument("--count", action="store_true", help="count what is executed instead")
    arguments = parser.parse_args()
    if arguments.count:
        too_much = print_counts()
        sys.exit(f"beyond the limits: {', '.join(too_much)}" if too_much else 0)
    driver, ptxas = _without_device()
    print(
        "kernel, threads per row, memory: instructions, registers, local bytes, warps, "
        "loads and stores of 4 / 8 / 16 bytes, seconds"
    )
    too_much = []
    for space in arguments.space:
        for char in arguments.dtype:
            for name, operation, kind, compiled in _kernels(driver, space, char):
                if operation in (arguments.operations or (operation,)):
                    too_much += _report(name, operation, kind, compiled, ptxas)
    sys.exit(f"beyond the limits: {', '.join(too_much)}" if too_much else 0)


def _without_device():
    """Have Numba compile for a GPU that is not there; return the driver and the path of ptxas."""
    from cuda.pathfinder import find_nvidia_binary_utility
    from numba import cuda
    from numba.cuda import dispatcher

    # Numba asks the device for its compute capability, although `cc` is passed.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)
    from fastemd.kernels.cuda import driver

    def compile_only(function, signature):
        begin = time.perf_counter()
        ptx, _ = cuda.compile_ptx(function, signature, cc=CC)
        return ptx, time.perf_counter() - begin

    driver.compiled = compile_only
    return driver, find_nvidia_binary_utility("ptxas")


def _kernels(driver, space, char):
    """Yield a name, the operation, one of KINDS and a function that compiles, of all kernels."""
    from fastemd.kernels.edges import COSTS, Cost

    costs = [Cost(name, {"1": 1.0, "2": 2.0}.get(name, 3.7)) for name in COSTS]
    variants = {driver.variant(name, cost)[:2] for name in driver.OPERATIONS for cost in costs}
    for operation, cost in sorted(variants):
        out = "d" if operation == "curvature" else char
        # Other teams and other memory differ in a few functions, which all kernels share.
        is_loss = operation in driver.losses.LOSSES
        kinds = LOSS_KINDS if is_loss else [(*kind, None) for kind in KINDS]
        if operation not in ("gradient", "loss") or cost != "2":
            kinds = kinds[:1] if cost != "any" or not is_loss else kinds[::6]
        for *kind, loss in kinds:
            n_threads, in_shared, n_bins, strided = kind
            name = f"{operation}_{cost}_{space}_{char}, {n_threads}"
            name += f", {'shared' if in_shared else 'global'}, {n_bins} bins" + strided * " strided"
            if loss:
                normalize, labelled, extended = loss
                name += f", {normalize}, {'labels' if labelled else 'histograms'}"
                name += extended * ", extended"
                loss = driver.losses.LossKind(driver.NORMALIZATIONS[normalize], labelled, extended)
            arguments = operation, cost, space == "chain", char, out, *kind, loss
            yield name, operation, (*kind, loss), lambda a=arguments: driver._row_kernel(*a)
    for name in driver.TEAM_FUNCTIONS:
        for pair in ("dd", char + "d", "li") if name == "convert" else (char + "d",):
            yield f"{name}_{pair}", name, None, lambda n=name, p=pair: driver._team_kernel(n, *p)


def _report(name, operation, kind, compiled, ptxas):
    """Print the line of a kernel; return its name in a list if it exceeds a limit."""
    ptx, seconds = compiled()
    instructions, registers, local = _assembled(ptx, ptxas)
    warps = _warps(operation, kind, registers) if kind and "_tree_" in name else "-"
    widths = _widths(ptx)
    print(
        f"{name}: {instructions}, {registers}, {local}, {warps}, {widths}, {seconds:.1f}",
        flush=True,
    )
    extended = "extended " if kind and kind[4] and kind[4].extended else ""
    most = LIMITS.get(extended + operation, LIMITS[""])
    most = LIMITS.get(name, most)
    return [name] if local or instructions > most[0] or registers > most[1] else []


def _widths(ptx):
    """Return the numbers of loads and stores of 4, 8 and 16 bytes, as in "3 / 20 / 8"."""
    counts = {4: 0, 8: 0, 16: 0}
    for vector, bits in re.findall(r"(?:ld|st)\.(?:global|shared)\S*?(\.v[24])?\.[fbsu](\d+)", ptx):
        width = int(bits) // 8 * int(vector[2:] or 1)
        counts[width] = counts.get(width, 0) + 1
    return " / ".join(str(counts[width]) for width in (4, 8, 16))


def _assembled(ptx, ptxas):
    """Return the instructions, registers and bytes of local memory of a thread."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        command = [ptxas, f"-arch=sm_{CC[0]}{CC[1]}", "-v", "-o", binary, source]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        size = _size_of_code(binary.read_bytes())
    registers = int(re.search(r"Used (\d+) registers", done.stderr)[1])
    local = int(re.search(r"(\d+) bytes stack frame", done.stderr)[1])
    return size // 16, registers, local  # an instruction has 16 bytes


def _size_of_code(elf):
    """Return the size of the sections of an ELF file whose names start with ".text"."""
    (headers,) = struct.unpack_from("<Q", elf, 40)
    n_sections, names = struct.unpack_from("<HH", elf, 60)
    sections = [struct.unpack_from("<IIQQQQ", elf, headers + 64 * i) for i in range(n_sections)]
    texts = (s for s in sections if elf.startswith(b".text", sections[names][4] + s[0]))
    return sum(section[5] for section in texts)


def _warps(operation, kind, registers):
    """Return how many warps of the kernel a multiprocessor holds."""
    import fastemd
    from fastemd.kernels.cuda import block, driver

    layout, (n_threads, in_shared, *_) = fastemd.datasets.imagenet_tree().layout("levels"), kind
    sizes = driver.scratch_arrays(operation), layout.cuda.n_edges, layout.n_bins, n_threads
    row_bytes = 8 * block.scratch_per_row(*sizes)
    rows = max(driver.THREADS_PER_BLOCK // n_threads, 1)
    rows = min(rows, driver.SHARED_BYTES // row_bytes) if in_shared else rows
    warps_per_block = max(rows * n_threads // 32, 1)
    by_registers = REGISTERS // (32 * -(-registers // 8) * 8) // warps_per_block
    by_memory = SHARED // (rows * row_bytes + 1024) if in_shared else WARPS
    return min(by_registers, by_memory, WARPS // warps_per_block) * warps_per_block


def print_counts():
    """Print what a warp executes for a row; return the names of what exceeds a limit."""
    import numpy as np

    import fastemd
    from tests.support import interpreted, threads

    tree, rng, n_rows = fastemd.datasets.imagenet_tree(), np.random.default_rng(0), 4
    device = interpreted.install()
    device.observer = threads.Counts
    device.n_multiprocessors = n_rows / 64  # many rows each, so a warp processes a row
    p, q = (device.on_device(rng.dirichlet(np.ones(1000), n_rows).astype("f")) for _ in "pq")
    labels = device.on_device(rng.integers(1000, size=n_rows))
    calls = {
        "value and gradient": lambda: fastemd.emd_value_and_grad(p, q, tree, 2),
        "loss of labels and its gradient": lambda: fastemd.emd_loss(
            p, labels, tree, 2, reduction="none"
        ),
    }
    too_much = []
    print("per row: instructions, shared wavefronts, global sectors; requests")
    for name, call in calls.items():
        device.launches.clear()
        call()
        ((_, _, block, _, counts),) = (x for x in device.launches if "_2_tree" in x[0])
        assert (block[0], counts.warps) == (32, n_rows)
        numbers = counts.instructions, counts.shared_wavefronts, counts.global_sectors
        requests = (
            f"{n / n_rows:.0f} {kind}s ({space})"
            for (kind, space), n in sorted(counts.requests.items())
        )
        print(f"{name}:", ", ".join(f"{n / n_rows:.0f}" for n in numbers) + ";", *requests)
        if any(n / n_rows > most for n, most in zip(numbers, MOST_EXECUTED[name], strict=True)):
            too_much.append(name)
    return too_much


if __name__ == "__main__":
    main()
