"""Configure launches by numba-cuda as on a device, without launching the kernels.

``python tests/support/launch_kernels.py`` raises if a launch is not as it should be; see
test_launches.py. With ``time`` it also prints the time of a call until the launch.
"""

import contextlib
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np

STREAM = 4711


def main():
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from numba import cuda
    from numba.cuda import dispatcher, types
    from numba.cuda.cudadrv.driver import Stream

    import fastemd
    from fastemd.kernels.cuda import driver, numba_cuda
    from tests.support.device import DeviceArray, DeviceBackend

    here, grids, configurations, comparing = [], [], [], [True]

    @contextlib.contextmanager
    def on_device(index):
        here.append(index)
        yield
        here.pop()

    def current(result):
        """Wrap a function of numba-cuda that needs the context of a device."""

        def call(*args, **keywords):
            assert here == [0], "no device is the current one"
            return result(*args, **keywords)

        return call

    def configured(self, *args):
        configurations.append(args)
        init(self, *args)

    def described(argument):
        return type(argument), getattr(argument, "value", argument)

    class Kernel:
        """A kernel that takes what numba-cuda passes to the driver."""

        def __init__(self, function, signature):
            self.name, self.argument_types, self.extensions = function.__qualname__, signature, ()
            tuples = [kind for kind in signature if isinstance(kind, types.BaseTuple)]
            if self.name.startswith("loss"):  # team kernels take arrays
                assert all(map(numba_cuda._converters, tuples)), "an argument is not flattened"

        def launch(self, arguments, griddim, blockdim, stream, sharedmem):
            assert here == [0], "no device is the current one"
            assert int(stream.handle) == STREAM
            passed, expected = [], []
            for kind, argument in zip(self.argument_types, arguments, strict=True):
                self._prepare_args(kind, argument, stream, [], passed)
                if comparing:
                    Kernel._prepare_args(self, kind, argument, stream, [], expected)
            if comparing:
                assert list(map(described, passed)) == list(map(described, expected))
            grids.append((self.name, griddim[0]))

        def _prepare_args(self, kind, *rest):
            if not isinstance(kind, types.Array):
                dispatcher._Kernel._prepare_args(self, kind, *rest)

    def compiled(function, signature):
        kernel = cuda.jit(function)
        kernel.overloads[signature] = Kernel(function, signature)
        return kernel

    init = dispatcher._LaunchConfiguration.__init__
    dispatcher._LaunchConfiguration.__init__ = configured
    driver.compiled = current(compiled)
    cuda.external_stream = current(lambda handle: Stream(handle, external=True))
    for module in (numba_cuda, driver):
        module.on_device = on_device
        module.upload, module.argument = current(DeviceArray), current(lambda array: array)

    driver.n_multiprocessors = current(lambda index: 132)
    DeviceBackend.stream = lambda self: STREAM

    def losses(n_rows):
        x = np.zeros((n_rows, 3), np.float32)
        labels, weights = np.zeros(n_rows, np.int64), np.ones(n_rows)
        inputs = DeviceArray(x), DeviceArray(labels), fastemd.Chain(3)
        fastemd.emd_loss(*inputs)
        fastemd.emd_loss(*inputs, sample_weight=DeviceArray(weights))

    with warnings.catch_warnings(action="error"):
        losses(5)
        one_block = [("loss_2_chain", 1), ("sum_rows", 1)]
        expected = [*one_block, ("find_row_weights", 1), ("divide_by_sum", 1), *one_block]
        assert grids == expected, grids
        count = len(configurations)
        losses(5)
        assert len(configurations) == count, "the same launches were configured again"
        grids.clear()
        losses(4000)
        assert [n for name, n in grids if name in ("find_row_weights", "divide_by_sum")] == [4, 4]
        assert [n for name, n in grids if name == "sum_rows"] == [4, 1] * 2

    with warnings.catch_warnings(record=True, action="always") as raised:
        cuda.jit(lambda: None)[1, 1]
    assert len(raised) == 1, "Numba does not warn of other kernels either"
    comparing.clear()


def print_time():
    """Time value and gradient of 512 rows on the ImageNet tree, after `main`."""
    import fastemd
    from tests.support.device import DeviceArray, DeviceBackend

    tree, p = fastemd.datasets.imagenet_tree(), np.full((512, 1000), 1e-3, np.float32)
    inputs = DeviceArray(p), DeviceArray(p)
    memory = {shape: DeviceArray(np.empty(shape, np.float32)) for shape in ((512, 1000), (512,))}
    DeviceBackend.new = lambda self, shape, dtype: memory[shape]  # a library allocates at once
    seconds = []
    for _ in range(2000):
        begin = time.perf_counter()
        fastemd.emd_value_and_grad(*inputs, tree, 2)
        seconds.append(time.perf_counter() - begin)
    print(f"value and gradient: {1e6 * statistics.median(seconds):.0f} us in Python")


if __name__ == "__main__":
    main()
    if sys.argv[1:] == ["time"]:
        print_time()
