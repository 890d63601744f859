"""Build the sdist and the wheel, check their contents, and test both in a new environment.

    python tools/check_release.py dist
    python tools/check_release.py dist --no-sdist-tests
    python tools/check_release.py dist --tag v0.2.0

The wheel is built from the sdist. It is installed with the interpreter that runs this script, and
the demonstration runs in another folder. The tests of the unpacked sdist are collected, and a few
of them run, except with --no-sdist-tests. With --tag, the tag and the changelog must have the
version of the package. Needs the package `build`.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_IN_SDIST = (".ci/",)
SDIST_TESTS = ("tests/test_spaces.py", "tests/test_release.py")
# With CI, the tests of missing frameworks fail.
UNSET_VARIABLES = ("CI", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
VERSIONS = (
    "import fastemd, importlib.metadata as m; print(fastemd.__version__, m.version('fastemd'))"
)


def expect(condition, message):
    if not condition:
        sys.exit(f"check_release: {message}")


def run(*command, cwd=ROOT):
    """Run a command without the paths and the settings of this checkout; return its output."""
    print("$", *command, flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in UNSET_VARIABLES}
    environment["MPLBACKEND"] = "Agg"
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    expect(done.returncode == 0, f"failed, exit code {done.returncode}:\n{done.stdout}")
    return done.stdout


def tracked_files():
    """Return the files in git that a release contains."""
    names = run("git", "ls-files", "-z").split("\0")
    return {name for name in names if name and not name.startswith(NOT_IN_SDIST)}


def build(folder):
    """Return the sdist and the wheel."""
    for pattern in ("*.tar.gz", "*.whl"):
        expect(not list(folder.glob(pattern)), f"{folder} holds {pattern}; pass an empty folder")
    run(sys.executable, "-m", "build", "--outdir", str(folder))
    (sdist,), (wheel,) = folder.glob("fastemd-*.tar.gz"), folder.glob("fastemd-*.whl")
    return sdist, wheel


def check_contents(sdist, wheel, tracked):
    """Check that the sdist has the files in git, and the wheel those of the package."""
    version = sdist.name.removeprefix("fastemd-").removesuffix(".tar.gz")
    expect(wheel.name == f"fastemd-{version}-py3-none-any.whl", f"unexpected wheel {wheel.name}")
    with tarfile.open(sdist) as file:
        members = {name.partition("/")[2] for name in file.getnames()}
    missing, extra = tracked - members, members - tracked - {"PKG-INFO"}
    expect(not missing and not extra, f"{sdist.name}: missing {missing}, not in git {extra}")
    with zipfile.ZipFile(wheel) as file:
        members = {name for name in file.namelist() if not name.startswith("fastemd-")}
        licences = [
            name.partition(".dist-info/licenses/")[2]
            for name in file.namelist()
            if ".dist-info/licenses/" in name
        ]
    package = {name for name in tracked if name.startswith("fastemd/")}
    expect(members == package, f"{wheel.name}: differs from git in {members ^ package}")
    expected = licence_files()
    expect(
        sorted(licences) == sorted(expected),
        f"{wheel.name}: licence files {licences}; expected {expected}",
    )
    return version


def licence_files():
    """Return the names of the licence files in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["license-files"]


def check_tag(tag, version):
    expect(tag == f"v{version}", f"tag {tag!r} of version {version}; expected 'v{version}'")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## (.*)$", changelog, re.M)[1]
    expect(
        re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading),
        f"CHANGELOG.md: the first heading is {heading!r}; expected '{version} (YYYY-MM-DD)'",
    )


def check_installed(wheel, version, work):
    """Install the wheel in a new environment, run the demonstration, and return the interpreter."""
    venv.create(work / "venv", with_pip=True, symlinks=os.name != "nt")
    python = str(work / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    run(python, "-m", "pip", "install", "--quiet", str(wheel))
    run(python, "-m", "pip", "check")
    folder = work / "demonstration"
    folder.mkdir()
    versions = run(python, "-c", VERSIONS, cwd=folder).split()
    expect(versions == [version, version], f"installed versions {versions}, expected {version}")
    print(run(python, "-m", "fastemd", "--batch", "8", "--repeats", "2", cwd=folder))
    expect((folder / "fastemd-demo.png").stat().st_size > 0, "the demonstration saved nothing")
    return python


def run_sdist_tests(sdist, wheel, version, work, python):
    """Collect the tests of the unpacked sdist, and run a few of them with the installed wheel."""
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[test]")
    with tarfile.open(sdist) as file:
        file.extractall(work, filter="data")
    unpacked = work / f"fastemd-{version}"
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    print(run(*pytest, "--collect-only", cwd=unpacked).splitlines()[-1])
    print(run(*pytest, *SDIST_TESTS, cwd=unpacked).splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to save the sdist and the wheel")
    parser.add_argument("--tag", help="the tag of the release, for example v0.2.0")
    parser.add_argument("--no-sdist-tests", action="store_true", help="run no tests of the sdist")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sdist, wheel = build(options.folder.resolve())
    version = check_contents(sdist, wheel, tracked_files())
    if options.tag:
        check_tag(options.tag, version)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        folder = Path(work).resolve()
        python = check_installed(wheel, version, folder)
        if not options.no_sdist_tests:
            run_sdist_tests(sdist, wheel, version, folder, python)
    print(f"fastemd {version}: sdist and wheel are complete and work")


if __name__ == "__main__":
    main()
