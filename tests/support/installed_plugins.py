"""A fixture that installs plugins: `pytest_plugins = ["support.installed_plugins"]`."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Protocol

import pytest

from firstcli.plugins import Kind, registry, source_code


class Install(Protocol):
    """Install a distribution with one module and its entry point, as pip would, or change it."""

    def __call__(
        self,
        package: str,
        code: str,
        *,
        kind: Kind | str = "recalibrators",
        name: str = "mine",
        target: str = "",
        version: str = "1.2",
    ) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a plugin; a second call with the same package edits its code or upgrades it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within a second is not seen

    def installed(
        package: str,
        code: str,
        *,
        kind: Kind | str = "recalibrators",
        name: str = "mine",
        target: str = "",
        version: str = "1.2",
    ) -> None:
        module = package.replace("-", "_")
        (site / f"{module}.py").write_text(code)
        for earlier in site.glob(f"{module}-*.dist-info"):
            shutil.rmtree(earlier)
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        points = f"[firstcli.{kind}]\n{name} = {target or f'{module}:Mine'}\n"
        (info / "entry_points.txt").write_text(points)
        monkeypatch.delitem(sys.modules, module, raising=False)
        # A real process sees neither a new nor an edited plugin.
        registry._scan.cache_clear()
        source_code._digest.cache_clear()
        importlib.invalidate_caches()

    return installed
