"""The label of the data, as people annotate questions."""

from __future__ import annotations

from typing import ClassVar

from firstcli.api import Annotator, Explained, PluginOptions, ToAnnotate


class BoughtLabel(Annotator[PluginOptions]):
    """The label of the data is bought, as from a person; the teacher says nothing.

    The student learns the data's own explanation, if there is one, and the right answer.
    """

    buys_label: ClassVar[bool] = True

    def annotate(self, item: ToAnnotate) -> Explained:
        assert item.right_answer is not None, "the label was not bought"
        return Explained(item.sample.steps, item.right_answer)
