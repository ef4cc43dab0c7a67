"""Builds the wheel, installs it in a foreign project, and runs that project's own tests.

Everything happens in a temporary folder, so that nothing can be imported from the sources.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

import django

ROOT = Path(__file__).resolve().parents[2]
APPS = {"conversations", "memory", "flags"}
ABOUT = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command, or end with its exit code."""
    finished = subprocess.run([str(part) for part in command], cwd=cwd, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def check_wheel(wheel: Path) -> None:
    """End unless the wheel holds the three apps, whole, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if tops != APPS:
        sys.exit(f"the wheel holds {sorted(tops)}, not {sorted(APPS)}")
    files = (path for app in APPS for path in (ROOT / app).rglob("*") if path.is_file())
    # Tests that run beside this one may be writing there.
    files = (path for path in files if "__pycache__" not in path.parts)
    sources = {path.relative_to(ROOT).as_posix() for path in files}
    if missing := sources - names:
        sys.exit(f"the wheel lacks {sorted(missing)}")


def check_sdist(sdist: Path) -> None:
    """End if the sdist holds more than the apps and the files about them."""
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    if extra := tops - APPS - ABOUT:
        sys.exit(f"the sdist holds {sorted(extra)} as well")


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="conversation-store-host-"))
    try:
        run(sys.executable, "-m", "hatchling", "build", "--directory", folder, cwd=ROOT)
        (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        check_wheel(wheel)
        check_sdist(sdist)
        shutil.copytree(ROOT / "tests" / "host" / "site", folder / "site")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*pip, wheel, f"Django=={django.__version__}", "psycopg[binary]", cwd=folder)
        site = folder / "site"
        manage = (python, "-W", "error", "manage.py")
        run(*manage, "migrate", "--verbosity", "0", cwd=site)
        run(*manage, "makemigrations", "--check", "--dry-run", cwd=site)
        run(*manage, "check", "--database", "default", "--fail-level", "WARNING", cwd=site)
        run(*manage, "test", cwd=site)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
