"""Translate compiled CUDA kernels to Python, to run them on the host with `tests.support.threads`.

`Kernel` translates the PTX of one kernel to the source of a Python generator function. Every thread
is a generator, which yields at barriers and shuffles. Registers are local variables: integers
without sign, floats, truth values. An opcode that does not occur in the kernels of this library
raises `NotImplementedError`.
"""

import ctypes
import ctypes.util
import math
import re
import struct
from dataclasses import dataclass

FULL_MASK = 0xFFFFFFFF  # all threads of a warp
MASK = {bits: (1 << bits) - 1 for bits in (32, 64)}
AXES = tuple(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz")
FORMATS = {"u32": "I", "s32": "i", "u64": "Q", "s64": "q", "f32": "f", "f64": "d"}


# -------------------------------------------------------------------------- functions of registers


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
    """Return ``rcp.approx.ftz.f64``, which reads and returns the upper half of the bits only."""
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

FUNCTIONS = (
    bits64, double, bits32, single, f32, divide, divide_signed, reciprocal_approx, smallest,
    greatest, truncate, fma, math.copysign,
)  # fmt: skip

# What an instruction assigns. The operands are a, b, c and d, or A and B as integers with sign; M
# is the mask of the type. The table has the whole opcode, or that without the bits of an integer.
EXPRESSIONS = {
    "abs.f32": "abs(a)", "abs.f64": "abs(a)", "add.f32": "f32(a + b)", "add.f64": "a + b",
    "add.rn.f64": "a + b", "add.s": "(a + b) & M", "and.b": "a & b", "and.pred": "a & b",
    "bfi.b": "(a & (1 << d) - 1) << c | b & ~((1 << d) - 1 << c)",
    "copysign.f64": "copysign(b, a)", "cvt.f64.f32": "a", "cvt.rn.f32.f64": "f32(a)",
    "cvt.rn.f64.s32": "float(A)", "cvt.rn.f64.u32": "float(a)",
    "cvt.rzi.f64.f64": "truncate(a)",
    "cvt.s64.s32": f"A & {MASK[64]}", "cvt.u32.u64": f"a & {MASK[32]}", "cvt.u64.u32": "a",
    "cvta.to.global.u64": "a", "div.rn.f64": "divide(a, b)", "div.s": "divide_signed(A, B) & M",
    "div.u": "a // b", "fma.rn.f64": "fma(a, b, c)", "mad.lo.s": "(a * b + c) & M",
    "max.f32": "greatest(a, b)", "max.f64": "greatest(a, b)", "max.s": "a if A > B else b",
    "min.f32": "smallest(a, b)", "min.f64": "smallest(a, b)", "min.s": "a if A < B else b",
    "min.u": "a if a < b else b", "mov.f32": "a", "mov.f64": "a", "mov.pred": "a",
    "mov.u": "a", "mul.f64": "a * b", "mul.rn.f64": "a * b",
    "mul.lo.s": "a * b & M", "mul.wide.s32": f"A * B & {MASK[64]}", "mul.wide.u32": "a * b",
    "neg.f64": "-a", "neg.s": "-a & M", "not.b": "~a & M", "not.pred": "not a", "or.b": "a | b",
    "or.pred": "a | b", "rcp.approx.ftz.f64": "reciprocal_approx(a)",
    "rcp.rn.f64": "divide(1.0, a)", "setp.num.f64": "a == a and b == b",
    "shl.b": "(a << b if b < 64 else 0) & M", "shr.s": "A >> b & M", "shr.u": "a >> b",
    "sub.f32": "f32(a - b)", "sub.f64": "a - b", "sub.s": "(a - b) & M",
    "xor.b": "a ^ b", "xor.pred": "a ^ b",
}  # fmt: skip
SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}
for kind, operands in {"f32": "ab", "f64": "ab", "u": "ab", "b": "ab", "s": "AB"}.items():
    for name, sign in SIGNS.items():
        EXPRESSIONS[f"setp.{name}.{kind}"] = f"{operands[0]} {sign} {operands[1]}"
    EXPRESSIONS[f"setp.{'neu' if kind[0] == 'f' else 'ne'}.{kind}"] = "a != b"
    EXPRESSIONS[f"selp.{kind}"] = "a if c else b"
for kind in ("f32", "f64"):  # true if an operand is NaN
    for name, sign in {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}.items():
        EXPRESSIONS[f"setp.{name}.{kind}"] = f"not a {sign} b"


# ------------------------------------------------------------------------------------ translation


@dataclass(eq=False)
class Site:
    """An instruction that accesses memory, or waits for other threads."""

    text: str
    kind: str  # "load", "store", "atomic", "block" or "warp" (barriers), "up" or "bfly" (shuffles)
    space: str = ""
    format: struct.Struct | None = None


class Kernel:
    """A kernel that runs on the host, see `tests.support.threads.launch`."""

    def __init__(self, ptx):
        ptx = re.sub(r"//.*", "", ptx)
        # Dynamic shared memory is the only one, and starts at address 0.
        self.symbols = dict.fromkeys(re.findall(r"\.extern \.shared .*\s(\w+)\[\];", ptx), "0")
        self.sites, self.sizes = [], []  # the latter: instructions of each basic block
        specials = ", ".join(map(_variable, (*AXES, "%dynamic_smem_size")))
        lines = [f"def thread_of(read, write, atomic, n, {specials}):"]
        head = r"\.(entry|func)\s*(?:\([^)]*\))?\s*(\w+)\s*\(([^)]*)\)\s*\{"
        _, *parts = re.split(head, ptx)
        for kind, name, parameters, body in zip(*(parts[i::4] for i in range(4)), strict=True):
            parameters = re.findall(r"\.param\s+\.(\w+)\s+(\w+)", parameters)
            lines += [" " + line for line in _Function(self, kind, name, parameters, body).lines]
            if kind == "entry":
                self.parameters = [kind for kind, _ in parameters]
                lines.append(f" kernel = {name}")
        source = "\n".join([*lines, " return kernel"])
        namespace = {function.__name__: function for function in FUNCTIONS}
        namespace |= {f"site{i}": site for i, site in enumerate(self.sites)}
        namespace |= {"inf": math.inf, "nan": math.nan}
        exec(compile(source, "<kernel>", "exec"), namespace)
        self.thread_of = namespace["thread_of"]

    def site(self, *fields):
        """Add a site, and return the variable of it."""
        self.sites.append(Site(*fields))
        return f"site{len(self.sites) - 1}"


def _variable(name):
    return re.sub(r"\W", "_", name)


def _names(text):
    return re.findall(r"[^(){},\s]+", text)


class _Function:
    """The translation of a kernel, or of a function that it calls, to lines of Python."""

    def __init__(self, kernel, kind, name, parameters, body):
        self.kernel = kernel
        self.result = "" if kind == "entry" else "func_retval0"
        registers = re.findall(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<\d+>)?\s*;", body)
        self.registers = {prefix: kind for kind, prefix in registers}
        body = re.sub(r"^\s*[{}]\s*$", "", body, flags=re.MULTILINE)
        label, *texts = ["", *re.split(r"(\$\w+):", body)][1:]
        blocks = [label, *texts[1::2]]
        self.numbers = {label: i for i, label in enumerate(texts[::2], 1)}
        self.lines = [
            f"def {name}({', '.join(name for _, name in parameters)}):",
            " block = 0",
            " while True:",
        ]
        self._dispatch([self._block(i, text) for i, text in enumerate(blocks)], 0, 2)
        if kind == "entry":
            self.lines.append(" yield")  # a generator also without barriers

    def _dispatch(self, blocks, first, depth):
        """Find the block by bisection."""
        if len(blocks) == 1:
            self.lines += [" " * depth + line for line in blocks[0]]
            return
        middle = len(blocks) // 2
        self.lines.append(" " * depth + f"if block < {first + middle}:")
        self._dispatch(blocks[:middle], first, depth + 1)
        self.lines.append(" " * depth + "else:")
        self._dispatch(blocks[middle:], first + middle, depth + 1)

    def _block(self, i, text):
        """Return the lines of a block between two labels."""
        lines = self._start_count()
        for statement in text.split(";"):
            statement = " ".join(statement.split())
            if statement and not statement.startswith((".", "}")):
                lines += self._statement(statement)
        return [*lines, f"block = {i + 1}", "continue"]

    def _start_count(self):
        self.kernel.sizes.append(0)
        return [f"n[{len(self.kernel.sizes) - 1}] += 1"]

    def _statement(self, text):
        """Return the lines of a statement."""
        self.kernel.sizes[-1] += 1
        self.text = text
        guard, opcode, operands = re.fullmatch(r"(?:@(!?%\w+) )?([\w.]+) ?(.*)", text).groups()
        if guard:
            if opcode != "bra":
                raise NotImplementedError(f"PTX instruction {text}")
            condition = guard.replace("!", "not ").replace("%", "_")
            lines = [f"if {condition}:", *(" " + line for line in self._jump(operands))]
            return lines + self._start_count()
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^\s,]+", operands)
        general = re.sub(r"(?<=\.[sub])\d+$", "", opcode)
        expression = EXPRESSIONS.get(opcode) or EXPRESSIONS.get(general)
        if expression is not None:
            return [self._assignment(opcode.rpartition(".")[2], operands, expression)]
        name, *modifiers = opcode.split(".")
        if modifiers[:1] == ["param"]:
            return [self._parameter(*operands, modifiers[-1])]
        match name, modifiers:
            case "bra", _:
                return self._jump(operands[0])
            case "ret", _:
                return [f"return {self.result}"]
            case "call", _:
                result, function, arguments = operands
                return [f"{_names(result)[0]} = {function}({', '.join(_names(arguments))})"]
            case "mov", ["b32" | "b64" as kind]:
                return self._move_bits(*operands, int(kind[1:]))
            case "ld", [*space, kind]:
                return self._load(self._access(space, kind, operands[0], "load"), *operands)
            case "st", [*space, kind]:
                address, registers = operands
                # Registers have no sign.
                site = self._access(space, kind.replace("s", "u"), registers, "store")
                values = ", ".join(self._value(x, kind) for x in _names(registers))
                return [f"write({site}, {self._address(address)}, {values})"]
            case "atom", ["global", "min", "s64"]:
                to, address, value = operands
                site = self._access(["global"], "s64", value, "atomic")
                arguments = f"{site}, {self._address(address)}, {self._signed(value, 64)}"
                return [f"{_variable(to)} = atomic({arguments})"]
            case "bar", ["sync"] if operands == ["0"]:
                return [f"yield {self.kernel.site(text, 'block')}, {FULL_MASK}"]
            case "bar", ["warp", "sync"]:
                mask = self._value(operands[0], "b32")
                return [f"yield {self.kernel.site(text, 'warp')}, {mask}"]
            case "shfl", ["sync", "up" | "bfly" as mode, "b32"]:
                to, predicate = map(_variable, operands[0].split("|"))
                *values, mask = (self._value(x, "b32") for x in operands[1:])
                site = self.kernel.site(text, mode)
                return [f"{to}, {predicate} = yield {site}, {mask}, {', '.join(values)}"]
        raise NotImplementedError(f"PTX opcode {opcode}")

    # ---- operands

    def _kind_of(self, register):
        return self.registers.get(register.rstrip("0123456789")) or self.registers[register]

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
            return str(bool(number) if kind == "pred" else number & MASK[int(kind[1:])])
        if text not in self.kernel.symbols:
            raise NotImplementedError(f"symbol {text} in {self.text}")
        return self.kernel.symbols[text]

    def _signed(self, text, bits):
        half = 1 << (bits - 1)
        return f"(({self._value(text, f's{bits}')} ^ {half}) - {half})"

    def _address(self, text):
        base, _, offset = text.strip("[]").partition("+")
        address = self._value(base, "u64")
        return f"{address} + {offset} & {MASK[64]}" if offset else address

    def _assignment(self, kind, operands, expression):
        """Return the assignment of an expression of the table."""
        to, *sources = operands
        values = dict(zip("abcd", (self._value(x, kind) for x in sources), strict=False))
        if kind[0] in "sub":
            bits = int(kind[1:])
            values["M"] = str(MASK[bits])
            values |= {x: self._signed(y, bits) for x, y in zip("AB", sources, strict=False)}
        expression = re.sub(r"\b[abcdABM]\b", lambda match: values[match[0]], expression)
        return f"{_variable(to)} = {expression}"

    # ---- instructions that are not in the table

    def _jump(self, label):
        return [f"block = {self.numbers[label]}", "continue"]

    def _parameter(self, to, source, kind):
        """Load a parameter, or store one of a call."""
        to, source = (re.sub(r"[][]|\+0\b", "", operand) for operand in (to, source))
        value = self._value(source, kind) if source.startswith("%") else source
        mask = "" if kind[0] == "f" else f" & {MASK[int(kind[1:])]}"
        return f"{_variable(to)} = {value}{mask}"

    def _move_bits(self, to, source, bits):
        """Copy bits between registers of other types, or 64 bits from or to two registers."""
        names, half = [_variable(x) for x in _names(source)], bits // 2
        if len(names) == 2:
            value = f"{names[0]} | {names[1]} << {half}"
        elif source.startswith("%") and self._kind_of(source)[0] == "f":
            value = f"bits{bits}({names[0]})"
        else:
            value = self._value(source, f"b{bits}")
        if to.startswith("{"):
            low, high = map(_variable, _names(to))
            return [f"{high} = {value}", f"{low} = {high} & {MASK[half]}", f"{high} >>= {half}"]
        conversion = {"f64": "double", "f32": "single"}.get(self._kind_of(to), "")
        return [f"{_variable(to)} = {conversion}({value})"]

    def _access(self, space, kind, registers, name):
        """Return the site of an access. Pointers without a space are of global memory.

        A pointer to shared memory would need ``cvta.shared``, which is not implemented.
        """
        layout = struct.Struct(f"<{len(_names(registers))}{FORMATS[kind]}")
        space = "shared" if "shared" in space else "global"
        return self.kernel.site(self.text, name, space, layout)

    def _load(self, site, registers, address):
        names = _names(registers)
        lines = [f"{', '.join(map(_variable, names))}, = read({site}, {self._address(address)})"]
        masks = {x: {"b32": MASK[32], "b64": MASK[64]}.get(self._kind_of(x)) for x in names}
        return lines + [f"{_variable(x)} &= {mask}" for x, mask in masks.items() if mask]
