"""python -m fastemd table1 and figure3: what they print, save and measure."""

import csv

import numpy as np
import pytest

from fastemd import __main__ as command_line
from fastemd.demo import COMMANDS, figure3, table1
from fastemd.progress import Progress


def _table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_figure3_quick_writes_table_and_picture(tmp_path, capsys):
    assert command_line.main(["figure3", "--quick", "--folder", str(tmp_path)]) == 0
    rows = _table(tmp_path / "fastemd-figure3.csv")
    assert (tmp_path / "fastemd-figure3.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "fastemd-figure3.csv") in capsys.readouterr().out
    assert {row["dtype"] for row in rows} == {"float32", "float64"}
    assert len({row["lam"] for row in rows}) * 4 == len(rows)
    assert any(int(row["failed"]) for row in rows if row["dtype"] == "float32")
    assert not any(int(row["failed"]) for row in rows if row["method"] == "log")
    for row in rows:
        assert np.isnan(float(row["ratio"])) == (row["failed"] == row["rows"])
    # With enough iterations at a small lambda, entropy makes the transport plan more expensive.
    assert 1.0 < float(rows[0]["ratio"]) < 2.0


def test_table1_quick_writes_table_and_picture(tmp_path, capsys):
    assert command_line.main(["table1", "--quick", "--folder", str(tmp_path)]) == 0
    rows = _table(tmp_path / "fastemd-table1.csv")
    assert (tmp_path / "fastemd-table1.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "EMD^2" in printed
    assert "SD, 2 iterations" in printed
    times = {(row["gradient"], row["implementation"]): row["milliseconds"] for row in rows}
    assert float(times["EMD^2", "fastemd"]) < float(times["SD, 5 iterations", "fastemd"])
    assert times["EMD^2", table1.NO_CUDA] == ""
    assert not {row["implementation"] for row in rows} & set(table1.PAPER)  # other batch size
    assert "the paper" not in printed


def _missing(*_):
    raise NotImplementedError


def test_table1_states_scaled_and_missing_baselines(monkeypatch):
    monkeypatch.setitem(table1.SINKHORN_BASELINES, "loop (torch)", _missing)
    cells = list(table1.cells(4, (1, 101), part=2, repeats=1))
    found = {(cell.gradient, cell.implementation): cell for cell in cells}
    assert found["SD, 101 iterations", "fastemd"].rows_timed == 2
    assert "scaled up" in found["SD, 101 iterations", "fastemd"].note
    assert found["SD, 1 iterations", "fastemd"].note == ""
    assert found["SD, 1 iterations", "loop (torch)"].note == "not installed"
    text = "\n".join(table1.as_lines(cells, 4))
    assert text.count("SD, ") == 2
    assert "not installed" in text
    assert "*" in text


def test_table1_has_figures_of_paper_for_its_batch(monkeypatch, tmp_path):
    """Two columns, CPU and GPU, in the order of the printed table."""
    for name in table1.TIMED:
        monkeypatch.setitem(table1.SINKHORN_BASELINES, name, _missing)
    monkeypatch.setattr(table1, "PAPER_BATCH", 4)
    cells = list(table1.cells(4, (10, 100, 1000), part=2, repeats=1))
    cpu, gpu = "the paper (CPU)", "the paper (GPU)"
    assert table1.columns(4)[-2:] == [cpu, gpu]
    paper = [cell for cell in cells if cell.implementation in (cpu, gpu)]
    assert [(cell.gradient, cell.implementation, cell.milliseconds) for cell in paper] == [
        ("SD, 10 iterations", cpu, 942),
        ("SD, 10 iterations", gpu, 15.1),
        ("SD, 100 iterations", cpu, 7510),
        ("SD, 100 iterations", gpu, 88.9),
        ("SD, 1000 iterations", cpu, 74500),
        ("SD, 1000 iterations", gpu, 865),
        ("EMD^2", cpu, 126),
        ("EMD^2", gpu, 25),
    ]
    for cell in paper:
        assert cell.note == ("i5-6600K" if cell.implementation == cpu else "GTX 1080")
    lines = list(table1.as_lines(cells, 4))
    assert lines[1].split("  ")[-1].strip() == gpu
    assert [line.split()[-2:] for line in lines[2:6]] == [
        ["942", "15.1"],
        ["7510", "88.9"],
        ["74500", "865"],
        ["126", "25"],
    ]
    assert sum("i5-6600K" in line and "GTX 1080" in line for line in lines) == 1
    table1.draw(cells, 4, tmp_path / "table1.png")
    assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_reject_invalid_options(command, capsys):
    with pytest.raises(SystemExit):
        command_line.main([command, "--folder", "no/such/folder"])
    assert "there is no folder" in capsys.readouterr().err


def test_progress_shows_remaining_time_on_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress(4)
    progress.add(1)
    progress.add(3)
    shown = capsys.readouterr().err
    assert " 25%" in shown
    assert "s left" in shown
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    Progress(4).add(1)
    assert capsys.readouterr().err == ""


def test_cosine_distance_ignores_constants_and_norms(rng):
    a = rng.standard_normal((3, 9))
    np.testing.assert_allclose(figure3.cosine_distance(a, 3 * a + 7), 0, atol=1e-12)
    np.testing.assert_allclose(figure3.cosine_distance(a, -a), 2)
