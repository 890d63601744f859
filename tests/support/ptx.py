"""Run compiled CUDA kernels on the host, by interpreting their PTX.

`Kernel` translates the PTX of one kernel to the source of a Python generator function, once. Every
thread is a generator, which yields at barriers and shuffles. The threads of a warp run one after
the other until their next yield, in a random order, and so do the warps between two barriers of
their block. So a missing barrier gives a wrong result, or is reported by the check of races.

Registers are local variables: integers without sign, floats, truth values. Accesses to memory are
checked: they must be inside one array and aligned to the whole width of a vector. Opcodes that do
not occur in the kernels of this library raise `NotImplementedError`.
"""

import bisect
import ctypes
import ctypes.util
import itertools
import math
import random
import re
import struct
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

WARP, FULL_MASK = 32, 0xFFFFFFFF
SHARED, LOCAL = 1 << 60, 1 << 61  # where these memories start among generic addresses
MASK = {bits: (1 << bits) - 1 for bits in (8, 16, 32, 64)}
AXES = tuple(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz")
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
NEGATIONS = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # true if an operand is NaN
MODIFIERS = {"rn", "lo", "uni", "sync", "aligned"}  # those that change nothing here

# The expressions of opcodes of integers, of floats, and of integers with sign if they differ. The
# operands are a, b and c, those with sign A and B.
EXPRESSIONS = {
    "add": ("a + b", "a + b"), "sub": ("a - b", "a - b"), "mul": ("a * b", "a * b"),
    "mad": ("a * b + c", None), "fma": (None, "fma(a, b, c)"), "rcp": (None, "divide(1.0, a)"),
    "div": ("a // b", "divide(a, b)", "divide_signed(A, B)"),
    "rem": ("a % b", None, "A - B * divide_signed(A, B)"),
    "sqrt": (None, "sqrt(a) if a >= 0.0 else nan"),
    "min": ("min(a, b)", "smallest(a, b)", "a if A < B else b"),
    "max": ("max(a, b)", "greatest(a, b)", "a if A > B else b"),
    "neg": ("-a", "-a"), "abs": (None, "abs(a)", "abs(A)"), "copysign": (None, "copysign(b, a)"),
    "and": ("a & b", None), "or": ("a | b", None), "xor": ("a ^ b", None), "not": ("~a", None),
}  # fmt: skip


class KernelError(RuntimeError):
    """A thread did what it must not do."""


class Site(NamedTuple):
    """An instruction that accesses memory, or waits for other threads."""

    text: str
    kind: str  # "load", "store", "atomic", "shuffle", "warp" or "block"
    space: str = "generic"
    format: struct.Struct | None = None
    detail: str = ""


class Counts(NamedTuple):
    """What a launch executes, summed over its warps.

    An instruction is one of PTX. A warp issues it as often as the thread that executes it most
    often. A request is one execution of a load or store by a warp; it costs a wavefront for every
    number that the busiest bank of shared memory serves, and sectors of 32 bytes of global memory.
    """

    warps: int
    instructions: int
    requests: dict  # of (kind, space)
    shared_wavefronts: int
    global_sectors: int


# ------------------------------------------------------------------- functions of generated code


def bits64(x):
    return struct.unpack("<Q", struct.pack("<d", x))[0]


def double(bits):
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def bits32(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def single(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def f32(x):
    return ctypes.c_float(x).value


def divide(a, b):
    if b != 0.0:
        return a / b
    return math.nan if a == 0.0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def divide_signed(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def reciprocal_approx(a):
    """Return ``rcp.approx.ftz.f64``: of the upper half of the bits, as are those of the result."""
    result = divide(1.0, double(bits64(a) & ~MASK[32]))
    return double(bits64(result) & ~MASK[32])


def smallest(a, b):
    if a != a or b != b:
        return b if a != a else a
    return a if a < b or (a == b and math.copysign(1.0, a) < 0.0) else b


def greatest(a, b):
    return -smallest(-a, -b)


def truncate(a):
    return math.copysign(float(math.trunc(a)), a) if math.isfinite(a) else a


fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
fma.argtypes, fma.restype = [ctypes.c_double] * 3, ctypes.c_double


GENERATED = {
    function.__name__: function
    for function in (
        bits64, double, bits32, single, f32, divide, divide_signed, reciprocal_approx, smallest,
        greatest, truncate, math.copysign, math.sqrt, fma,
    )
} | {"inf": math.inf, "nan": math.nan}  # fmt: skip


# ------------------------------------------------------------------------------------ translation


class Kernel:
    """A kernel that runs on the host.

    ``kernel(grid, block, arguments, memory, shared_bytes)`` runs it; see `launch`.
    """

    def __init__(self, ptx):
        self.name = re.search(r"\.entry\s+([\w$]+)", ptx)[1]
        ptx = re.sub(r"//.*", "", ptx).replace(self.name, "kernel")
        self.sites, self.sizes, self.symbols = [], [], {}
        self.shared_bytes = self.local_bytes = 0
        for name, size in re.findall(r"\.shared\s+\.align \d+\s+\.b8\s+(\w+)\[(\d*)\]", ptx):
            self.symbols[name] = self.shared_bytes  # dynamic memory follows that of fixed size
            self.shared_bytes += int(size or 0)
        if len(re.findall(r"\.shared[^;]*\[\]", ptx)) > 1 or (self.shared_bytes and "[]" in ptx):
            raise NotImplementedError("several arrays of shared memory")
        inputs = "read", "write", "atomic", "n", *map(_variable, AXES)
        lines = [f"def thread_of({', '.join(inputs)}, _laneid, _dynamic_smem_size):"]
        head = r"(?:\.visible\s+)?\.(entry|func)\s*(?:\([^)]*\))?\s*([\w$]+)\s*\(([^)]*)\)\s*\{"
        bodies = list(re.finditer(head, ptx))
        for match, following in itertools.zip_longest(bodies, bodies[1:]):
            kind, name, parameters = match.groups()
            parameters = re.findall(r"\.param\s+\.(\w+)\s+([\w$]+)", parameters)
            body = ptx[match.end() : following.start() if following else None]
            lines += [" " + line for line in _Function(self, kind, name, parameters, body).lines]
            if kind == "entry":
                self.parameters = [kind for kind, _ in parameters]
        lines.append(" return kernel")
        self.source = "\n".join(lines)
        namespace = dict(GENERATED)
        exec(compile(self.source, f"<{self.name[:60]}>", "exec"), namespace)
        self.thread_of = namespace["thread_of"]

    def __call__(self, *args, **keywords):
        return launch(self, *args, **keywords)

    def add_site(self, *args):
        self.sites.append(Site(*args))
        return len(self.sites) - 1


def _variable(name):
    return re.sub(r"\W", "_", name)


def _bits(kind):
    return int(kind[1:])


def _signed(value, kind):
    half = 1 << (_bits(kind) - 1)
    return f"(({value} ^ {half}) - {half})"


class _Function:
    """The translation of a kernel, or of a function that it calls, to lines of Python."""

    def __init__(self, kernel, kind, name, parameters, body):
        self.kernel, self.kind = kernel, kind
        registers = re.findall(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<\d+>)?\s*;", body)
        self.registers = {prefix: kind for kind, prefix in registers}
        for depot, size in re.findall(r"\.local\s+\.align \d+\s+\.b8\s+(\w+)\[(\d+)\];", body):
            kernel.symbols[depot] = kernel.local_bytes
            kernel.local_bytes += -(-int(size) // 16) * 16
        blocks, current = [], []
        body = re.sub(r"^\s*[{}]\s*$", "", body, flags=re.MULTILINE)
        for statement in map(str.split, body.split(";")):
            while statement and statement[0].endswith(":"):
                blocks.append(current)
                current = [statement.pop(0)[:-1]]
            if statement and not statement[0].startswith((".", "{.", "}")):
                current.append(" ".join(statement))
        blocks.append(current)
        self.numbers = {block[0]: i for i, block in enumerate(blocks) if i}
        inputs = ", ".join(_variable(name) + "_0" for _, name in parameters)
        translated = []
        for i, block in enumerate(blocks):
            lines = self._start_count()
            for statement in block[i > 0 :]:
                lines += self._statement(statement)
            translated.append([*lines, f"block = {i + 1}", "continue"])
        self.lines = [f"def {_variable(name)}({inputs}):", " block = 0", " while True:"]
        self._dispatch(translated, 0, len(translated), 2)
        if kind == "entry":
            self.lines.append(" yield")  # a generator also if there are no barriers

    def _dispatch(self, blocks, begin, end, depth):
        """Find the block by bisection."""
        if end - begin == 1:
            self.lines += [" " * depth + line for line in blocks[begin]]
            return
        middle = (begin + end) // 2
        self.lines.append(" " * depth + f"if block < {middle}:")
        self._dispatch(blocks, begin, middle, depth + 1)
        self.lines.append(" " * depth + "else:")
        self._dispatch(blocks, middle, end, depth + 1)

    def _start_count(self):
        self.kernel.sizes.append(0)
        return [f"n[{len(self.kernel.sizes) - 1}] += 1"]

    def _statement(self, text):
        """Return the lines of a statement."""
        self.kernel.sizes[-1] += 1
        guard = re.match(r"@(!?)(%\w+)\s+", text)
        instruction = text[guard.end() :] if guard else text
        opcode, _, operands = instruction.partition(" ")
        name, *modifiers = opcode.split(".")
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^\s,]+", operands)
        self.text, self.opcode = text, opcode
        translate = getattr(self, f"_op_{name}", None)
        if translate is not None:
            lines = translate(modifiers, operands)
        elif name in EXPRESSIONS:
            lines = self._by_table(name, modifiers, operands)
        else:
            raise NotImplementedError(f"PTX opcode {opcode}")
        lines = [lines] if isinstance(lines, str) else lines
        if guard:
            truth = f"if {'not ' * bool(guard[1])}{_variable(guard[2])}:"
            lines = [truth, *(" " + line for line in lines)]
            if name in ("bra", "ret"):
                lines += self._start_count()
        return lines

    # ---- operands

    def _kind_of(self, register):
        prefix = register if register in self.registers else register.rstrip("0123456789")
        return self.registers.get(prefix, "u32")  # or a special register

    def _value(self, text, kind):
        """Return the expression of an operand of a type."""
        if text.startswith("%"):
            return _variable(text)
        if re.match(r"0[dD]", text):
            return repr(double(int(text[2:], 16)))
        if re.match(r"0[fF]", text):
            return repr(single(int(text[2:], 16)))
        if re.match(r"-?\d", text):
            number = int(text, 0)
            return str(bool(number)) if kind == "pred" else str(number & MASK[_bits(kind)])
        if text not in self.kernel.symbols:
            raise NotImplementedError(f"symbol {text} in {self.text}")
        return str(self.kernel.symbols[text])

    def _address(self, text):
        base, _, offset = text.strip("[]").partition("+")
        address = self._value(base, "u64")
        return f"{address} + {offset} & {MASK[64]}" if offset else address

    def _expression(self, kind, operands, text):
        """Return the assignment of an expression of the operands a, b, c, or A, B with sign."""
        values = [self._value(operand, kind) for operand in operands[1:]]
        names = dict(zip("abc", values, strict=False))
        if kind[0] in "sub":
            names |= {x.upper(): _signed(y, kind) for x, y in names.items()}
            text = f"({text}) & {MASK[_bits(kind)]}"
        elif kind == "f32":
            text = f"f32({text})"
        text = re.sub(r"\b[abcABC]\b", lambda match: names[match[0]], text)
        return f"{_variable(operands[0])} = {text}"

    def _by_table(self, name, modifiers, operands):
        """Translate an instruction by its expressions in `EXPRESSIONS`."""
        *others, kind = modifiers
        integer, floating, signed = (*EXPRESSIONS[name], None)[:3]
        text = floating if kind[0] == "f" else signed if kind[0] == "s" and signed else integer
        inexact = kind == "f16" or (name, kind) == ("fma", "f32")
        if text is None or inexact or set(others) - MODIFIERS:
            raise NotImplementedError(f"PTX opcode {self.opcode}")
        if kind == "pred" and name == "not":
            text = "not a"
        return self._expression(kind, operands, text)

    # ---- arithmetic and bits

    def _op_mul(self, modifiers, operands):
        if modifiers[0] not in ("wide", "hi"):
            return self._by_table("mul", modifiers, operands)
        part, kind = modifiers
        a, b = (self._value(operand, kind) for operand in operands[1:])
        if kind[0] == "s":
            a, b = _signed(a, kind), _signed(b, kind)
        bits = _bits(kind)
        text = f"{a} * {b} >> {bits} & {MASK[bits]}"
        if part == "wide":
            text = f"{a} * {b} & {MASK[2 * bits]}"
        return f"{_variable(operands[0])} = {text}"

    def _op_rcp(self, modifiers, operands):
        if modifiers == ["approx", "ftz", "f64"]:
            return self._expression("f64", operands, "reciprocal_approx(a)")
        return self._by_table("rcp", modifiers, operands)

    def _op_shl(self, modifiers, operands):
        return self._expression(modifiers[-1], operands[:2], f"a << {self._places(*operands)}")

    def _op_shr(self, modifiers, operands):
        a = "A" if modifiers[-1][0] == "s" else "a"
        return self._expression(modifiers[-1], operands[:2], f"{a} >> {self._places(*operands)}")

    def _places(self, to, source, places):
        places = self._value(places, "u32")
        return min(int(places), 64) if places.isdigit() else f"min({places}, 64)"

    def _op_bfi(self, modifiers, operands):
        *operands, begin, size = operands
        mask, begin = (1 << int(size)) - 1, int(begin)
        text = f"(a & {mask}) << {begin} | b & {~(mask << begin)}"
        return self._expression(modifiers[-1], operands, text)

    # ---- moves, conversions and comparisons

    def _op_mov(self, modifiers, operands):
        (kind,) = modifiers
        to, source = operands
        if source.startswith("{"):  # halves to a whole
            low, high = re.findall(r"[^{},\s]+", source)
            half = _bits(kind) // 2
            low, high = (self._value(x, f"b{half}") for x in (low, high))
            return self._assign_bits(to, f"{low} | {high} << {half}")
        if to.startswith("{"):
            low, high = map(_variable, re.findall(r"[^{},\s]+", to))
            half = _bits(kind) // 2
            lines = [f"whole = {self._bits_of(source, kind)}"]
            return [*lines, f"{low} = whole & {MASK[half]}", f"{high} = whole >> {half}"]
        if kind[0] == "b":
            return self._assign_bits(to, self._bits_of(source, kind))
        return f"{_variable(to)} = {self._value(source, kind)}"

    def _bits_of(self, source, kind):
        value = self._value(source, kind)
        is_float = source.startswith("%") and self._kind_of(source)[0] == "f"
        return f"bits{_bits(kind)}({value})" if is_float else value

    def _assign_bits(self, to, bits):
        kind = self._kind_of(to)
        conversion = {"f64": "double", "f32": "single"}.get(kind, "")
        return f"{_variable(to)} = {conversion}({bits})"

    def _op_cvt(self, modifiers, operands):
        *others, to, source = modifiers
        a, both = self._value(operands[1], source), to[0] + source[0]
        both = both.replace("b", "u")
        if source[0] == "s":
            a = _signed(f"({a} & {MASK[_bits(source)]})", source)
        if both == "ff":
            text = {
                ("f64", "f32", ()): a, ("f32", "f64", ("rn",)): f"f32({a})",
                ("f64", "f64", ("rzi",)): f"truncate({a})",
            }.get((to, source, tuple(others)))  # fmt: skip
        elif to == "f64" and others == ["rn"]:
            text = f"float({a})"
        elif both[0] in "su" and both[1] in "su" and not others:
            text = f"{a} & {MASK[min(_bits(to), _bits(source) if source[0] != 's' else 64)]}"
        else:
            text = None
        if text is None:
            raise NotImplementedError(f"PTX opcode {self.opcode}")
        return f"{_variable(operands[0])} = {text}"

    def _op_cvta(self, modifiers, operands):
        *to, space, _ = modifiers
        offset = {"global": 0, "shared": SHARED, "local": LOCAL}[space] * (-1 if to else 1)
        address = self._value(operands[1], "u64")
        return f"{_variable(operands[0])} = {address} + {offset} & {MASK[64]}"

    def _op_selp(self, modifiers, operands):
        (kind,) = modifiers
        a, b = (self._value(operand, kind) for operand in operands[1:3])
        return f"{_variable(operands[0])} = {a} if {_variable(operands[3])} else {b}"

    def _op_setp(self, modifiers, operands):
        comparison, kind = modifiers
        a, b = (self._value(operand, kind) for operand in operands[1:])
        if kind[0] == "s":
            half = 1 << (_bits(kind) - 1)
            a, b = (str(int(x) ^ half) if x.isdigit() else f"({x} ^ {half})" for x in (a, b))
        if kind[0] != "f" or comparison in ("lt", "le", "gt", "ge", "eq"):
            text = f"{a} {COMPARISONS[comparison]} {b}"
        elif comparison in NEGATIONS:
            text = f"not {a} {NEGATIONS[comparison]} {b}"
        else:
            text = {
                "ne": f"{a} < {b} or {a} > {b}", "neu": f"{a} != {b}",
                "equ": f"not ({a} < {b} or {a} > {b})",
                "num": f"{a} == {a} and {b} == {b}", "nan": f"{a} != {a} or {b} != {b}",
            }[comparison]  # fmt: skip
        return f"{_variable(operands[0])} = {text}"

    # ---- control flow

    def _op_bra(self, modifiers, operands):
        return [f"block = {self.numbers[operands[0]]}", "continue"]

    def _op_ret(self, modifiers, operands):
        return "return" if self.kind == "entry" else "return func_retval0_0"

    def _op_call(self, modifiers, operands):
        result, name, arguments = operands
        arguments = [_variable(x) + "_0" for x in re.findall(r"[^(),\s]+", arguments)]
        return f"{_variable(result.strip('()'))}_0 = {_variable(name)}({', '.join(arguments)})"

    # ---- memory

    def _parameter(self, text):
        name, _, offset = text.strip("[]").partition("+")
        return f"{_variable(name)}_{offset or 0}"

    def _layout(self, modifiers, operands):
        """Return the registers of an access, their format, and the type of each."""
        kind = modifiers[-1]
        registers = re.findall(r"[^{},\s]+", operands)
        code = {8: "B", 16: "H", 32: "I", 64: "Q"}[_bits(kind)]
        if kind[0] == "f":
            code = {32: "f", 64: "d"}[_bits(kind)]
        elif kind[0] == "s":
            code = code.lower()
        return registers, struct.Struct(f"<{len(registers)}{code}"), kind

    def _space(self, modifiers):
        known = set(modifiers[:-1]) - {"v2", "v4", "nc", "volatile", "relaxed", "gpu"}
        (space,) = known or {"generic"}
        return space

    def _op_ld(self, modifiers, operands):
        if modifiers[0] == "param":
            value = self._parameter(operands[1])
            if modifiers[-1][0] != "f":
                value = f"{value} & {MASK[_bits(modifiers[-1])]}"
            return f"{_variable(operands[0])} = {value}"
        registers, layout, kind = self._layout(modifiers, operands[0])
        site = self.kernel.add_site(self.text, "load", self._space(modifiers), layout)
        names = ", ".join(map(_variable, registers))
        lines = [f"{names}, = read({site}, {self._address(operands[1])})"]
        if kind[0] == "s":
            for register in registers:
                name = _variable(register)
                lines.append(f"{name} = {name} & {MASK[_bits(self._kind_of(register))]}")
        return lines

    def _op_st(self, modifiers, operands):
        if modifiers[0] == "param":
            return f"{self._parameter(operands[0])} = {self._value(operands[1], modifiers[-1])}"
        modifiers = [*modifiers[:-1], modifiers[-1].replace("s", "u")]
        registers, layout, kind = self._layout(modifiers, operands[1])
        site = self.kernel.add_site(self.text, "store", self._space(modifiers), layout)
        values = [self._value(register, kind) for register in registers]
        if kind[0] != "f":
            values = [f"{value} & {MASK[_bits(kind)]}" for value in values]
        return f"write({site}, {self._address(operands[0])}, {', '.join(values)})"

    def _op_atom(self, modifiers, operands):
        space, operation, kind = modifiers
        if (operation, kind) != ("min", "s64"):
            raise NotImplementedError(f"PTX opcode {self.opcode}")
        site = self.kernel.add_site(self.text, "atomic", space, struct.Struct("<q"), operation)
        address, value = self._address(operands[1]), self._value(operands[2], kind)
        return f"{_variable(operands[0])} = atomic({site}, {address}, {_signed(value, kind)})"

    # ---- other threads

    def _op_bar(self, modifiers, operands):
        kind = "warp" if modifiers[0] == "warp" else "block"
        mask = self._value(operands[0], "b32") if kind == "warp" else FULL_MASK
        if kind == "block" and operands != ["0"]:
            raise NotImplementedError(f"PTX instruction {self.text}")
        return f"yield {self.kernel.add_site(self.text, kind)}, {mask}"

    def _op_shfl(self, modifiers, operands):
        _, mode, _ = modifiers
        to, predicate = (*operands[0].split("|"), "%_")[:2]
        a, b, c, mask = (self._value(operand, "b32") for operand in operands[1:])
        site = self.kernel.add_site(self.text, "shuffle", "", None, mode)
        return f"{_variable(to)}, {_variable(predicate)} = yield {site}, {mask}, {a}, {b}, {c}"


# -------------------------------------------------------------------------------------- execution


class Memory:
    """Arrays of the host that are the global memory, at their addresses."""

    def __init__(self):
        self.starts, self.parts, self._owners = [], [], []

    def add(self, array):
        """Make the memory of an array known, and keep the array."""
        start, end = np.lib.array_utils.byte_bounds(array)
        first = bisect.bisect_left(self.starts, start)
        if first and start < self.starts[first - 1] + len(self.parts[first - 1]):
            first -= 1
        last = first
        while last < len(self.starts) and self.starts[last] < end:
            start = min(start, self.starts[last])
            end = max(end, self.starts[last] + len(self.parts[last]))
            last += 1
        view = memoryview((ctypes.c_ubyte * (end - start)).from_address(start)).cast("B")
        self.starts[first:last], self.parts[first:last] = [start], [view]
        self._owners.append(array)

    def at(self, address):
        """Return the bytes of an array, and the place of an address among them."""
        i = bisect.bisect_right(self.starts, address) - 1
        return (self.parts[i], address - self.starts[i]) if i >= 0 else (b"", 0)


def launch(
    kernel, grid, block, arguments, memory, shared_bytes=0, seed=0, races=False, counts=False
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
    races : bool
        Whether `KernelError` is raised if two threads access the same number without a barrier
        between, and one of them writes. Shuffles are no barriers.
    counts : bool
        Whether to return `Counts`, else None.
    """
    if len(arguments) != len(kernel.parameters):
        raise KernelError(f"{len(arguments)} arguments, not {len(kernel.parameters)}")
    rng = random.Random(seed)
    state = _Launch(kernel, memory, grid, block, _Races() if races else None, counts)
    places = [place[::-1] for place in itertools.product(*map(range, grid[::-1]))]
    rng.shuffle(places)
    for place in places:
        _Block(state, place, arguments, shared_bytes, rng).run()
    return state.counts() if counts else None


class _Launch:
    def __init__(self, kernel, memory, grid, block, races, counts):
        self.kernel, self.memory, self.grid, self.block = kernel, memory, grid, block
        self.races, self.requests = races, Counter() if counts else None
        self.n_warps = self.instructions = self.wavefronts = self.sectors = 0

    def add_block(self, block):
        """Count what a block has executed."""
        for first in range(0, len(block.threads), WARP):
            times = np.max([thread.n for thread in block.threads[first : first + WARP]], axis=0)
            self.instructions += int(times @ self.kernel.sizes)
            self.n_warps += 1
        for (_, site, _), accesses in block.accesses.items():
            size = self.kernel.sites[site].format.size
            space = "shared" if accesses[0][1] >= SHARED else "global"
            self.requests[self.kernel.sites[site].kind, space] += 1
            if space == "global":
                self.sectors += len({(a + b) // 32 for _, a in accesses for b in (0, size - 1)})
                continue
            lanes = defaultdict(set)  # those served together: all, a half, a quarter of the warp
            for lane, address in accesses:
                words = range(address // 4, (address + size + 3) // 4)
                lanes[lane * max(size, 4) // 128].update(words)
            for words in lanes.values():
                self.wavefronts += max(Counter(word % 32 for word in words).values())

    def counts(self):
        return Counts(
            self.n_warps, self.instructions, dict(self.requests), self.wavefronts, self.sectors
        )


class _Thread:
    """A thread; its memory, and what it waits for."""

    def __init__(self, block, number, place, arguments, shared_bytes):
        launch = block.launch
        self.block, self.number, self.place = block, number, place
        self.local, self.event, self.answer, self.finished = bytearray(), None, None, False
        self.local = bytearray(launch.kernel.local_bytes)
        self.n, self.times = [0] * len(launch.kernel.sizes), Counter()
        positions = (*place, *launch.block, *block.place, *launch.grid)
        self.generator = launch.kernel.thread_of(
            self.read, self.write, self.atomic, self.n, *positions, number % WARP, shared_bytes
        )(*arguments)

    def error(self, message, site):
        text = self.block.launch.kernel.sites[site].text
        return KernelError(f"{text}: {message}, {self}")

    def __str__(self):
        return f"thread {self.place} of block {self.block.place}"

    def run(self):
        """Run until the next event."""
        try:
            self.event = self.generator.send(self.answer)
        except StopIteration:
            self.event, self.finished = None, True

    def locate(self, site, address, content=None):
        """Return the bytes of an array and a place in them, after all checks."""
        launch = self.block.launch
        instruction = launch.kernel.sites[site]
        size, space = instruction.format.size, instruction.space
        if space in ("shared", "local"):
            address += SHARED if space == "shared" else LOCAL
        if address >= LOCAL:
            part, offset = self.local, address - LOCAL
        elif address >= SHARED and space != "global":
            part, offset = self.block.shared, address - SHARED
        else:
            part, offset = launch.memory.at(address)
        if offset + size > len(part):
            raise self.error(f"address {address:#x} is out of bounds", site)
        if address % size:
            raise self.error(f"address {address:#x} is not a multiple of {size}", site)
        if address < LOCAL:
            if launch.races:
                launch.races.record(self, site, address, content)
            if launch.requests is not None:
                self.times[site] += 1
                key = self.number // WARP, site, self.times[site]
                self.block.accesses[key].append((self.number % WARP, address))
        return part, offset

    def read(self, site, address):
        part, offset = self.locate(site, address)
        return self.block.launch.kernel.sites[site].format.unpack_from(part, offset)

    def write(self, site, address, *values):
        content = self.block.launch.kernel.sites[site].format.pack(*values)
        part, offset = self.locate(site, address, content)
        part[offset : offset + len(content)] = content

    def atomic(self, site, address, value):
        part, offset = self.locate(site, address)
        form = self.block.launch.kernel.sites[site].format
        (old,) = form.unpack_from(part, offset)
        form.pack_into(part, offset, min(old, value))
        return old & MASK[64]


class _Block:
    def __init__(self, launch, place, arguments, shared_bytes, rng):
        self.launch, self.place, self.rng = launch, place, rng
        self.shared = bytearray(launch.kernel.shared_bytes + shared_bytes)
        self.accesses, self.epoch = defaultdict(list), 0
        places = [p[::-1] for p in itertools.product(*map(range, launch.block[::-1]))]
        self.threads = [_Thread(self, i, p, arguments, shared_bytes) for i, p in enumerate(places)]
        self.warps = [self.threads[i : i + WARP] for i in range(0, len(places), WARP)]
        self.epochs = [0] * len(self.warps)  # barriers of a warp

    def run(self):
        """Run all threads to their end, the warps in a random order between barriers."""
        if self.launch.races:
            self.launch.races.start_block()
        while not all(thread.finished for thread in self.threads):
            for i in self.rng.sample(range(len(self.warps)), len(self.warps)):
                self._run_warp(i)
            waiting = [thread for thread in self.threads if not thread.finished]
            if waiting and len(waiting) < len(self.threads):
                message = "a thread of the block has finished and never meets this barrier"
                raise waiting[0].error(message, waiting[0].event[0])
            self.epoch += 1
        if self.launch.requests is not None:
            self.launch.add_block(self)

    def _run_warp(self, i):
        """Run the threads of a warp until all wait for the block, or have finished."""
        warp, sites = self.warps[i], self.launch.kernel.sites
        while True:
            for thread in self.rng.sample(warp, len(warp)):
                if not thread.finished:
                    thread.run()
            waiting = [thread for thread in warp if not thread.finished]
            if not waiting:
                return
            site, mask = waiting[0].event[:2]
            if sites[site].kind == "block":
                for thread in waiting:
                    if sites[thread.event[0]].kind != "block":
                        raise thread.error("others wait for the block", thread.event[0])
                    thread.answer = None
                return
            if len(waiting) < WARP or mask != FULL_MASK:
                raise waiting[0].error("not all threads of the warp take part", site)
            for thread in waiting:
                if thread.event[:2] != (site, mask):
                    raise thread.error(f"others wait at {sites[site].text}", thread.event[0])
            if sites[site].kind == "warp":
                self.epochs[i] += 1
            else:
                self._shuffle(warp, sites[site].detail)

    def _shuffle(self, warp, mode):
        """Answer every thread with the number of another one, and whether there is one."""
        for lane, thread in enumerate(warp):
            _, _, _, b, c = thread.event
            segment, b = c >> 8 & 31, b & 31
            first = lane & segment
            last = first | (c & 31 & ~segment)
            source = {
                "up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~segment),
            }[mode]  # fmt: skip
            exists = source >= last if mode == "up" else source <= last
            thread.answer = warp[source if exists else lane].event[2], exists


class _Access(NamedTuple):
    thread: _Thread
    site: int
    epoch: int  # of the block, and
    warp_epoch: int
    content: bytes | None  # that is written


class _Races:
    """The accesses to every four bytes: the last one that wrote, and those that read since."""

    def __init__(self):
        self.shared, self.others = {}, {}

    def start_block(self):
        self.shared = {}

    def record(self, thread, site, address, content):
        block = thread.block
        sites = block.launch.kernel.sites
        words = self.shared if address >= SHARED else self.others
        access = _Access(thread, site, block.epoch, block.epochs[thread.number // WARP], content)
        writes = sites[site].kind != "load"
        for word in range(address // 4, (address + sites[site].format.size + 3) // 4):
            written, readers = words.setdefault(word, (None, {}))
            for other in (written, *(readers.values() if writes else ())):
                if other is not None and not _is_ordered(other, access, address >= SHARED):
                    raise thread.error(
                        f"race with {sites[other.site].text} of {other.thread}", site
                    )
            if writes:
                words[word] = access, {}
            else:
                readers[thread] = access


def _is_ordered(a, b, is_shared):
    """Return whether two accesses by different threads cannot be a race."""
    first, second = a.thread, b.thread
    if first is second:
        return True
    kinds = {x.thread.block.launch.kernel.sites[x.site].kind for x in (a, b)}
    if kinds == {"atomic"}:
        return True
    same_warp = first.block is second.block and first.number // WARP == second.number // WARP
    if same_warp and a.warp_epoch < b.warp_epoch:
        return True
    if first.block is second.block and a.epoch < b.epoch:
        return True
    # Threads of a warp may write the same number by one instruction. Past the end of a batch,
    # several teams compute the last row.
    same_content = a.content is not None and a.content == b.content
    return same_content and (a.site == b.site if same_warp else not is_shared)
