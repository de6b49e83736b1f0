"""Folders of the checkout, and the data beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "firstcli"
DOCS = ROOT / "docs"
PLUGINS = ROOT / "plugins"
TESTS = ROOT / "tests"
SHARED = ROOT.parent / "shared"
"""Real data and models, for tests marked `shared`, which skip without them."""
