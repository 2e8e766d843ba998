from pathlib import Path

from weights.formats import paths
from weights.formats.paths import home, resolve, shown


def test_worked_example_home_is_the_clone_where_there_is_one():
    assert home() == Path(__file__).resolve().parent.parent


def test_worked_example_an_installed_package_lives_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "weights" / "paths.py"))
    monkeypatch.setattr(paths.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "llama-by-hand"


def test_property_the_current_folder_goes_first(tmp_path, monkeypatch):
    at_home, here = tmp_path / "home", tmp_path / "here"
    for folder in (at_home / "weights" / "mine", here / "mine"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "home", lambda: at_home)
    monkeypatch.chdir(here)
    assert resolve("mine", "weights") == Path("mine")
    (here / "mine").rmdir()
    assert resolve("mine", "weights") == at_home / "weights" / "mine"


def test_two_ways_a_name_with_and_without_its_kind_mean_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "home", lambda: tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    assert resolve("adapters/identity", "adapters") == resolve("identity", "adapters")
    assert resolve("weights/identity", "adapters") == tmp_path / "home" / "adapters" / "weights" / "identity"
    assert resolve(tmp_path / "anywhere", "adapters") == tmp_path / "anywhere"


def test_worked_example_a_path_is_shown_as_typed_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "weights" / "mine") == str(Path("weights") / "mine")
    assert shown(tmp_path.parent) == str(tmp_path.parent)
