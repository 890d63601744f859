"""Files that repeat what pyproject.toml and the package define."""

import re
import tomllib
from pathlib import Path

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
    python, *others = recipe["requirements"]["run"]
    assert others == [_conda(each) for each in PROJECT["dependencies"]]
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
    heading = re.search(r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", changelog, re.M)
    assert heading[1] == fastemd.__version__


def test_workflows_test_pythons_of_classifiers():
    for name, job in (("tests", "base"), ("release", "install")):
        workflow = _yaml(f".github/workflows/{name}.yml")
        matrix = workflow["jobs"][job]["strategy"]["matrix"]
        assert matrix["python"] == PYTHONS
        assert [each.partition("-")[0] for each in matrix["os"]] == ["ubuntu", "macos", "windows"]


def test_citation_has_licence_of_package():
    citation = _yaml("CITATION.cff")
    assert citation["license"] == PROJECT["license"]
    assert "version" not in citation  # the package defines it
