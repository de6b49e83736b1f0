"""The public contract for plugin authors: samples and all kinds of plugins.

This package does not import torch or transformers, so a recipe that names a plugin loads quickly.
`firstcli.testing` checks the requirements that are stated here.
"""

from firstcli.api.augmenters import Augmenter, PromptField, TrainingPrompt, WritingSettings
from firstcli.api.contract import (
    JSON,
    Adaptation,
    BoolArray,
    ChatMessage,
    ChatRole,
    DataPath,
    DataPaths,
    Dtype,
    FloatArray,
    IntArray,
    MassMode,
    ModelFamily,
    ModelRef,
    PluginOptions,
    ResponseTokens,
    Sample,
    SourcedStr,
    Split,
    Task,
)
from firstcli.api.recalibrators import (
    RESERVED_FACTS,
    Curve,
    Diagnostics,
    FitInputs,
    Recalibrator,
    TopKRows,
)
from firstcli.api.remote import (
    CandidateQuery,
    RemoteFamily,
    RemoteScorer,
    RemoteUsage,
    TokenQuery,
    TopTokens,
)
from firstcli.api.selectors import (
    POOL_FIELDS,
    AnswerSampling,
    Pool,
    Selector,
    Thought,
    seeded_number,
)
from firstcli.api.usage import ChoiceForm, InputField, Label, TaskUsage
from firstcli.errors import UserError

__all__ = [
    "JSON",
    "POOL_FIELDS",
    "RESERVED_FACTS",
    "Adaptation",
    "AnswerSampling",
    "Augmenter",
    "BoolArray",
    "CandidateQuery",
    "ChatMessage",
    "ChatRole",
    "ChoiceForm",
    "Curve",
    "DataPath",
    "DataPaths",
    "Diagnostics",
    "Dtype",
    "FitInputs",
    "FloatArray",
    "InputField",
    "IntArray",
    "Label",
    "MassMode",
    "ModelFamily",
    "ModelRef",
    "PluginOptions",
    "Pool",
    "PromptField",
    "Recalibrator",
    "RemoteFamily",
    "RemoteScorer",
    "RemoteUsage",
    "ResponseTokens",
    "Sample",
    "Selector",
    "SourcedStr",
    "Split",
    "Task",
    "TaskUsage",
    "Thought",
    "TokenQuery",
    "TopKRows",
    "TopTokens",
    "TrainingPrompt",
    "UserError",
    "WritingSettings",
    "seeded_number",
]
