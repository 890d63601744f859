"""Rules for the source code that ruff does not check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("fastemd", "benchmarks", "examples", "tools")
    for path in (ROOT / folder).rglob("*.py")
)
TEXT = {"open", "read_text", "write_text"}


def _calls_without_encoding(tree):
    """Yield the lines of calls that open a file as text, in the encoding of the platform."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        module = getattr(getattr(call.func, "value", None), "id", None)
        strings = {node.value for node in ast.walk(call) if isinstance(node, ast.Constant)}
        keywords = {keyword.arg for keyword in call.keywords}
        is_binary = bool({"rb", "wb"} & strings) or module == "tarfile"
        is_binary |= "force_zip64" in keywords  # of ZipFile.open
        if name in TEXT and "encoding" not in keywords and not is_binary:
            yield call.lineno


@pytest.mark.parametrize("file", FILES)
def test_text_files_are_opened_with_encoding(file):
    """The default is that of the platform before Python 3.15, on Windows mostly cp1252."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert list(_calls_without_encoding(tree)) == []


@pytest.mark.parametrize(
    "code", ["open(p)", "p.open('w')", "p.read_text()", "p.write_text(t, newline='')"]
)
def test_calls_without_encoding_are_found(code):
    assert list(_calls_without_encoding(ast.parse(code))) == [1]
