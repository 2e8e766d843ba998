"""Where things lie: `weights/`, `adapters/`, `data/` and `examples/` of the clone, or of the user's cache.

Try: in `resolve`, look at home first; tests/test_paths.py (test_property_the_current_folder_goes_first) fails, and a
model tuned in some project's folder would lose against an older one of the same name in the clone.
"""

import os
import sys
from pathlib import Path

KINDS = ("weights", "adapters", "data", "examples")


def home() -> Path:
    """The folder that holds `weights/`, `adapters/` and `data/`: the clone, or where there is none the user's cache.

    A clone is known by pyproject.toml beside the packages; an installed package has none there, and nothing should be
    written among the installed packages.
    """
    rooms = Path(__file__).resolve().parents[2]
    return rooms if (rooms / "pyproject.toml").is_file() else user_cache() / "llama-by-hand"


def resolve(name: str | Path, kind: str) -> Path:
    """The path meant by `name`: one that exists from here, else one at home, with or without the folder `kind` before.

    "identity" and "adapters/identity" both mean home()/adapters/identity, unless such a path exists in the current
    folder. The result need not exist: it is then the place to look for, or to make.
    """
    assert kind in KINDS, kind
    path = Path(name).expanduser()
    if path.is_absolute() or path.exists():
        return path
    inside = Path(*path.parts[1:]) if path.parts[:1] == (kind,) else path
    return home() / kind / inside


def data_files(names: list[str]) -> list[str]:
    """Data files by name: each is looked for here, then in the clone (or where there is none, the user's folder)."""
    return [str(home() / name) if not Path(name).exists() and (home() / name).exists() else name for name in names]


def shown(path: Path) -> str:
    """The path as a person would type it from here."""
    here, path = Path.cwd(), path.absolute()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def user_cache() -> Path:
    """Where programs of this user keep what can be made again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
