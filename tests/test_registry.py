"""The registry lists without importing, and refuses what is not exactly one class per name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.registry import Registry


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "base.py").write_text("class Thing:\n    pass\n")
    (package / "apple.py").write_text("from shop.base import Thing\nclass Apple(Thing):\n    pass\n")
    (package / "two.py").write_text(
        "from shop.base import Thing\nclass A(Thing):\n    pass\nclass B(Thing):\n    pass\n"
    )
    (package / "broken.py").write_text("raise RuntimeError('imported')\n")
    (package / "_helper.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
        monkeypatch.delitem(sys.modules, name)
    return Registry("thing", "shop", "shop.base:Thing", "medvlp.test_things")


def test_names_come_without_import(plugins: Registry[object]) -> None:
    assert plugins.names() == ["apple", "broken", "two"]


def test_get_returns_the_class(plugins: Registry[object]) -> None:
    assert plugins.get("apple").__name__ == "Apple"


def test_two_classes_under_one_name_are_refused(plugins: Registry[object]) -> None:
    with pytest.raises(UserError, match="exactly one"):
        plugins.get("two")


def test_unknown_name_gets_the_nearest(plugins: Registry[object]) -> None:
    with pytest.raises(UserError, match="Did you mean 'apple'"):
        plugins.get("aple")


def test_importing_medvlp_is_light() -> None:
    code = (
        "import sys, medvlp, medvlp.types, medvlp.config.schema\n"
        "print([m for m in ('torch', 'pandas', 'mlflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
