"""The contract in `firstcli.api`: exports, defaults, and plugins of earlier versions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from firstcli import api, plugins
from firstcli.api import ModelFamily, PluginOptions, Recalibrator, Split, Task
from firstcli.errors import UserError

if TYPE_CHECKING:
    from firstcli.plugins import Kind


def test_everything_public_is_exported_at_run_time() -> None:
    assert len(set(api.__all__)) == len(api.__all__)
    for name in api.__all__:
        assert hasattr(api, name)
    assert {"UserError", "FloatArray", "BoolArray", "JSON", "MassMode"} <= set(api.__all__)


def test_defaults_of_the_contract() -> None:
    class Mine(Task[PluginOptions]):
        splits = ("train",)

        def load(self, split: str) -> Split:
            return Split([])

    assert Mine(PluginOptions()).sources("train") is None
    assert (Task.format, ModelFamily.format, Recalibrator.format) == (1, 1, 1)


def test_a_recalibrator_may_take_the_arguments_as_it_likes() -> None:
    class Mine(Recalibrator[PluginOptions]):
        def fit(self, *args: Any, **options: Any) -> None:
            pass

        def transform(self, topk: api.FloatArray) -> api.FloatArray:
            return topk

    assert Mine(PluginOptions()).diagnostics() == api.Diagnostics()


HEAD = "from firstcli.api import ModelFamily, PluginOptions, Recalibrator\n"
OLD_FIT = """
class Mine(Recalibrator[PluginOptions]):
    def fit(self, topk, is_true, mass): ...
    def transform(self, topk): return topk
"""
OLD_FLAG = """
class Mine(Recalibrator[PluginOptions]):
    keeps_ranks: bool = False
    def transform(self, topk): return topk
"""
INHERITED_FIT = """
class Fitting:
    def fit(self, topk, is_label, mass): ...
class Mine(Fitting, Recalibrator[PluginOptions]):
    def transform(self, topk): return topk
"""
OLD_FAMILY = """
class Mine(ModelFamily[PluginOptions]):
    def trained_model(self, folder, dtype): ...
"""
FLAG = "rename `keeps_ranks` to `order_preserving`"
ARGUMENTS = "let `fit` accept (topk, is_label, mass, mass_mode)"


@pytest.mark.parametrize(
    ("kind", "code", "changes"),
    [
        ("recalibrators", OLD_FIT, ARGUMENTS),
        ("recalibrators", OLD_FLAG, FLAG),
        ("recalibrators", INHERITED_FIT, ARGUMENTS),
        ("families", OLD_FAMILY, "rename `trained_model` to `load_trained`"),
    ],
)
def test_a_plugin_of_an_earlier_version_is_told_what_to_change(
    kind: Kind, code: str, changes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old_plugin.py").write_text(HEAD + code)
    info = tmp_path / "old_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: old-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[firstcli.{kind}]\nold = old_plugin:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "old_plugin", raising=False)
    with pytest.raises(UserError) as caught:
        plugins.load(kind, "old")
    assert (
        "'old' from old-plugin 1.2 cannot be imported: TypeError: class Mine was written for an "
        f"earlier version of firstcli: {changes} (old_plugin.py:"
    ) in str(caught.value)
