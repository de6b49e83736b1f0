"""Figures without content, for runs whose report nobody looks at.

Drawing takes most of the time of a tiny run. All files of a report are written, but empty figures
save most of that time. Tests of reports and the fixture `finished` draw theirs.
"""

from __future__ import annotations

import pytest


def leave_blank(patch: pytest.MonkeyPatch) -> None:
    """Draw nothing in any panel while the patch lasts."""
    from firstcli.reporting import style  # imports matplotlib

    nothing = property(lambda panel: lambda place: None, lambda panel, draw: None)
    patch.setattr(style.Panel, "draw", nothing)
