"""Annotator `label`: the label of the data, as a human annotator would give it."""

from __future__ import annotations

from typing import ClassVar

from firstcli.api import Annotator, PluginOptions


class BoughtLabel(Annotator[PluginOptions]):
    """Buys the label of the data. The teacher says nothing, so no tokens are counted."""

    buys_label: ClassVar[bool] = True
