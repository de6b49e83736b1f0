"""Annotator `answer`: the teacher's distribution of the answer, and nothing else."""

from __future__ import annotations

from firstcli.api import Annotator, PluginOptions


class TeacherAnswer(Annotator[PluginOptions]):
    """Buys the teacher's top k at the answer position; the label stays unknown."""
