"""The public contract for plugin authors: samples and all kinds of plugins.

This package does not import torch or transformers, so a recipe that names a plugin loads quickly.
`firstcli.testing` checks the requirements that are stated here.
"""

from firstcli.api.annotators import Annotation, Annotator, Explained, ToAnnotate, Unparsable
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
from firstcli.api.explanations import (
    ExplainedText,
    ExplanationForm,
    StepRule,
    render,
    same_answer,
    split_steps,
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
from firstcli.api.usage import ChoiceForm, InputField, Label, TaskUsage
from firstcli.errors import UserError

__all__ = [
    "JSON",
    "RESERVED_FACTS",
    "Adaptation",
    "Annotation",
    "Annotator",
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
    "Explained",
    "ExplainedText",
    "ExplanationForm",
    "FitInputs",
    "FloatArray",
    "InputField",
    "IntArray",
    "Label",
    "MassMode",
    "ModelFamily",
    "ModelRef",
    "PluginOptions",
    "PromptField",
    "Recalibrator",
    "RemoteFamily",
    "RemoteScorer",
    "RemoteUsage",
    "ResponseTokens",
    "Sample",
    "SourcedStr",
    "Split",
    "StepRule",
    "Task",
    "TaskUsage",
    "ToAnnotate",
    "TokenQuery",
    "TopKRows",
    "TopTokens",
    "TrainingPrompt",
    "Unparsable",
    "UserError",
    "WritingSettings",
    "render",
    "same_answer",
    "split_steps",
]
