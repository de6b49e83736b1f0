"""The student's own explanation and answer, as if a teacher had given them."""

from __future__ import annotations

from typing import ClassVar

from firstcli.annotators.lines import answer_among, one_line
from firstcli.api import Annotator, Explained, PluginOptions, ToAnnotate, Unparsable


class SelfTraining(Annotator[PluginOptions]):
    """The student learns what it wrote itself: self-training, which costs nothing.

    With the selector `knowledge-detection`, this is self-training through knowledge detection
    (arXiv 2406.11275), reduced to supervised training on the texts.
    """

    reads_explanation: ClassVar[bool] = True

    def annotate(self, item: ToAnnotate) -> Explained:
        if not item.answer.strip():
            raise Unparsable("the student's text has no answer")
        return Explained(item.explanation, answer_among(item.choices, one_line(item.answer)))
