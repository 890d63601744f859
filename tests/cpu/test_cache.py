"""The cache of kernels on disk: later processes use it, and its failures only cost time."""

import compileall
import contextlib
import errno
import functools
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from numba import types
from numba.core import config
from numba.core.registry import cpu_target

import fastemd
from fastemd.kernels import caching
from fastemd.kernels.cpu import compiling

PACKAGE = Path(fastemd.__file__).parent
FIRST_CALL = "import fastemd; print(float(fastemd.emd([1, 0], [0, 1], fastemd.Chain(2), 1)))"
SIGNATURE = types.float64(types.float64)


def add_one(x):
    return x + 1.0


def add_two(x):
    return x + 2.0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the cache folder of a process that has not warned yet."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(caching, "_warned", False)
    return caching.folders()[0]


def _is_loaded(function=add_one, digest=b"1"):
    """Check the results of a function and return whether it comes from the cache."""
    kernel = caching.compiled(function, SIGNATURE, digest)
    assert kernel(1.0) == function(1.0)
    return bool(kernel.stats.cache_hits)


def _only_file(folder):
    (file,) = folder.iterdir()
    return file


def test_compiled_loads_kernel_from_cache(folder):
    assert not _is_loaded()
    content = _only_file(folder).read_bytes()
    assert _is_loaded()
    assert _only_file(folder).read_bytes() == content


def test_compiled_replaces_code_of_other_version(folder):
    assert not _is_loaded(digest=b"1")
    assert not _is_loaded(digest=b"2")
    assert _is_loaded(digest=b"2")
    assert _only_file(folder)


def _damages():
    return {
        "empty": lambda content: b"",
        "short": lambda content: content[:20],
        "truncated": lambda content: content[: len(content) // 2],
        "last byte lost": lambda content: content[:-1],
        "longer": lambda content: content + b"\0",
        "zeros": lambda content: bytes(len(content)),
        "zeros within": lambda content: content[:4096] + bytes(4096) + content[8192:],
        "garbage": lambda content: content[::-1],
        "text": lambda content: b"version https://git-lfs.github.com/spec/v1\n" * 3,
        "another pickle": lambda content: pickle.dumps(("0.1", {})),
    }


@pytest.mark.parametrize("damage", _damages().values(), ids=_damages())
def test_compiled_replaces_damaged_file_and_warns_once(folder, damage):
    _is_loaded()
    file = _only_file(folder)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR") as record:
        assert not _is_loaded()
    assert len(record) == 1
    assert str(folder) in str(record[0].message)
    assert "damaged" in str(record[0].message)
    assert _is_loaded()
    assert _only_file(folder) == file


NAME = f"{__name__}.add_one"


def test_load_overload_detects_damage_at_every_byte(folder):
    _is_loaded()
    file = _only_file(folder)
    content = file.read_bytes()

    def loaded(damaged):
        file.write_bytes(damaged)
        cache = caching.KernelCache(NAME, b"1")
        return cache.load_overload(SIGNATURE, cpu_target.target_context)

    def loaded_of_all():
        places = range(0, len(content), len(content) // 50)
        flipped = (content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :] for i in places)
        return [loaded(damaged) for damaged in (*(content[:i] for i in places), *flipped)]

    assert loaded(content)
    with pytest.warns(RuntimeWarning, match="damaged") as record:
        every = loaded_of_all()
    assert every == [None] * len(every)
    assert len(record) == 1


def test_load_overload_ignores_pickle_of_other_class(folder):
    """The digest is valid but the content is not, as after an update of Numba."""
    _is_loaded()
    file = _only_file(folder)
    key = file.read_bytes()[caching.SIZE : 2 * caching.SIZE]
    for payload in (b"cno_such_module\nname\n.", pickle.dumps(("one", "two")), b""):
        content = key + payload
        file.write_bytes(caching.hashlib.sha256(content).digest() + content)
        caching._warned = False
        with pytest.warns(RuntimeWarning, match="kernel cache"):
            assert not _is_loaded()
        assert _is_loaded()


def _below_a_file(path):
    path.write_text("")
    return path / "cache"


def _a_file(path):
    path.write_text("")
    return path


def _dangling_link(path):
    try:
        path.symlink_to(path.with_name("nowhere") / "cache")
    except OSError:
        pytest.skip("Windows allows links for administrators and developers only")
    return path


@pytest.mark.parametrize("make", [_below_a_file, _a_file, _dangling_link])
def test_compiled_warns_once_if_folder_cannot_be_created(make, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(make(tmp_path / "place")))
    with pytest.warns(RuntimeWarning, match="set NUMBA_CACHE_DIR") as record:
        loaded = [_is_loaded(function) for function in (add_one, add_two)]
    assert loaded == [False, False]
    assert len(record) == 1
    assert str(tmp_path / "place") in str(record[0].message)


def test_compiled_warns_if_folder_has_name_of_file(folder):
    _is_loaded()
    file = _only_file(folder)
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning, match="IsADirectoryError|PermissionError"):
        assert not _is_loaded()
    assert _only_file(folder) == file


def test_compiled_recreates_deleted_folder(folder):
    _is_loaded()
    shutil.rmtree(folder.parent)
    assert not _is_loaded()
    assert _is_loaded()


def _refuse(number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refuse


def test_compiled_replaces_unreadable_file(folder, monkeypatch):
    _is_loaded()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _refuse(errno.EACCES))
        assert not _is_loaded()
    assert _is_loaded()


def test_compiled_loads_kernel_from_read_only_folder(folder, monkeypatch):
    _is_loaded()
    for operation in ("mkdir", "write_bytes", "replace"):
        monkeypatch.setattr(Path, operation, _refuse(errno.EROFS))
    assert _is_loaded()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.ESTALE])
@pytest.mark.parametrize("operation", ["mkdir", "write_bytes", "replace"])
def test_compiled_loads_no_outdated_code_after_failed_write(operation, number, folder, monkeypatch):
    _is_loaded(digest=b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Path, operation, _refuse(number))
        with pytest.warns(RuntimeWarning, match="set NUMBA_CACHE_DIR"):
            assert not _is_loaded(digest=b"2")
    assert _only_file(folder)  # no part of the new file
    assert _is_loaded(digest=b"1")
    assert not _is_loaded(digest=b"2")


def _busy(function, n_calls, winerror):
    """Return the method of a path which Windows refuses in the first calls."""
    calls = iter(range(n_calls))

    def call(*args):
        if next(calls, None) is None:
            return function(*args)
        error = PermissionError(errno.EACCES, "open in another process")
        error.winerror = winerror
        raise error

    return call


WINERRORS = [("read_bytes", None), ("replace", 5), ("replace", 32)]  # `open` sets errno only


@pytest.fixture
def windows(monkeypatch):
    """Let the cache retry as on Windows, without pauses."""
    monkeypatch.setattr(caching, "_is_windows", lambda: True)
    monkeypatch.setattr(caching, "PAUSE", 0.0)


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize(("operation", "winerror"), WINERRORS)
def test_compiled_waits_for_file_that_is_open_in_another_process(
    operation, winerror, folder, monkeypatch
):
    _is_loaded(digest=b"1")
    digest = b"1" if operation == "read_bytes" else b"2"
    with monkeypatch.context() as patch:
        patch.setattr(Path, operation, _busy(getattr(Path, operation), 3, winerror))
        assert _is_loaded(digest=digest) == (operation == "read_bytes")
    assert _is_loaded(digest=digest)


@pytest.mark.usefixtures("windows")
def test_compiled_warns_if_file_stays_open_in_another_process(folder, monkeypatch):
    monkeypatch.setattr(Path, "replace", _busy(Path.replace, caching.ATTEMPTS, 5))
    with pytest.warns(RuntimeWarning, match="open in another process"):
        assert not _is_loaded()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("is_windows", "winerror"), [(False, None), (False, 5), (True, 19)])
def test_compiled_does_not_repeat_after_other_errors(is_windows, winerror, folder, monkeypatch):
    """A folder without permissions costs no time."""
    monkeypatch.setattr(caching, "_is_windows", lambda: is_windows)
    monkeypatch.setattr(Path, "replace", _busy(Path.replace, 1, winerror))
    with pytest.warns(RuntimeWarning, match="open in another process"):
        assert not _is_loaded()


def test_compiled_warns_if_code_contains_addresses(folder, monkeypatch):
    """Such code would be loaded into another process, and crash it."""
    from numba.core.codegen import CPUCodeLibrary

    monkeypatch.setattr(CPUCodeLibrary, "has_dynamic_globals", True)
    with pytest.warns(RuntimeWarning, match="addresses"):
        assert not _is_loaded()
    assert not folder.exists()


def test_compiled_rejects_disabled_jit(folder, monkeypatch):
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    with pytest.raises(RuntimeError, match=r"^NUMBA_DISABLE_JIT: .* unset"):
        _is_loaded()


@pytest.fixture
def two_folders(folder, tmp_path, monkeypatch):
    """Return the folder of the package and that of the user."""
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(caching, "__file__", str(tmp_path / "package" / "caching.py"))
    monkeypatch.setattr(caching, "user_cache_dir", lambda *args: str(tmp_path / "user"))
    return caching.folders()


def test_folders_are_package_folder_and_user_folder(two_folders, tmp_path):
    assert two_folders[0] == tmp_path / "package" / "__pycache__"
    assert two_folders[1].parent == tmp_path / "user"
    _is_loaded()
    assert _only_file(two_folders[0])
    assert not two_folders[1].exists()
    assert _is_loaded()


def test_folders_are_all_read_and_first_writable_one_is_written(two_folders, tmp_path):
    (tmp_path / "package").write_text("")
    assert not _is_loaded()
    assert _only_file(two_folders[1])
    assert _is_loaded()
    (tmp_path / "user").rename(tmp_path / "kept")
    (tmp_path / "user").write_text("")
    with pytest.warns(RuntimeWarning, match="set NUMBA_CACHE_DIR"):
        assert not _is_loaded()


def test_folders_without_home_are_package_folder(two_folders, monkeypatch):
    monkeypatch.setattr(caching, "user_cache_dir", lambda *args: "~/.cache/numba")
    assert caching.folders() == two_folders[:1]


def test_folders_of_bundled_package_are_user_folder(two_folders, monkeypatch, tmp_path):
    """A bundle may be unpacked to a new temporary folder at every start."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    (user_folder,) = caching.folders()
    assert user_folder.parent == two_folders[1].parent
    monkeypatch.setattr(caching, "__file__", str(tmp_path / "another" / "caching.pyc"))
    assert caching.folders() == [user_folder]


class _Archive:
    """A loader whose modules have no file, like that of a PyInstaller bundle."""

    def __init__(self, source):
        self._code = compile(source, "archive", "exec")

    def get_data(self, path):
        raise FileNotFoundError(path)

    def get_code(self, name):
        return self._code


def test_digest_of_code_uses_bytecode_without_source_file(monkeypatch):
    def digest(source):
        spec = SimpleNamespace(loader=_Archive(source), origin="archive/name.pyc")
        monkeypatch.setitem(sys.modules, "archived", SimpleNamespace(__spec__=spec))
        return caching.digest_of_code("archived")

    source = "FACTOR = 2.0\ndef f(x):\n    return FACTOR * g(x)[1:2]\n"
    assert digest(source) == digest(source)
    changes = ("2.0", "3.0"), ("g(", "h("), ("*", "+")
    sources = [source, *(source.replace(*change) for change in changes)]
    assert len({digest(text) for text in sources}) == 4


def test_digest_of_code_covers_all_kernel_modules():
    """The driver is not part of a kernel; the module that compiles kernels is part of all."""
    files = {
        f"fastemd.kernels.cpu.{path.stem}" for path in Path(compiling.__file__).parent.glob("*.py")
    }
    modules = {module.__name__ for module in compiling.SOURCES} | {compiling.__name__}
    not_in_kernels = {f"fastemd.kernels.cpu.{name}" for name in ("__init__", "driver")}
    shared = {f"fastemd.kernels.{name}" for name in ("edges", "jitable", "operations")}
    assert modules == (files - not_in_kernels) | shared | {"fastemd.layout"}


# -- in separate processes -------------------------------------------------------------------------


def _run(code, folder=None, **environment):
    """Return the output of Python, started in `folder`, and its number of warnings."""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.count("Warning: ")


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}


def test_cache_is_used_by_next_process(tmp_path):
    code = """
import fastemd, numpy as np
p = np.eye(300)
print(fastemd.emd_grad(p, p[::-1], fastemd.Chain(300), 2).sum())  # on two threads
"""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    first = _run(code, **environment)
    compiled = _files(tmp_path)
    kinds = ("gradient_chain_2_wide", "threads.launch")
    assert all(any(kind in path.name for path in compiled) for kind in kinds)
    assert _run(code, **environment) == first
    assert first[1] == 0
    assert _files(tmp_path) == compiled


def test_cache_keeps_kernels_of_different_processes_apart(tmp_path):
    """Inner functions of two kernels may have the same name and number, but do different things."""
    code = """
import fastemd
tree = fastemd.Tree.from_parents([3, 3, 3, -1])
hvp = lambda rho: fastemd.emd_hvp([0.5, 0, 0.5], [0, 0.3, 0.7], [1, 2, 4], tree, rho)
"""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    alone = [_run(f"{code}print(hvp({rho}))", **environment)[0] for rho in (2, 3)]
    for order in ((0, 1), (1, 0)):
        prints = "\n".join(f"print(hvp({i + 2}))" for i in order)
        printed, n_warnings = _run(code + prints, **environment)
        assert n_warnings == 0
        assert printed.splitlines() == [alone[i] for i in order]


def test_cache_is_not_used_after_kernel_source_changes(tmp_path):
    """Editing a module whose functions a kernel calls must change the result."""
    shutil.copytree(PACKAGE, tmp_path / "fastemd", ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    assert _run(FIRST_CALL, tmp_path, NUMBA_CACHE_DIR=cache) == ("1.0", 0)
    edges = tmp_path / "fastemd" / "kernels" / "edges.py"
    source = edges.read_text(encoding="utf-8")
    slope = "return length * (sign"
    assert source.count(slope) == 1
    new_source = source.replace(slope, "return 7.0 * length * (sign")
    edges.write_text(new_source, encoding="utf-8")
    assert _run(FIRST_CALL, tmp_path, NUMBA_CACHE_DIR=cache) == ("7.0", 0)


def test_cache_is_skipped_on_full_disk(tmp_path):
    pytest.importorskip("resource")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    assert _run(f"{limit}; {FIRST_CALL}", NUMBA_CACHE_DIR=str(tmp_path)) == ("1.0", 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


WRITER = """
from numba import njit
from tests.cpu.test_cache import NAME, SIGNATURE, add_one
from fastemd.kernels import caching
kernel = njit(SIGNATURE)(add_one)  # compiled here: a kernel that was loaded cannot be saved
compiled = kernel.overloads[SIGNATURE.args]
print(flush=True)
for _ in range(500):
    caching.KernelCache(NAME, b"1").save_overload(SIGNATURE, compiled)
"""


def test_cache_is_readable_while_other_processes_write(folder):
    environment = {**os.environ, "NUMBA_CACHE_DIR": config.CACHE_DIR}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-W", "error", "-c", WRITER]
    caching.compiled(add_one, SIGNATURE, b"1")
    with contextlib.ExitStack() as stack:
        start = functools.partial(subprocess.Popen, env=environment, stdout=subprocess.PIPE)
        writers = [stack.enter_context(start(command)) for _ in range(2)]
        for writer in writers:
            assert writer.stdout.read(1)
        cache, n_loads = caching.KernelCache(NAME, b"1"), 0
        while any(writer.poll() is None for writer in writers):
            assert cache.load_overload(SIGNATURE, cpu_target.target_context)
            n_loads += 1
        for writer in writers:
            assert writer.wait() == 0
    assert n_loads > 10
    assert _only_file(folder)


def _zip(folder):
    return shutil.make_archive(f"{folder}_packed", "zip", folder)


def _only_bytecode(folder):
    """Compile a package to bytecode and delete its source, as in a bundle."""
    assert compileall.compile_dir(folder, quiet=2, legacy=True)
    for path in folder.rglob("*.py"):
        path.unlink()
    return str(folder)


@pytest.mark.parametrize("pack", [_zip, _only_bytecode])
def test_cache_works_without_source_files(pack, tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "fastemd", ignore=ignored)
    path, cache = pack(source), tmp_path / "cache"
    code = """
import fastemd
print(fastemd.__file__)
value, grad = fastemd.emd_value_and_grad([1, 0], [0, 1], fastemd.Chain(2), 1)
print(float(value), grad.tolist(), fastemd.datasets.imagenet_tree().n_bins)
"""
    environment = {"PYTHONPATH": path, "NUMBA_CACHE_DIR": str(cache)}
    printed, n_warnings = _run(code, tmp_path, **environment)
    file, result = printed.splitlines()
    assert file.startswith(path)
    assert result == "1.0 [0.5, -0.5] 1000"
    assert n_warnings == 0
    compiled = _files(cache)
    assert len(compiled) == 1
    assert _run(code, tmp_path, **environment) == (printed, 0)
    assert _files(cache) == compiled
