"""Wheel and sdist hold the whole package, links resolved, and work where there is no checkout."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from tests.building import build

ROOT = Path(__file__).parents[2]
ROLES = ("server", "clients", "strategies", "privacy")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    out = tmp_path_factory.mktemp("dist")
    build(out)
    return out


def test_the_wheel_holds_every_role_as_files(built: Path) -> None:
    """The four folders are in the wheel under isthmus/, and nothing lands beside it."""
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    for role in ROLES:
        assert f"isthmus/{role}/__init__.py" in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"isthmus"}
    assert {"isthmus/py.typed", "isthmus/report/result.schema.json", "isthmus/report/report.html"} <= set(names)
    assert {"isthmus/report/study.schema.json", "isthmus/report/study.html"} <= set(names)


def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    """An sdist unpacked elsewhere builds a wheel with the same files."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "again"), str(source)],
        check=True,
        capture_output=True,
    )
    first = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    second = set(zipfile.ZipFile(next((tmp_path / "again").glob("*.whl"))).namelist())
    assert first == second


def test_the_installed_wheel_runs_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    """`isthmus` from the wheel works without the checkout; dependencies are borrowed from this environment."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    Path(site, "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    isthmus = tmp_path / "venv" / "bin" / "isthmus"
    subprocess.run([isthmus, "demo", "demo"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        [isthmus, "calibrate", "demo/dining", "--json"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert '"noise_multiplier"' in done.stdout
    where = subprocess.run(
        [python, "-c", "import isthmus; print(isthmus.__file__)"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert str(tmp_path) in where
