"""fastemd.jax: XLA's structures, ground spaces by number."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastemd
from tests.support.frameworks import needed

jax = needed("jax")
c_api = needed("fastemd.jax.c_api")
registry = needed("fastemd.jax.registry")

HEADER = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(
    encoding="utf-8"
)
STRUCTURES = [name for name in vars(c_api) if hasattr(getattr(c_api, name), "_fields_")]


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_begins_with_the_fields_of_the_header(name):
    """In their order, by name; what follows the last one is not read."""
    (body,) = re.findall(rf"struct {name} {{\n(.*?)\n}}", HEADER, re.DOTALL)
    code = re.sub(r"//.*", "", body)
    fields = re.findall(r"(\w+)\)?;", code)
    ours = [field for field, _ in getattr(c_api, name)._fields_]
    assert ours == fields[: len(ours)]
    assert len(ours) > 1


def test_constants_are_those_of_the_header():
    names = [name for name in vars(c_api) if isinstance(getattr(c_api, name), int)]
    assert len(names) == 4
    for name in names:
        assert f"{name} = {getattr(c_api, name)}," in HEADER
    prefixes = {"b": "PRED", "i": "S", "u": "U", "f": "F"}
    for number, dtype in c_api.DTYPES.items():
        kind = "PRED" if dtype.kind == "b" else f"{prefixes[dtype.kind]}{8 * dtype.itemsize}"
        assert f"XLA_FFI_DataType_{kind} = {number}," in HEADER


def test_registry_numbers_spaces_by_content():
    space = fastemd.Chain(5, [1, 2, 3, 0.5])
    number = registry.number_of(space)
    assert registry.number_of(pickle.loads(pickle.dumps(space))) == number
    assert registry.number_of(fastemd.Chain(5, [1, 2, 3, 1])) != number
    assert registry.space_of(number) is space
    with pytest.raises(ValueError, match=r"space: .*\(number 7\) is unknown in this process"):
        registry.space_of(7)


def test_registry_agrees_between_processes():
    code = "import fastemd, fastemd.jax.registry as r; print(r.number_of(fastemd.Chain(4)))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
    )
    assert int(result.stdout) == registry.number_of(fastemd.Chain(4))
