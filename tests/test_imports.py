"""`import fastemd` loads submodules and frameworks only when they are used."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastemd

LAZY = ["boosting", "dask", "jax", "plotting", "torch"]
BOOSTING = ["lightgbm", "sklearn", "xgboost"]
CLASSIFIERS = {"LightGBMClassifier": "lightgbm", "XGBoostClassifier": "xgboost"}
MISSING = """
import sys
class Without:  # a finder that does not know some packages
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name in {names} else self.finder.find_spec(name, path, target)
sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""


def _run(code):
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import fastemd",
        "from fastemd import *",
        "import doctest, fastemd; doctest.DocTestFinder().find(fastemd)",
    ],
)
def test_import_loads_no_framework(statement):
    frameworks = ["torch", "jax", "dask", "matplotlib", "networkx", "pandas", "newick", "skbio"]
    modules = [*frameworks, *BOOSTING, *(f"fastemd.{name}" for name in LAZY)]
    code = f"{statement}\nimport sys\nprint([name for name in {modules} if name in sys.modules])"
    assert _run(code) == "[]\n"


@pytest.mark.parametrize("name", LAZY)
def test_import_loads_submodules_on_first_use(name):
    if name in ("dask", "jax", "torch"):
        pytest.importorskip(name)
    code = f"import fastemd, sys; print(fastemd.{name} is sys.modules['fastemd.{name}'])"
    assert _run(code) == "True\n"


@pytest.mark.parametrize("name", ["dask", "jax", "torch"])
@pytest.mark.parametrize("access", ["import fastemd.{0}", "import fastemd; fastemd.{0}"])
def test_import_names_extra_of_missing_framework(name, access):
    code = MISSING.format(names=[name]) + (
        f"try:\n    {access.format(name)}\nexcept ImportError as error:\n    print(error)"
    )
    missing = f"fastemd.{name}: the package {name} is not installed"
    assert _run(code) == f"{missing}; install it by pip install 'fastemd[{name}]'\n"


def test_boosting_imports_scikit_learn_for_classifiers_only():
    code = (
        "import fastemd.boosting, sys\nfastemd.boosting.lightgbm_metric(fastemd.Chain(2))\n"
        f"print([name for name in {BOOSTING} if name in sys.modules])"
    )
    assert _run(code) == "[]\n"


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("library", [False, True], ids=["scikit-learn", "library"])
def test_classifier_names_extra_of_missing_package(name, library):
    pytest.importorskip("sklearn")
    missing = CLASSIFIERS[name] if library else "sklearn"
    code = MISSING.format(names=[missing]) + (
        "import fastemd, pydoc\npydoc.render_doc(fastemd.boosting)\n"
        f"print('{name}' in dir(fastemd.boosting))\n"
        f"try:\n    fastemd.boosting.{name}(fastemd.Chain(2)).fit([[0], [1]], [0, 1])\n"
        "except ModuleNotFoundError as error:\n    print(error, error.name)"
    )
    wanted = (
        f"{library}\nfastemd.boosting: the package {missing} is not installed; "
        f"install it by pip install 'fastemd[boosting]' {missing}\n"
    )
    assert _run(code) == wanted


def test_from_newick_names_extra_of_missing_package():
    code = MISSING.format(names=["newick"]) + (
        "import fastemd\ntry:\n    fastemd.Tree.from_newick('(a:1,b:1);')\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    missing = "fastemd.Tree.from_newick: the package newick is not installed"
    assert _run(code) == f"{missing}; install it by pip install 'fastemd[bio]'\n"


def test_from_skbio_imports_no_package():
    code = MISSING.format(names=["newick", "skbio"]) + (
        "import fastemd, types\n"
        "node = types.SimpleNamespace(children=[], name='a', length=None)\n"
        "print(fastemd.Tree.from_skbio(node).to_newick())"
    )
    assert _run(code) == "a;\n"


def test_boosting_raises_attribute_error_for_unknown_name():
    code = (
        "import fastemd\ntry:\n    fastemd.boosting.CatBoost\nexcept AttributeError as error:\n"
        "    print(error)"
    )
    assert _run(code) == "module 'fastemd.boosting' has no attribute 'CatBoost'\n"


@pytest.mark.parametrize("name", ["dask", "jax", "torch"])
def test_import_raises_error_of_broken_framework(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("import no_such_dependency")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport fastemd\n"
        f"try:\n    fastemd.{name}\nexcept ImportError as error:\n    print(error)"
    )
    assert _run(code) == "No module named 'no_such_dependency'\n"


def test_dir_lists_submodules_and_help_works_without_frameworks():
    code = MISSING.format(names=["dask", "jax", "torch"]) + (
        "import fastemd, pydoc\nprint(sorted(dir(fastemd)))\npydoc.render_doc(fastemd)"
    )
    listed = _run(code)
    assert all(f"'{name}'" in listed for name in ["boosting", "emd", "plotting", "__version__"])
    assert not any(f"'{name}'" in listed for name in ["dask", "jax", "torch"])


def test_dir_lists_installed_frameworks_without_importing_them():
    pytest.importorskip("torch")
    code = "import fastemd, sys; print('torch' in dir(fastemd), 'torch' in sys.modules)"
    assert _run(code) == "True False\n"


def test_import_of_metrics_loads_no_framework():
    code = (
        "import fastemd.metrics, sys\ntry:\n    fastemd.metrics.EMDmetric\n"
        "except AttributeError as error:\n    print(error)\n"
        "print(dir(fastemd.metrics) and {'torch', 'torchmetrics'} & set(sys.modules))"
    )
    assert _run(code) == "module 'fastemd.metrics' has no attribute 'EMDmetric'\nset()\n"


def test_import_names_extra_of_missing_torchmetrics():
    pytest.importorskip("torch")
    code = MISSING.format(names=["torchmetrics"]) + (
        "import fastemd.metrics\nprint('EMDMetric' in dir(fastemd.metrics))\n"
        "try:\n    fastemd.metrics.EMDMetric\nexcept ImportError as error:\n    print(error)"
    )
    missing = "fastemd.metrics.EMDMetric: the package torchmetrics is not installed"
    install = "install it by pip install 'fastemd[torchmetrics]'"
    assert _run(code) == f"False\n{missing}; {install}\n"


def test_import_raises_attribute_error_for_unknown_name():
    code = (
        "import fastemd\ntry:\n    fastemd.emdd\nexcept AttributeError as error:\n    print(error)"
    )
    assert _run(code) == "module 'fastemd' has no attribute 'emdd'\n"


def test_import_loads_no_framework_and_compiles_nothing():
    heavy = {"torch", "jax", "cupy", "numba.cuda", "matplotlib", "networkx", "scipy.cluster"}
    code = f"import sys, fastemd; print([m for m in {sorted(heavy)} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_import_loads_no_framework_for_numpy():
    code = (
        "import sys, numpy, fastemd; fastemd.emd([1, 0], numpy.array([0, 1]), fastemd.Chain(2), 2);"
        "print({'torch', 'jax', 'jaxlib', 'cupy', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_docstrings_import_frameworks_only_in_their_packages():
    """All other examples run with the packages of the extra `test`."""
    frameworks = r"torch|jax|torchmetrics|lightgbm|xgboost|sklearn"
    package = Path(fastemd.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] not in LAZY:
            text = path.read_text(encoding="utf-8")
            assert not re.findall(rf">>> (?:import|from) .*\b(?:{frameworks})\b", text), path
