"""python -m fastemd: what it prints, saves and returns."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastemd
from fastemd import __main__ as command_line
from fastemd import commands
from fastemd.demo import COMMANDS, baselines, demonstration, figure3, table1
from fastemd.kernels.cpu import compiling

LISTED = ", ".join(COMMANDS + commands.COMMANDS)
ARGUMENTS = ["--batch", "3", "--repeats", "2"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


def test_main_checks_results_times_and_draws(path, capsys):
    assert command_line.main([*ARGUMENTS, "--picture", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "n_bins=1000, n_nodes=1374" in printed
    assert len(re.findall(r"^EMD\^[12] .* ok$", printed, re.M)) == 4
    for baseline in ("np.subtract", "fastemd, checked", "BLAS", "scipy"):
        assert re.search(rf"{baseline}.* ms +\[.*\].* x$", printed, re.M), baseline
    assert str(path) in printed
    assert path.read_bytes().startswith(b"\x89PNG")


def test_main_compiles_nothing_after_the_announced_compilation(path, capsys, monkeypatch):
    def compiled(*_arguments, **_keywords):
        raise AssertionError(f"compiled after {capsys.readouterr().out!r}")

    compile_kernels = demonstration.compile_kernels

    def compile_all(*arguments):
        compile_kernels(*arguments)
        monkeypatch.setattr(compiling.caching, "compiled", compiled)

    monkeypatch.setattr(demonstration, "compile_kernels", compile_all)
    compiling.kernel.cache_clear()
    assert command_line.main([*ARGUMENTS, "--picture", str(path)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^  emd_(?:value_and_grad|grad|flow)\b.* s$", printed, re.M)) == 4


def test_main_announces_imports_and_leaves_out_pot(path, capsys, monkeypatch):
    imported = []

    def installed(name):
        imported.append((name, capsys.readouterr().out))
        raise NotImplementedError

    monkeypatch.setattr(baselines, "installed", installed)
    assert command_line.main([*ARGUMENTS, "--picture", str(path)]) == 0
    ((name, printed),) = imported
    assert name == "torch"
    assert printed.endswith("Loading the other implementations ...\n")


def test_main_ends_with_next_steps_that_work(path, capsys):
    assert command_line.main([*ARGUMENTS, "--picture", str(path)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(demonstration.NEXT_STEPS + "\n")
    words = re.findall(r"python -m fastemd (\w+)", printed)
    assert words
    assert set(words) <= {*COMMANDS, *commands.COMMANDS}
    (loss,) = re.findall(r"loss = fastemd\.torch\.EMDLoss\((.*)\)$", printed, re.M)
    assert loss == "tree.scaled(mean_distance=3), rho=1, cross_entropy=1"  # as in the README
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"loss = fastemd.torch.EMDLoss({loss})" in readme


def test_main_fails_for_wrong_result(path, capsys, monkeypatch):
    right = fastemd.emd_value_and_grad

    def wrong(p, q, space, rho, **keywords):
        value, grad = right(p, q, space, rho, **keywords)
        return value, grad + np.float32(1e-4)

    monkeypatch.setattr(fastemd, "emd_value_and_grad", wrong)
    assert command_line.main([*ARGUMENTS, "--picture", str(path)]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.err
    assert "Next:" not in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "--batch must be at least 1"),
        (["--repeats", "-1"], "--repeats must be at least 1"),
        (["--picture", "no/such/folder/x.png"], "there is no folder"),
        (["--picture", "x.xyz"], "--picture must end in one of .png"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_main_rejects_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_by_products_agrees_with_tree_by_hand():
    tree = fastemd.Tree.from_parents([-1, 0, 0, 1, 1], weights=[0, 2, 1, 1, 3])
    ancestors, weight = baselines.ancestor_matrix(tree)
    p, q = np.array([[1.0, 0, 0]]), np.array([[0, 0.5, 0.5]])  # bins 2, 3, 4
    value, grad = baselines.emd_by_products(ancestors, weight, p, q, 1)
    assert value == [1 + 2 + 0.5 + 1.5]
    np.testing.assert_allclose(grad, [np.array([1, -3, -5]) + 7 / 3])
    value, grad = baselines.emd_by_products(ancestors, weight, p, q, 2)
    assert value == [1 + 2 + 0.25 + 0.75]
    np.testing.assert_allclose(grad, [np.array([2, -5, -7]) + 10 / 3])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "tabel1",
            f"unknown command 'tabel1'; expected one of {LISTED}; did you mean 'table1'?",
        ),
        (
            "Figure",
            f"unknown command 'Figure'; expected one of {LISTED}; did you mean 'figure3'?",
        ),
        ("xyz", f"unknown command 'xyz'; expected one of {LISTED}\n"),
    ],
)
def test_main_suggests_nearest_command(word, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main([word, "--quick"])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_main_prints_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fastemd {fastemd.__version__}\n"


def _interrupt_after(monkeypatch, module, name, calls):
    """Interrupt a function after the first calls."""
    function, count = getattr(module, name), iter(range(calls))

    def interrupted(*arguments, **keywords):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    monkeypatch.setattr(module, name, interrupted)


def test_main_exits_without_traceback_on_interrupt(path, capsys, monkeypatch):
    _interrupt_after(monkeypatch, demonstration, "measure", 0)
    assert command_line.main([*ARGUMENTS, "--picture", str(path)]) == 130
    printed = capsys.readouterr()
    assert len(re.findall(r"^EMD\^[12] .* ok$", printed.out, re.M)) == 4
    assert printed.err == ""
    assert not path.exists()


def test_main_clears_progress_bar_on_interrupt(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    _interrupt_after(monkeypatch, demonstration, "check", 0)
    assert command_line.main(ARGUMENTS) == 130
    assert capsys.readouterr().err == "\r\033[K"


def test_figure3_saves_finished_rows_on_interrupt(tmp_path, capsys, monkeypatch):
    _interrupt_after(monkeypatch, figure3, "sinkhorn", 3)
    assert command_line.main(["figure3", "--quick", "--folder", str(tmp_path)]) == 130
    lines = (tmp_path / "fastemd-figure3.csv").read_text().splitlines()
    printed = capsys.readouterr()
    assert lines[0].startswith("method,dtype")
    assert len(lines) == 4
    assert len(re.findall(r"^paper .* of 2$", printed.out, re.M)) == 3
    assert f"Numbers: {tmp_path / 'fastemd-figure3.csv'}" in printed.out
    assert printed.err == ""
    assert not (tmp_path / "fastemd-figure3.png").exists()


def test_table1_saves_finished_rows_on_interrupt(tmp_path, capsys, monkeypatch):
    n = len(table1.SINKHORN_BASELINES) - 1
    _interrupt_after(monkeypatch, table1, "_seconds", n + 1)
    assert command_line.main(["table1", "--quick", "--folder", str(tmp_path)]) == 130
    lines = (tmp_path / "fastemd-table1.csv").read_text().splitlines()
    printed = capsys.readouterr()
    assert len(lines) == 1 + n + 1 + 1  # the header, one row of the table, one cell of the next row
    assert len(re.findall(r"^SD, 2 iterations .*\d", printed.out, re.M)) == 1
    assert "SD, 5 iterations" not in printed.out
    assert f"Numbers: {tmp_path / 'fastemd-table1.csv'}" in printed.out
    assert printed.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_main_exits_with_130_on_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "fastemd", "figure3", "--folder", str(tmp_path)]
    # Background jobs of a shell ignore Ctrl-C, and so do the processes they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    table = tmp_path / "fastemd-figure3.csv"
    deadline = time.monotonic() + 300
    try:
        while not (table.exists() and table.read_text().count("\n") > 1):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == ""
    assert "paper float64" in out
    assert "SD / EMD" in out
