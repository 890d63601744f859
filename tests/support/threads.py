"""Run kernels that `tests.support.ptx` has translated, and check what their threads do.

The threads of a warp run one after the other until their next barrier or shuffle, in a random
order, and so do the warps between two barriers of their block. A missing barrier therefore gives a
wrong result, or is reported by `Races`. Every access to memory must be inside one array and aligned
to the whole width of a vector.
"""

import bisect
import ctypes
import itertools
import random
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from tests.support.ptx import FULL_MASK, MASK, Kernel, Site

WARP = 32


class KernelError(RuntimeError):
    """A thread accessed wrong memory, raced with another one, or missed a barrier."""


class Memory:
    """Arrays of the host that are the global memory, at their addresses."""

    def __init__(self):
        self._starts, self._parts, self._arrays = [], [], []

    def add(self, array):
        """Make the memory of an array known, and keep the array."""
        start, end = np.lib.array_utils.byte_bounds(array)
        i = bisect.bisect_right(self._starts, start)
        self._starts.insert(i, start)
        part = (ctypes.c_ubyte * (end - start)).from_address(start)
        self._parts.insert(i, memoryview(part).cast("B"))
        self._arrays.append(array)

    def at(self, address):
        """Return the bytes of an array, and the place of an address among them."""
        i = bisect.bisect_right(self._starts, address) - 1
        return (self._parts[i], address - self._starts[i]) if i >= 0 else (b"", 0)


class _Launch(NamedTuple):
    kernel: Kernel
    grid: tuple
    block: tuple
    arguments: list
    memory: Memory
    shared_bytes: int
    rng: random.Random
    observer: "Races | Counts | None"


def launch(
    kernel, grid, block, arguments, memory, shared_bytes=0, seed=0, observer=None, first_block=0
):
    """Run a kernel.

    Parameters
    ----------
    kernel : Kernel
    grid, block : tuple of three int
    arguments : list of int and float
        One for every parameter.
    memory : Memory
    shared_bytes : int
        Of the dynamic shared memory.
    seed : int
        Of the order of the threads.
    observer : Races or Counts, optional
        Gets every access to memory.
    first_block : int
        The blocks before it, in x, are left out.
    """
    if len(arguments) != len(kernel.parameters):
        raise KernelError(f"{len(arguments)} arguments, not {len(kernel.parameters)}")
    rng = random.Random(seed)
    state = _Launch(kernel, grid, block, arguments, memory, shared_bytes, rng, observer)
    places = [(first_block + x, y, z) for x, y, z in _places((grid[0] - first_block, *grid[1:]))]
    for place in rng.sample(places, len(places)):
        _Block(state, place).run()


def _places(shape):
    """Return the places of blocks or threads; x comes first."""
    return [place[::-1] for place in itertools.product(*map(range, shape[::-1]))]


class _Thread:
    """A thread, and what it waits for."""

    def __init__(self, block, number, place):
        launch = block.launch
        self.block, self.number, self.place = block, number, place
        self.n = [0] * len(launch.kernel.sizes)  # executions of basic blocks
        # `event` is what the generator yields, and None after its end; `barriers` counts those of
        # the block and of the warp that are behind the thread.
        self.event, self.answer, self.barriers, self.warp_barriers = (), None, 0, 0
        specials = (*place, *launch.block, *block.place, *launch.grid, launch.shared_bytes)
        thread = launch.kernel.thread_of(self.read, self.write, self.atomic, self.n, *specials)
        self.generator = thread(*launch.arguments)

    def error(self, message, site):
        return KernelError(f"{site.text}: {message}, {self}")

    def __str__(self):
        return f"thread {self.place} of block {self.block.place}"

    def run(self):
        """Run until the next event."""
        try:
            self.event = self.generator.send(self.answer)
        except StopIteration:
            self.event = None
        self.answer = None

    def locate(self, site, address, content=None):
        """Return the bytes of an array and a place in them, after all checks."""
        launch, size = self.block.launch, site.format.size
        part, offset = self.block.shared, address
        if site.space == "global":
            part, offset = launch.memory.at(address)
        if offset + size > len(part):
            raise self.error(f"address {address:#x} is out of bounds", site)
        if address % size:
            raise self.error(f"address {address:#x} is not a multiple of {size}", site)
        if launch.observer is not None:
            launch.observer.access(self, site, address, content)
        return part, offset

    def read(self, site, address):
        return site.format.unpack_from(*self.locate(site, address))

    def write(self, site, address, *values):
        content = site.format.pack(*values)
        part, offset = self.locate(site, address, content)
        part[offset : offset + len(content)] = content

    def atomic(self, site, address, value):
        part, offset = self.locate(site, address)
        (old,) = site.format.unpack_from(part, offset)
        site.format.pack_into(part, offset, min(old, value))
        return old & MASK[64]


class _Block:
    def __init__(self, launch, place):
        self.launch, self.place = launch, place
        self.shared = bytearray(b"\xff" * launch.shared_bytes)
        threads = [_Thread(self, i, x) for i, x in enumerate(_places(launch.block))]
        self.warps = [threads[i : i + WARP] for i in range(0, len(threads), WARP)]

    def run(self):
        """Run all threads to their end, the warps in a random order between barriers."""
        waiting = True
        while waiting:
            for warp in self._shuffled(self.warps):
                self._run_warp(warp)
            threads = list(itertools.chain(*self.warps))
            waiting = [thread for thread in threads if thread.event]
            if waiting and len(waiting) < len(threads):
                message = "a thread of the block has finished and never meets this barrier"
                raise waiting[0].error(message, waiting[0].event[0])
            for thread in waiting:
                thread.barriers += 1
        if self.launch.observer is not None:
            self.launch.observer.end_block(self)

    def _shuffled(self, items):
        return self.launch.rng.sample(items, len(items))

    def _run_warp(self, warp):
        """Run the threads of a warp until all wait for the block, or have finished."""
        while True:
            for thread in self._shuffled(warp):
                if thread.event is not None:
                    thread.run()
            waiting = [thread for thread in warp if thread.event]
            if not waiting:
                return
            site, mask = waiting[0].event[:2]
            for thread in waiting:
                if thread.event[:2] != (site, mask):
                    raise thread.error(f"others wait at {site.text}", thread.event[0])
            if site.kind == "block":
                return
            if len(waiting) < WARP or mask != FULL_MASK:
                raise waiting[0].error("not all threads of the warp take part", site)
            if site.kind == "warp":
                for thread in warp:
                    thread.warp_barriers += 1
            else:
                _shuffle(warp, site.kind)


def _shuffle(warp, mode):
    """Answer every thread with the number of another one, and whether there is one."""
    for lane, thread in enumerate(warp):
        _, _, _, b, c = thread.event
        segment = c >> 8 & 31
        last = lane & segment | c & 31 & ~segment
        source = lane - (b & 31) if mode == "up" else lane ^ b & 31
        exists = source >= last if mode == "up" else source <= last
        thread.answer = warp[source if exists else lane].event[2], exists


# -------------------------------------------------------------------------------------- observers


class _Access(NamedTuple):
    thread: _Thread
    site: Site
    barriers: int
    warp_barriers: int
    content: bytes | None  # that is written


class Races:
    """Raise `KernelError` if two threads access a number without a barrier, and one writes it.

    Shuffles are no barriers.
    """

    def __init__(self):
        # For every four bytes, the last access that wrote, and those that read since.
        self.words = {"shared": {}, "global": {}}

    def access(self, thread, site, address, content):
        access = _Access(thread, site, thread.barriers, thread.warp_barriers, content)
        words = self.words[site.space]
        for word in range(address // 4, (address + site.format.size) // 4):
            written, readers = words.setdefault(word, (None, {}))
            others = [] if written is None else [written]
            if site.kind == "load":
                readers[thread] = access
            else:
                others += readers.values()
                words[word] = access, {}
            for other in others:
                if not _is_ordered(other, access):
                    message = f"race with {other.site.text} of {other.thread}"
                    raise thread.error(message, site)

    def end_block(self, block):
        self.words["shared"].clear()


def _is_ordered(a, b):
    """Return whether two accesses by different threads cannot be a race."""
    first, second = a.thread, b.thread
    if first is second or a.site.kind == b.site.kind == "atomic":
        return True
    same_block = first.block is second.block
    same_warp = same_block and first.number // WARP == second.number // WARP
    if same_block and a.barriers < b.barriers:
        return True
    if same_warp and a.warp_barriers < b.warp_barriers:
        return True
    # Threads of a warp may write the same number by one instruction. Past the end of a batch,
    # several teams compute the last row.
    same_content = a.content is not None and a.content == b.content
    return same_content and (a.site is b.site if same_warp else a.site.space == "global")


class Counts:
    """Count what a launch executes, summed over its warps.

    An instruction is one of PTX. A warp issues it as often as the thread that executes it most
    often. A request is one execution of a load or store by a warp; it costs a wavefront for every
    number that the busiest bank of shared memory serves, and sectors of 32 bytes of global memory.
    """

    def __init__(self):
        self.warps = self.instructions = self.shared_wavefronts = self.global_sectors = 0
        self.requests = Counter()  # of (kind, space)
        self._addresses = defaultdict(list)  # of a thread at a site

    def access(self, thread, site, address, content):
        self._addresses[thread, site].append(address)

    def end_block(self, block):
        kernel = block.launch.kernel
        for warp in block.warps:
            times = np.max([thread.n for thread in warp], axis=0)
            self.instructions += int(times @ kernel.sizes)
            self.warps += 1
            for site in kernel.sites:
                lanes = [self._addresses.pop((thread, site), ()) for thread in warp]
                for request in itertools.zip_longest(*lanes):
                    self._add_request(site, request)

    def _add_request(self, site, addresses):
        """Count a request; lanes without an address do not take part."""
        self.requests[site.kind, site.space] += 1
        size = site.format.size
        lanes = [(lane, x) for lane, x in enumerate(addresses) if x is not None]
        if site.space == "global":
            self.global_sectors += len({y // 32 for _, x in lanes for y in (x, x + size - 1)})
            return
        words = defaultdict(set)  # of lanes served together: all, a half, a quarter of the warp
        for lane, address in lanes:
            words[lane * size // 128].update(range(address // 4, (address + size) // 4))
        for served in words.values():
            self.shared_wavefronts += max(Counter(word % 32 for word in served).values())
