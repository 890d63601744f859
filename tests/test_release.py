"""Files that repeat what pyproject.toml and the package define, and the check of a release."""

import importlib.util
import io
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import fastemd

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
CONDA_NAMES = {"matplotlib": "matplotlib-base"}  # without Qt


def _yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def _conda(requirement):
    """Return a requirement of pip as conda spells it."""
    name, sign, version = re.fullmatch(r"([\w-]+)(>=)([\d.]+)", requirement).groups()
    return f"{CONDA_NAMES.get(name, name)} {sign}{version}"


def test_recipe_has_dependencies_of_package():
    recipe = _yaml("recipe/recipe.yaml")
    python, *packages = recipe["requirements"]["run"]
    assert packages == [_conda(each) for each in PROJECT["dependencies"]]
    assert python == "python >=${{ python_min }}"
    assert f">={recipe['context']['python_min']}" == PROJECT["requires-python"]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert {_conda(each) for each in build["requires"]} <= set(recipe["requirements"]["host"])


def test_recipe_has_version_and_licences_of_package():
    recipe = _yaml("recipe/recipe.yaml")
    assert recipe["context"]["version"] == fastemd.__version__
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == PROJECT["license-files"]


def test_changelog_starts_with_version_of_package():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## (.*)$", changelog, re.M)[1]
    version, date = re.fullmatch(r"(\S+) \((.*)\)", heading).groups()
    assert version == fastemd.__version__
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", date)


def test_workflows_test_pythons_of_classifiers():
    for name, job in (("tests", "base"), ("release", "install")):
        workflow = _yaml(f".github/workflows/{name}.yml")
        matrix = workflow["jobs"][job]["strategy"]["matrix"]
        assert matrix["python"] == PYTHONS
        assert [each.partition("-")[0] for each in matrix["os"]] == ["ubuntu", "macos", "windows"]


def test_release_publishes_after_all_other_jobs():
    jobs = _yaml(".github/workflows/release.yml")["jobs"]
    assert set(jobs.pop("publish")["needs"]) == set(jobs)
    assert jobs["tests"]["uses"] == "./.github/workflows/tests.yml"
    assert "workflow_call" in _yaml(".github/workflows/tests.yml")[True]  # YAML 1.1 reads on so


def test_citation_has_licence_of_package():
    citation = _yaml("CITATION.cff")
    assert citation["license"] == PROJECT["license"]
    assert "version" not in citation  # the package defines it


# tools/check_release.py ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def check_release():
    path = ROOT / "tools" / "check_release.py"
    spec = importlib.util.spec_from_file_location("check_release", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRACKED = {"pyproject.toml", "fastemd/__init__.py", "tests/__init__.py"}
LICENCES = [f"fastemd-1.0.dist-info/licenses/{name}" for name in PROJECT["license-files"]]


def _archives(folder, in_sdist, in_wheel):
    sdist, wheel = folder / "fastemd-1.0.tar.gz", folder / "fastemd-1.0-py3-none-any.whl"
    with tarfile.open(sdist, "w:gz") as file:
        for name in in_sdist:
            file.addfile(tarfile.TarInfo(f"fastemd-1.0/{name}"), io.BytesIO())
    with zipfile.ZipFile(wheel, "w") as file:
        for name in in_wheel:
            file.writestr(name, "")
    return sdist, wheel


def test_check_contents_returns_version(check_release, tmp_path):
    archives = _archives(tmp_path, [*TRACKED, "PKG-INFO"], ["fastemd/__init__.py", *LICENCES])
    assert check_release.check_contents(*archives, TRACKED) == "1.0"


@pytest.mark.parametrize(
    ("in_sdist", "in_wheel", "message"),
    [
        (TRACKED - {"tests/__init__.py"}, ["fastemd/__init__.py"], "missing.*tests/__init__.py"),
        (TRACKED | {"notes.txt"}, ["fastemd/__init__.py"], "not in git.*notes.txt"),
        (TRACKED, ["fastemd/__init__.py", "tests/__init__.py"], "differs from git.*tests"),
        (TRACKED, [], "differs from git.*fastemd"),
        (TRACKED, ["fastemd/__init__.py", "fastemd-1.0.dist-info/licenses/MIT"], "licence files"),
    ],
)
def test_check_contents_rejects_missing_or_extra_files(
    in_sdist, in_wheel, message, check_release, tmp_path
):
    archives = _archives(tmp_path, in_sdist, [*in_wheel, *LICENCES])
    with pytest.raises(SystemExit, match=message):
        check_release.check_contents(*archives, TRACKED)


def test_check_tag_rejects_other_version(check_release):
    with pytest.raises(SystemExit, match=r"tag 'v1\.0' of version 0\.2\.0; expected 'v0\.2\.0'"):
        check_release.check_tag("v1.0", "0.2.0")


@pytest.mark.parametrize(
    ("heading", "passes"),
    [
        ("## 1.0 (2027-01-31)", True),
        ("## 1.0 (unreleased)", False),
        ("## 2.1.0 (2027-01-31)", False),
        ("## 1.1 (unreleased)\n\n## 1.0 (2027-01-31)", False),
    ],
)
def test_check_tag_requires_heading_with_date(
    heading, passes, check_release, tmp_path, monkeypatch
):
    monkeypatch.setattr(check_release, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n", encoding="utf-8")
    if passes:
        check_release.check_tag("v1.0", "1.0")
    else:
        with pytest.raises(SystemExit, match=r"expected '1\.0 \(YYYY-MM-DD\)'"):
            check_release.check_tag("v1.0", "1.0")
