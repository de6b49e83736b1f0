"""Options that all annotators share whose text the teacher writes."""

from __future__ import annotations

from pydantic import Field

from firstcli.annotators.lines import AnswerForm
from firstcli.api import PluginOptions, WritingSettings


class WritingOptions(PluginOptions):
    """How the teacher writes, and the form of the answer."""

    answer: AnswerForm = Field(
        "Answer: {answer}", description="form of the line with the answer, the last one"
    )
    temperature: float = Field(
        0.0,
        ge=0,
        description="temperature of the next token's distribution; 0 always takes the most likely "
        "token",
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="sample from the fewest most likely tokens whose probabilities sum to at least "
        "this",
    )
    max_new_tokens: int = Field(
        512, ge=1, description="tokens after which a text is cut off, which makes it unparsable"
    )

    @property
    def writing(self) -> WritingSettings:
        """These options as the settings of the teacher."""
        return WritingSettings(self.temperature, self.top_p, self.max_new_tokens)
