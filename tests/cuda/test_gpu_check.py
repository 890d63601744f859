"""`python -m benchmarks.gpu_check`: the runner, with trivial steps."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import correctness, environment, runner
from benchmarks.gpu_check.runner import (
    FAILED,
    OK,
    SKIPPED,
    TIMED_OUT,
    Result,
    Step,
    UnavailableError,
)
from tests.support.device import cpu

pytestmark = [cpu, pytest.mark.skipif(os.name == "nt", reason="needs process groups and signals")]


def _step(code, name="step", limit=60.0, **options):
    return Step(name, (sys.executable, "-c", code), limit, **options)


def _run(step, tmp_path, limit=60.0):
    return runner.run(step, limit, tmp_path / "log", dict(os.environ))


@pytest.mark.parametrize(
    ("code", "status", "detail", "failed"),
    [
        ("print('first'); print('last'); print()", OK, "last", False),
        ("import sys; sys.exit('broken')", FAILED, "broken", True),
        ("import os; os.abort()", FAILED, "no output", True),
        ("print('no such tool'); raise SystemExit(77)", SKIPPED, "no such tool", False),
    ],
)
def test_run_maps_exit_code_to_status(code, status, detail, failed, tmp_path):
    result = _run(_step(code), tmp_path)
    assert result._replace(seconds=0.0) == Result("step", status, 0.0, detail, failed)


def test_run_writes_all_output_to_the_log(tmp_path):
    _run(_step("import sys; print('out', flush=True); print('err', file=sys.stderr)"), tmp_path)
    assert (tmp_path / "log").read_text().split() == ["out", "err"]


def test_run_skips_missing_tool(tmp_path):
    result = _run(Step("profile", ("no-such-profiler",)), tmp_path)
    assert result == Result("profile", SKIPPED, 0.0, "no-such-profiler is not installed", False)


def test_run_skips_step_without_permission(tmp_path):
    code = "print('==ERROR== ERR_NVGPUCTRPERM: permission'); print('more'); raise SystemExit(1)"
    result = _run(_step(code, skip="ERR_NVGPUCTRPERM"), tmp_path)
    assert (result.status, result.failed) == (SKIPPED, False)
    assert result.detail == "==ERROR== ERR_NVGPUCTRPERM: permission"


CHILD = "import pathlib, time; time.sleep(4); pathlib.Path({!r}).touch()"
PARENT = """
import subprocess, sys, time
print("started", flush=True)
subprocess.run([sys.executable, "-c", {!r}])
"""


def test_run_kills_step_and_its_children_at_limit(tmp_path):
    mark = tmp_path / "still running"
    start = time.monotonic()
    result = _run(_step(PARENT.format(CHILD.format(str(mark)))), tmp_path, limit=2.0)
    assert (result.status, result.failed) == (TIMED_OUT, True)
    assert result.detail == "started"
    time.sleep(max(0.0, start + 7.0 - time.monotonic()))
    assert not mark.exists()


PARTIAL = """
import time
print("waiting", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print({!r})
    raise SystemExit(2)
"""


@pytest.mark.parametrize(
    ("summary", "status", "failed"),
    [
        ("12 passed, 3 skipped in 2.00s", TIMED_OUT, False),
        ("1 failed, 12 passed in 2.00s", FAILED, True),
        ("12 passed, 1 error in 2.00s", FAILED, True),
        ("no tests ran in 2.00s", TIMED_OUT, False),
    ],
)
def test_run_interrupts_tests_at_limit(summary, status, failed, tmp_path):
    partial = command.steps("cuda")[-1].partial
    result = _run(_step(PARTIAL.format(summary), partial=partial), tmp_path, limit=6.0)
    assert (result.status, result.failed, result.detail) == (status, failed, summary)


def test_run_all_continues_after_failure_and_stops_at_limit(tmp_path, capsys):
    steps = [
        _step("raise SystemExit(1)", "first"),
        _step("print('fine')", "second"),
        _step("import time; time.sleep(60)", "third", limit=None),
        _step("print('fine')", "fourth"),
        _step("print('fine')", "fifth", devices=("cuda",)),
    ]
    results = runner.run_all(steps, "cpu", 4.0, tmp_path, dict(os.environ))
    assert [r.status for r in results] == [FAILED, OK, TIMED_OUT, TIMED_OUT, SKIPPED]
    assert results[3].detail == "no time was left"
    assert "third: timed out" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"first.log", "second.log", "third.log"}


def test_table_has_one_row_per_result():
    results = [Result("a", OK, 1.25, "x | y", False), Result("b", FAILED, 2.0, "z", True)]
    assert runner.table(results).splitlines()[2:] == [
        "| a | ok | 1.2 | x / y |",
        "| b | FAILED | 2.0 | z |",
    ]


@pytest.mark.parametrize(("chosen", "code"), [(["good"], 0), (["bad"], 1), (["bad", "good"], 1)])
def test_main_returns_1_if_step_failed(chosen, code, tmp_path, capsys):
    def steps(device):
        return [_step("print('b' + 'ad'); raise SystemExit(3)", "bad"), _step("pass", "good")]

    options = ["--device", "cpu", "--logs", str(tmp_path / "logs"), "--steps", *chosen]
    assert command.main(options, steps) == code
    table = (tmp_path / "logs" / "table.md").read_text()
    assert table.count("\n") == 2 + len(chosen)
    printed = capsys.readouterr().out
    assert printed.endswith(table)
    assert ("end of" in printed) == bool(code)


def test_main_rejects_unknown_step(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--steps", "everything", "--logs", str(tmp_path)])
    assert "invalid choice: 'everything'" in capsys.readouterr().err


def test_steps_leave_time_for_tests():
    steps = command.steps("cuda")
    assert [step.name for step in steps if step.limit is None] == ["tests"]
    assert steps[-1].name == "tests"
    assert sum(step.limit or 0.0 for step in steps) < 8 * 60
    assert [step.name for step in command.steps("cpu")] == [step.name for step in steps]


NCU = """
  run(float) (65536, 1, 1)x(256, 1, 1), Context 1, Stream 7, Device 0, CC 9.0
    Section: GPU Speed Of Light Throughput
    ----------------------- ----------- ------------
    Metric Name             Metric Unit Metric Value
    ----------------------- ----------- ------------
    Memory Throughput                 %        55.12
    Duration                         us     1,234.50
    ----------------------- ----------- ------------
    Registers Per Thread     register/thread              80
    Stall Barrier                     inst         3.20
    Stall Long Scoreboard             inst        11.10
"""


def test_metrics_reads_report_of_ncu():
    assert command.metrics(NCU) == (
        "Duration 1,234.50 us, Memory Throughput 55.12 %, Registers Per Thread 80 register/thread, "
        "Stall Long Scoreboard 11.10 inst"
    )
    assert command.metrics("nothing") == "no kernel was profiled"


# The checks ---------------------------------------------------------------------------------------


def _fail(device):
    raise ValueError(f"wrong on {device}")


def _unavailable(device):
    raise UnavailableError("no such library")


def test_run_all_counts_checks_and_continues_after_failure(capsys):
    checks = {"a": lambda device: None, "b": _fail, "c": _unavailable, "d": None, "e": print}
    code = correctness.run_all(checks, lambda name: correctness.run_here(checks[name], "cpu"), 1)
    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert lines[-1] == "2 ok, 1 FAILED, 2 skipped: b"
    assert any("ValueError: wrong on cpu" in line for line in lines)
    assert any(line.endswith("c: no such library") for line in lines)
    assert any(line.endswith("d: needs a GPU") for line in lines)


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("print('fine')", OK, "fine"),
        ("raise SystemExit(77)", SKIPPED, ""),
        ("raise KeyError('k')", FAILED, "KeyError: 'k'"),
        ("import os; print('x', flush=True); os.abort()", FAILED, "x"),
        ("import time; print('x', flush=True); time.sleep(60)", TIMED_OUT, "x"),
    ],
)
def test_run_apart_survives_crash_of_check(code, status, text, monkeypatch):
    monkeypatch.setattr(correctness, "LIMIT", 3.0)
    result = correctness.run_apart((sys.executable, "-c", code))
    assert result[0] == status
    assert text in result[1]


# The environment ----------------------------------------------------------------------------------


def _toolkit(folder):
    for file in ("bin/nvcc", "nvvm/lib64/libnvvm.so.4"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch(mode=0o755)
    return folder


@pytest.fixture
def has_row_stack(monkeypatch):
    monkeypatch.setattr(np, "row_stack", np.vstack, raising=False)


@pytest.mark.usefixtures("has_row_stack")
def test_child_environment_finds_toolkit_of_nvcc(tmp_path):
    home = _toolkit(tmp_path / "cuda")
    variables = {"PATH": str(home / "bin"), "LD_LIBRARY_PATH": "/opt/lib"}
    result = environment.child_environment(variables, "cuda", "cache")
    assert result["CUDA_HOME"] == str(home)
    assert result["LD_LIBRARY_PATH"] == f"{home}/nvvm/lib64:/opt/lib"
    assert result["NUMBA_CACHE_DIR"] == "cache"
    assert result["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert result["PYTHONPATH"] == str(runner.ROOT)
    assert variables == {"PATH": str(home / "bin"), "LD_LIBRARY_PATH": "/opt/lib"}


@pytest.mark.usefixtures("has_row_stack")
def test_child_environment_preserves_variables_of_user(tmp_path):
    home = _toolkit(tmp_path / "mine")
    variables = {"CUDA_HOME": str(home), "PATH": "/bin", "PYTHONPATH": "/mine"}
    result = environment.child_environment(variables, "cuda", "cache")
    assert result["CUDA_HOME"] == str(home)
    assert result["PATH"] == f"{home}/bin:/bin"
    assert result["PYTHONPATH"] == f"{runner.ROOT}:/mine"
    cpu = environment.child_environment({"NUMBA_CACHE_DIR": "/mine"}, "cpu", "cache")
    assert cpu["NUMBA_CACHE_DIR"] == "/mine"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in cpu


@pytest.mark.parametrize(
    ("probe", "needed"),
    [
        ("raise AttributeError(\"module 'numpy' has no attribute 'row_stack'\")", True),
        ("raise OSError('libnvvm.so was not found')", False),
        ("pass", False),
    ],
)
def test_child_environment_restores_row_stack_if_numba_cuda_needs_it(
    probe, needed, tmp_path, monkeypatch
):
    monkeypatch.delattr(np, "row_stack", raising=False)
    monkeypatch.setattr(environment, "find_spec", lambda name: name)
    monkeypatch.setattr(environment, "PROBE", probe)
    result = environment.child_environment(dict(os.environ), "cuda", tmp_path)
    assert (str(environment.SHIM) in result["PYTHONPATH"].split(os.pathsep)) == needed


def test_shim_restores_row_stack(tmp_path):
    (tmp_path / "numpy.py").write_text("vstack = 'vstack'\n")
    path = os.pathsep.join([str(environment.SHIM), str(tmp_path)])
    code = "import numpy; print(numpy.row_stack)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "vstack\n", done.stderr


def test_version_imports_nothing():
    assert environment.version("numpy") == np.__version__
    assert environment.version("no_such_module") == "not installed"
    assert environment.version("no_such_package.core") == "not installed"


def test_environment_fails_without_gpu(tmp_path):
    env = {**os.environ, "PATH": str(tmp_path), "PYTHONPATH": str(runner.ROOT)}
    step = Step("environment", (sys.executable, "-m", "benchmarks.gpu_check.environment"))
    result = runner.run(step, 60.0, tmp_path / "log", env)
    assert result.status == FAILED
    assert "nvidia-smi is not installed" in result.detail
    assert "numba: " in Path(tmp_path / "log").read_text(encoding="utf-8")
