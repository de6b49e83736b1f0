"""Options that all annotators share whose text the teacher writes."""

from __future__ import annotations

from pydantic import Field

from firstcli.annotators.lines import AnswerForm
from firstcli.api import PluginOptions, WritingSettings
from firstcli.api.sampling import Temperature, TopP


class WritingOptions(PluginOptions):
    """How the teacher writes, and the form of the answer."""

    answer: AnswerForm = Field(
        "Answer: {answer}", description="form of the line with the answer, the last one"
    )
    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    max_new_tokens: int = Field(
        512, ge=1, description="tokens after which a text is cut off, which makes it unparsable"
    )

    @property
    def writing(self) -> WritingSettings:
        """These options as the settings of the teacher."""
        return WritingSettings(self.temperature, self.top_p, self.max_new_tokens)
