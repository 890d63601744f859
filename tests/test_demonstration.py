"""python -m fastemd: what it prints, saves and returns."""

import re

import numpy as np
import pytest

import fastemd
from fastemd import __main__ as demonstration
from fastemd import rivals

ARGUMENTS = ["--batch", "3", "--repeats", "2"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "picture.png"


def test_main__checks_times_and_draws(path, capsys):
    assert demonstration.main([*ARGUMENTS, "--picture", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "n_bins=1000, n_nodes=1374" in printed
    assert len(re.findall(r"^EMD\^[12] .* ok$", printed, re.M)) == 4
    for rival in ("np.subtract", "fastemd, checked", "BLAS", "scipy"):
        assert re.search(rf"{rival}.* ms +\[.*\].* x$", printed, re.M), rival
    assert str(path) in printed
    assert path.read_bytes().startswith(b"\x89PNG")


def test_main__fails_if_a_result_is_wrong(path, capsys, monkeypatch):
    right = fastemd.emd_value_and_grad

    def wrong(p, q, space, rho, **keywords):
        value, grad = right(p, q, space, rho, **keywords)
        return value, grad + np.float32(1e-4)

    monkeypatch.setattr(fastemd, "emd_value_and_grad", wrong)
    assert demonstration.main([*ARGUMENTS, "--picture", str(path)]) == 1
    assert "FAILED" in capsys.readouterr().err


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
def test_main__refuses_bad_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        demonstration.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_by_products__agrees_with_a_tree_done_by_hand():
    tree = fastemd.Tree.from_parents([-1, 0, 0, 1, 1], weights=[0, 2, 1, 1, 3])
    ancestors, weight = rivals.ancestor_matrix(tree)
    p, q = np.array([[1.0, 0, 0]]), np.array([[0, 0.5, 0.5]])  # bins 2, 3, 4
    value, grad = rivals.by_products(ancestors, weight, p, q, 1)
    assert value == [1 + 2 + 0.5 + 1.5]
    np.testing.assert_allclose(grad, [np.array([1, -3, -5]) + 7 / 3])
    value, grad = rivals.by_products(ancestors, weight, p, q, 2)
    assert value == [1 + 2 + 0.25 + 0.75]
    np.testing.assert_allclose(grad, [np.array([2, -5, -7]) + 10 / 3])
