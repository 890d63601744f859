"""python -m fastemd unifrac and merge: the files they read and write, errors and exit codes."""

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from skbio import DistanceMatrix

import fastemd
from fastemd import __main__ as command_line
from fastemd import pair_sums
from fastemd.commands import files
from tests.support.frameworks import needed

TAXA, IDS = ["123", "007", "NA", "d e"], ["1", "02", "nan", "True", "s5"]
TREE = "((123:1,007:2):3,(NA:0.1,'d e':0.3):4,x:7);"
COUNTS = np.array([[1, 2, 0, 0], [0, 1, 5, 3], [3, 0, 0, 1], [0, 0, 0, 0], [7, 1, 1, 2]])
METRIC = "weighted_normalized"
REF = fastemd.unifrac(COUNTS, fastemd.Tree.from_newick(TREE), metric=METRIC, taxa=TAXA)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run a test in a folder that holds the tree, and the counts in two kinds of files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree.nwk").write_text(TREE)
    np.savez(tmp_path / "counts.npz", counts=COUNTS, ids=IDS, taxa=TAXA)
    write_text(tmp_path / "counts.tsv", IDS, TAXA, COUNTS)
    return tmp_path


def write_text(path, rows, columns, values, corner="", first="", taxonomy=False):
    lines = [[corner, *columns], *([name, *v] for name, v in zip(rows, values, strict=True))]
    if taxonomy:
        for i, line in enumerate(lines):
            line.append(f"k__Bacteria; p__{i}" if i else "taxonomy")
    text = first + "".join("\t".join(map(str, line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_biom(path, binary):
    table = needed("biom").Table(COUNTS.T.astype(float), TAXA, IDS)
    if binary:
        with needed("h5py").File(path, "w") as file:
            table.to_hdf5(file, "tests")
    else:
        path.write_text(table.to_json("tests"))


def run(*arguments):
    return command_line.main([str(argument) for argument in arguments])


def unifrac(table="counts.npz", out="out.tsv", *options):
    return run("unifrac", table, "tree.nwk", "-m", METRIC, "-o", out, *options)


def read(path):
    """Return the names and the distances in an output."""
    if path.suffix == ".npy":
        names = path.with_suffix(".ids.txt").read_text().splitlines()
        return names, np.load(path)
    if path.suffix == ".tsv":
        header, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        assert [row[0] for row in rows] == header[1:]
        return header[1:], np.array([row[1:] for row in rows], float).reshape(len(rows), len(rows))
    with needed("h5py").File(path) as file:
        return [name.decode() for name in file["order"]], file["matrix"][()]


def assert_output(path, names=IDS, ref=REF):
    found, distances = read(path)
    assert found == names
    np.testing.assert_array_equal(distances, ref)


def assert_fails(capsys, message, code=1):
    """Assert one line of an error, and that no file was written."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error, error
    assert "Traceback" not in error
    assert not [path.name for path in files.Path().glob("out*")]
    return error


def assert_usage(capsys, message, *arguments):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# Input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, IDS, TAXA, COUNTS),
        lambda path: write_text(path, IDS, TAXA, COUNTS / 1.0, corner="sample"),
        lambda path: write_text(path, TAXA, IDS, COUNTS.T, corner="taxon"),
        lambda path: write_text(path, TAXA, IDS, COUNTS.T, corner="#OTU ID"),
        lambda path: write_text(
            path, TAXA, IDS, COUNTS.T, "#OTU ID", "# Constructed from biom file\n"
        ),
        lambda path: write_text(
            path, TAXA, IDS, COUNTS.T, "#OTU ID", "# Constructed from biom file\n", taxonomy=True
        ),
        lambda path: write_text(path, TAXA, IDS, COUNTS.T, taxonomy=True),
        lambda path: write_text(path, IDS, TAXA, COUNTS, first="\ufeff"),
        lambda path: path.write_bytes((path.parent / "counts.tsv").read_bytes()
                                      .replace(b"\n", b"\r\n")),
    ],
    ids=["samples in rows", "frequencies", "taxa in rows", "OTU ID", "Constructed", "both",
         "taxonomy", "byte order mark", "CRLF"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".tsv", ".txt"])
def test_unifrac_reads_text(write, suffix, folder):
    write(folder / f"table{suffix}")
    assert unifrac(f"table{suffix}") == 0
    assert_output(folder / "out.tsv")


@pytest.mark.parametrize("binary", [True, False], ids=["HDF5", "JSON"])
def test_unifrac_reads_biom(binary, folder):
    write_biom(folder / "table.biom", binary)
    assert unifrac("table.biom") == 0
    assert_output(folder / "out.tsv")


@pytest.mark.parametrize("taxa", [np.array(TAXA), np.array(TAXA, "S")])
def test_unifrac_reads_npz(taxa, folder):
    np.savez(folder / "table.npz", counts=COUNTS.astype(np.float32), ids=IDS, taxa=taxa)
    assert unifrac("table.npz") == 0
    assert_output(folder / "out.tsv")


def test_unifrac_reads_npz_with_numbers_as_names(folder):
    (folder / "tree.nwk").write_text("(1:1,(2:1,30:1):1);")
    np.savez(folder / "table.npz", counts=np.eye(3, dtype=int), ids=[5, 6, 7], taxa=[30, 1, 2])
    assert unifrac("table.npz") == 0
    names, distances = read(folder / "out.tsv")
    assert names == ["5", "6", "7"]
    np.testing.assert_array_equal(distances, [[0, 1, 0.5], [1, 0, 1], [0.5, 1, 0]])


def test_unifrac_reads_sparse_npz(folder):
    counts = np.pad(COUNTS, [(0, 0), (0, 1)])  # the tips of the tree, in its order
    scipy.sparse.save_npz(folder / "table.npz", scipy.sparse.csr_array(counts))
    assert unifrac("table.npz") == 0
    names, distances = read(folder / "out.tsv")
    assert names == ["0", "1", "2", "3", "4"]
    np.testing.assert_allclose(distances, REF, rtol=1e-12)


def test_unifrac_reads_numbers_exactly(folder, rng):
    counts = rng.random((5, 4))
    write_text(folder / "table.tsv", TAXA, IDS, counts.T)
    assert unifrac("table.tsv") == 0
    assert_output(folder / "out.tsv", ref=fastemd.unifrac(counts, TREE, metric=METRIC, taxa=TAXA))


@pytest.mark.parametrize("taxa_in_rows", [True, False])
def test_unifrac_finds_axis_of_taxa_among_common_names(taxa_in_rows, folder):
    """All names of one axis are tips, of the other some."""
    ids = ["123", "NA", "a", "b", "c"]
    table = (TAXA, ids, COUNTS.T) if taxa_in_rows else (ids, TAXA, COUNTS)
    write_text(folder / "table.tsv", *table)
    assert unifrac("table.tsv") == 0
    assert_output(folder / "out.tsv", ids)


# Output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["out.tsv", "out.h5", "out.hdf5", "out.npy"])
def test_unifrac_writes_exact_distances(out, folder):
    (folder / out).write_text("an older file")
    assert unifrac("counts.npz", out) == 0
    assert_output(folder / out)
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("out", ["out.tsv", "out.h5"])
def test_scikit_bio_reads_outputs(out, folder):
    assert unifrac("counts.npz", out) == 0
    result = DistanceMatrix.read(str(folder / out))
    assert list(result.ids) == IDS
    np.testing.assert_array_equal(result.data, REF)


@pytest.mark.parametrize("n_rows", [0, 1])
@pytest.mark.parametrize("out", ["out.tsv", "out.h5", "out.npy"])
def test_unifrac_writes_few_samples(out, n_rows, folder):
    np.savez(folder / "table.npz", counts=COUNTS[:n_rows], ids=IDS[:n_rows], taxa=TAXA)
    assert unifrac("table.npz", out) == 0
    assert_output(folder / out, IDS[:n_rows], np.zeros((n_rows, n_rows)))


@pytest.mark.parametrize("metric", ["unweighted", "generalized"])
def test_unifrac_passes_options(metric, folder):
    (folder / "tree.nwk").write_text("((123:1,007:-2):3,(NA:0.1,'d e':0.3),x:7);")
    options = ["--missing-length", "4", "--negative-length", "2.0", "-a", "0.25", "--quiet"]
    assert unifrac("counts.tsv", "out.npy", *options, "-m", metric) == 0
    ref = fastemd.unifrac(COUNTS, TREE, metric=metric, alpha=0.25, taxa=TAXA)
    assert_output(folder / "out.npy", ref=ref)


@pytest.mark.parametrize("out", ["out.tsv", "out.h5", "out.npy"])
@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError("no space"), 1)])
def test_unifrac_leaves_no_incomplete_output(error, code, out, folder, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(pair_sums.PairSums, "block", fail)
    before = sorted(folder.iterdir())
    assert unifrac("counts.npz", out) == code
    assert sorted(folder.iterdir()) == before
    assert capsys.readouterr().err == ("" if code == 130 else "fastemd unifrac: error: no space\n")


# Parts -------------------------------------------------------------------------------------------


@pytest.fixture
def many(folder, monkeypatch, rng):
    """Write a table of several blocks."""
    monkeypatch.setattr(pair_sums, "BLOCK_ROWS", 8)
    counts = rng.integers(0, 5, (37, 4))  # 15 blocks
    np.savez(folder / "many.npz", counts=counts, ids=[f"s{i}" for i in range(37)], taxa=TAXA)
    return "many.npz"


def write_parts(table, n, *options):
    for i in range(1, n + 1):
        assert unifrac(table, f"part{i}.npz", "--block", f"{i}/{n}", *options) == 0
    return [f"part{i}.npz" for i in range(1, n + 1)]


@pytest.mark.parametrize("n", [1, 2, 4, 17])
@pytest.mark.parametrize("out", ["tsv", "h5", "npy"])
def test_merge_of_parts_equals_whole(out, n, many, folder):
    assert unifrac(many, f"whole.{out}") == 0
    assert run("merge", *write_parts(many, n)[::-1], "-o", f"out.{out}") == 0
    names, distances = read(folder / f"whole.{out}")
    with np.load(many) as file:
        ref = fastemd.unifrac(file["counts"], TREE, metric=METRIC, taxa=TAXA)
    np.testing.assert_array_equal(distances, ref)
    assert_output(folder / f"out.{out}", names, distances)


def test_merge_of_parts_without_names(folder):
    scipy.sparse.save_npz("table.npz", scipy.sparse.csr_array(np.pad(COUNTS, [(0, 0), (0, 1)])))
    assert run("merge", *write_parts("table.npz", 2), "-o", "out.npy") == 0
    assert read(folder / "out.npy")[0] == ["0", "1", "2", "3", "4"]


def test_merge_names_missing_parts(many, capsys):
    parts = write_parts(many, 8)
    assert run("merge", parts[1], *parts[3:], "-o", "out.npy") == 1
    assert_fails(capsys, "no file of --block 1/8, 3/8; expected one of each")
    assert run("merge", parts[0], "-o", "out.npy") == 1
    assert_fails(capsys, "--block 2/8, 3/8, 4/8, 5/8, 6/8, ...; expected")


def test_merge_rejects_repeated_parts(many, capsys):
    parts = write_parts(many, 2)
    assert run("merge", *parts, parts[0], "-o", "out.npy") == 1
    assert_fails(capsys, "part1.npz: part 1 as well as part1.npz")


def test_merge_rejects_other_numbers_of_parts(many, capsys):
    assert unifrac(many, "third.npz", "--block", "2/3") == 0
    assert run("merge", write_parts(many, 2)[0], "third.npz", "-o", "out.npy") == 1
    assert_fails(capsys, "third.npz: one of 3 parts, but part1.npz is one of 2")


@pytest.mark.parametrize("other", ["metric", "counts", "tree", "lengths"])
def test_merge_rejects_parts_of_other_distances(other, many, folder, capsys):
    part = write_parts(many, 2)[0]
    options = ["--block", "2/2"]
    if other == "metric":
        options += ["-m", "unweighted"]
    elif other == "counts":
        with np.load(many) as file:
            np.savez(many, counts=file["counts"] + 1, ids=file["ids"], taxa=file["taxa"])
    elif other == "tree":
        (folder / "tree.nwk").write_text(TREE.replace("0.1", "0.2"))
    else:
        options += ["--missing-length", "1"]
    assert unifrac(many, "other.npz", *options) == 0
    assert run("merge", part, "other.npz", "-o", "out.npy") == 1
    assert_fails(capsys, "other.npz: a part of other distances than part1.npz; expected")


@pytest.mark.parametrize("content", [b"", b"text", b"npy", b"npz"])
def test_merge_rejects_other_files(content, folder, capsys):
    if content == b"npy":
        np.save("part.npy", COUNTS)
        (folder / "part.npy").rename("part.npz")
    elif content == b"npz":
        np.savez("part.npz", counts=COUNTS)
    else:
        (folder / "part.npz").write_bytes(content)
    assert run("merge", "part.npz", "-o", "out.npy") == 1
    assert_fails(capsys, "part.npz: not a part; expected a file of unifrac --block")


def test_merge_rejects_damaged_part(many, folder, capsys):
    parts = write_parts(many, 2)
    content = (folder / parts[1]).read_bytes()
    (folder / parts[1]).write_bytes(content[: len(content) // 2])
    assert run("merge", *parts, "-o", "out.npy") == 1
    assert_fails(capsys, "part2.npz: not a part")


def test_commands_keep_their_input(many, folder, capsys):
    part = write_parts(many, 2)[0]
    content = {path: path.read_bytes() for path in folder.iterdir()}
    message = ": is also an input; expected another file"
    for table, out, *options in (
        ("counts.tsv", "./counts.tsv"), (many, many, "--block", "1/2"),
    ):  # fmt: skip
        arguments = "unifrac", table, "tree.nwk", "-o", out, *options
        assert_usage(capsys, f"argument -o/--out: {Path(out)}{message}", *arguments)
    (folder / part).rename(folder / "part.npy")
    content[folder / "part.npy"] = content.pop(folder / part)
    assert_usage(capsys, f"part.npy{message}", "merge", "part.npy", "-o", "part.npy")
    assert {path: path.read_bytes() for path in folder.iterdir()} == content


def test_merge_rejects_part_with_damaged_block(many, folder, capsys):
    parts = write_parts(many, 2)
    with np.load(parts[0]) as file:
        block = next(name for name in file.files if name not in ("key", "part", "ids"))
        numbers = file[block].tobytes()
    content = (folder / parts[0]).read_bytes()
    assert content.count(numbers) == 1
    damaged = bytes([numbers[0] ^ 1]) + numbers[1:]
    (folder / parts[0]).write_bytes(content.replace(numbers, damaged))
    assert run("merge", *parts, "-o", "out.npy") == 1
    assert_fails(capsys, "part1.npz: damaged: ")
    assert not (folder / "out.npy").exists()


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["table.tsv", "table.biom", "table.npz"])
def test_unifrac_names_missing_files(table, folder, capsys):
    assert unifrac(table) == 1
    assert_fails(capsys, f"No such file or directory: '{table}'")
    (folder / "tree.nwk").unlink()
    assert unifrac() == 1
    assert_fails(capsys, "No such file or directory: 'tree.nwk'")
    assert run("merge", "part.npz", "-o", "out.npy") == 1
    assert_fails(capsys, "No such file or directory: 'part.npz'")


@pytest.mark.parametrize("suffix", ["biom", "npz", "tsv"])
@pytest.mark.parametrize("content", [b"", b"\x80\x81 no table", b"no table"])
def test_unifrac_rejects_files_that_are_no_table(content, suffix, folder, capsys):
    (folder / f"table.{suffix}").write_bytes(content)
    assert unifrac(f"table.{suffix}") == 1
    assert_fails(capsys, f"table.{suffix}: ")


def test_unifrac_rejects_unknown_kind_of_table(capsys):
    assert unifrac("counts.csv") == 1
    assert_fails(capsys, "counts.csv: unknown kind of table; expected .biom, .tsv, .txt, .npz")


def test_unifrac_rejects_npz_of_objects(folder, capsys):
    np.savez(folder / "table.npz", counts=COUNTS, taxa=np.array(TAXA, object), ids=IDS)
    assert unifrac("table.npz") == 1
    assert_fails(capsys, "expected numbers 'counts' and strings 'ids' and 'taxa'")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (["s", "t"], ["y", "z"], "table.tsv: neither rows nor columns have names of tips"),
        (["123", "007"], ["NA", "x"], "table.tsv: both the rows and the columns have names of "),
        (["123", "t"], ["NA", "y"], "table.tsv: both the rows and the columns have names of tips"),
        (["s", "t"], ["NA", "z"], "table.tsv: taxa: 1 of 2 are not bins of the tree: 'z'; "),
        (["s", "s"], ["NA", "x"], "table.tsv: ids: duplicate name 's'"),
        (["s", "t"], ["NA", "NA"], "table.tsv: taxa: duplicate name 'NA'"),
    ],
)
def test_unifrac_rejects_names_in_text(rows, columns, message, folder, capsys):
    write_text(folder / "table.tsv", rows, columns, [[1, 2], [3, 4]])
    assert unifrac("table.tsv") == 1
    assert_fails(capsys, message)


def test_unifrac_explains_first_line_of_ambiguous_text(folder, capsys):
    rows, columns, values = ["123", "007"], ["NA", "x"], [[1, 2], [3, 0]]
    write_text(folder / "table.tsv", rows, columns, values)
    assert unifrac("table.tsv") == 1
    assert_fails(capsys, "if they are the rows, let the first line start with '#OTU ID'")
    write_text(folder / "table.tsv", rows, columns, values, corner="#OTU ID")
    assert unifrac("table.tsv") == 0
    assert read(folder / "out.tsv")[0] == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\tNA\tx\ns\t1\tfew\n", "table.tsv: text or an empty cell in column 'x'; expected counts"),
        ("\tNA\tx\ns\t1\t\n", "table.tsv: text or an empty cell in column 'x'; expected counts"),
        ("NA\tx\ns\t1\t2\n", "table.tsv: 1 names of columns, but 2 columns; expected"),
        ("\tNA\tx\ns\t1\t2\nt\t1\t2\t3\n", "table.tsv: not a table of text with tabs: "),
        ("\tNA\tx\n", "table.tsv: not a table of text with tabs: "),
        ("\tNA\tx\ns\t-3\t1\n", "table.tsv: sample 's' has a negative mass, -3.0 at taxon 'NA'"),
        ("\tNA\tx\ns\t1\t2\nt\t1\tinf\n", "table.tsv: sample 't' is not finite, inf at taxon 'x'"),
    ],
)  # fmt: skip
def test_unifrac_rejects_values_in_text(text, message, folder, capsys):
    (folder / "table.tsv").write_text(text)
    assert unifrac("table.tsv") == 1
    assert_fails(capsys, message)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("(123:1,007:2)", "tree.nwk: not Newick: no ';' at the end"),
        ("(123,007);", "pass --missing-length 1.0 for edges of length 1"),
        ("((123:1,007:2),NA:1);", "pass --missing-length 0.0"),
        ("(123:1,007:-2);", "pass --negative-length 0.0 to replace negative lengths"),
    ],
)
def test_unifrac_names_options_in_errors_of_trees(tree, message, folder, capsys):
    (folder / "tree.nwk").write_text(tree)
    assert unifrac() == 1
    error = assert_fails(capsys, message)
    assert error.startswith("fastemd unifrac: error: tree.nwk: ")
    assert "_length" not in error


def test_unifrac_rejects_names_with_tabs(folder, capsys):
    np.savez(folder / "table.npz", counts=COUNTS, ids=["a\tb", *IDS[1:]], taxa=TAXA)
    for out in ("out.tsv", "out.npy"):
        assert unifrac("table.npz", out) == 1
        assert_fails(capsys, r"the name 'a\tb' holds a tab or line end; expected -o *.h5")
    assert unifrac("table.npz", "out.h5") == 0
    assert_output(folder / "out.h5", ["a\tb", *IDS[1:]])


@pytest.mark.parametrize(
    ("package", "table", "out"),
    [
        ("biom", "counts.biom", "out.tsv"),
        ("pandas", "counts.tsv", "out.tsv"),
        ("h5py", "counts.npz", "out.h5"),
        ("newick", "counts.npz", "out.tsv"),
    ],
)
def test_unifrac_names_extra_of_missing_packages(package, table, out, capsys, monkeypatch):
    find = importlib.import_module

    def without(name, *arguments):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return find(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", without)
    if package == "newick":
        monkeypatch.setitem(sys.modules, package, None)
    assert unifrac(table, out) == 1
    error = assert_fails(capsys, f"the package {package} is not installed; install it by pip")
    assert error.endswith("pip install 'fastemd[bio]'\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "euclid"], "invalid choice: 'euclid'"),
        (["-a", "1.5"], "argument -a/--alpha: expected a number from 0 to 1, got '1.5'"),
        (["-a", "x"], "argument -a/--alpha: expected a number from 0 to 1, got 'x'"),
        (["--missing-length", "-1"], "--missing-length: expected a number >= 0, got '-1'"),
        (["--negative-length", "inf"], "--negative-length: expected a number >= 0, got 'inf'"),
        (["--block", "3/2"], "argument --block: expected i/n with 1 <= i <= n, got '3/2'"),
        (["--block", "0/2"], "argument --block: expected i/n"),
        (["--block", "1/2"], "-o/--out: out.tsv: unknown kind of output; expected .npz"),
        (["-o", "out.csv"], "-o/--out: out.csv: unknown kind of output; expected .tsv, .h5, "),
        (["-o", "no/such/out.tsv"], f"out.tsv: there is no folder {Path('no', 'such')}"),
        (["--nonsense"], "unrecognized arguments"),
    ],
)
def test_unifrac_rejects_invalid_options_before_reading(options, message, capsys):
    arguments = ["unifrac", "missing.npz", "missing.nwk", "-o", "out.tsv", *options]
    assert_usage(capsys, message, *arguments)


def test_merge_rejects_invalid_options(capsys):
    assert_usage(capsys, "the following arguments are required", "merge")
    assert_usage(capsys, "there is no folder no", "merge", "part.npz", "-o", "no/out.npy")


# Help and processes ------------------------------------------------------------------------------


def run_process(*arguments):
    command = [sys.executable, "-m", "fastemd", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["python -m fastemd unifrac", "python -m fastemd merge", "table1"]),
        (["unifrac"], ["TABLE", "--block", "tips of the tree", "'#OTU ID'", ".npz", "--quiet"]),
        (["merge"], ["PART", ".tsv, .h5, .hdf5 or .npy"]),
    ],
)
def test_help_describes_commands(arguments, words, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, "--help")
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in text, word


def test_process_writes_distances(folder):
    process = run_process("unifrac", "counts.tsv", "tree.nwk", "-m", METRIC, "-o", "out.h5")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert_output(folder / "out.h5")


def test_process_exits_with_1_for_invalid_data(folder):
    (folder / "counts.tsv").write_text("\tNA\ty\ns\t1\t2\n")
    process = run_process("unifrac", "counts.tsv", "tree.nwk", "-o", "out.h5")
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr.startswith("fastemd unifrac: error: counts.tsv: taxa: 1 of 2 are not ")
    assert process.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_process_exits_with_130_on_ctrl_c(folder, rng):
    n, width = 12_000, 300
    (folder / "tree.nwk").write_text(f"({','.join(f't{i}:1' for i in range(width))});")
    np.savez(folder / "table.npz", counts=rng.integers(0, 9, (n, width), np.uint8))
    command = [sys.executable, "-m", "fastemd", "unifrac", "table.npz", "tree.nwk", "-o", "out.npy"]
    # Background jobs of a shell ignore Ctrl-C, and so do the processes they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 100
    try:
        while not (folder / "out.npy.partial").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "")
    assert not list(folder.glob("out*"))
