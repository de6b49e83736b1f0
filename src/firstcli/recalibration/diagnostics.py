"""What a fitted recalibrator does to its validation rows: the file `calibration/<name>.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np

from firstcli import metrics, plugins
from firstcli.api import JSON, BoolArray, MassMode, TopKRows
from firstcli.plugins import calls, recalibrators
from firstcli.plugins.recalibrators import CheckedRecalibrator

PositionsMode = Literal["decisive", "all"]
"""Which positions are recalibrated: `decisive` is the recipe's word for answer positions."""


@dataclass(frozen=True, slots=True)
class RankCalibration:
    """Confidence and frequency of the teacher's r-th token (the paper's Figure 3)."""

    rank: int
    confidence_before: float  # mean probability that the model gives to the token
    confidence_after: float  # mean probability of the soft target: mass times target
    frequency: float  # share of rows in which the token is the label
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationArtifact:
    """The content of `calibration/<name>.json`.

    Accuracy, confidence and ECE are those of the most likely token, measured in-sample: on the
    rows that the recalibrator was fitted on. Files of earlier versions can lack `ranks`.
    """

    recalibrator: str  # name of the plugin
    options: Mapping[str, JSON]  # as the recipe states them
    positions: PositionsMode
    mass: MassMode | None = None  # None for a post-hoc recalibrator
    rows: int  # number of rows that the fit used
    accuracy: float
    confidence_before: float
    confidence_after: float
    ece_before: float
    ece_after: float
    ranks: tuple[RankCalibration, ...] = ()
    state: Mapping[str, JSON]
    learned: str = ""  # what the fit learned, in a few words
    facts: Mapping[str, JSON] = field(default_factory=dict)
    """The recalibrator's own facts, such as `temperature`; in the file, keys beside the rest."""

    @classmethod
    def measure(
        cls,
        recalibrator: CheckedRecalibrator,
        rows: TopKRows,
        is_label: BoolArray,
        *,
        name: str,
        options: Mapping[str, JSON],
        positions: PositionsMode,
        mass_mode: MassMode | None = None,
    ) -> CalibrationArtifact:
        """Measure a fitted recalibrator on the rows that it was fitted on.

        Args:
            recalibrator: the fitted recalibrator.
            rows: the model's probabilities, and the mass that is learned for them.
            is_label: whether each of the k tokens is the label, (N, k).
            name: name of the plugin.
            options: its options, as the recipe states them.
            positions: the positions that the rows come from.
            mass_mode: the arm's `mass`; None for a post-hoc recalibrator.
        """
        topk, after = rows.topk, recalibrator.transform(rows).probabilities  # (N, k)
        ranks = tuple(
            RankCalibration(
                rank=column + 1,
                confidence_before=float(topk[:, column].mean()),
                confidence_after=float(after[:, column].mean()),
                frequency=float(is_label[:, column].mean()),
                n=len(topk),
            )
            for column in range(topk.shape[1])
        )
        facts = dict(recalibrator.diagnostics().facts)
        return cls(
            recalibrator=name,
            options=options,
            positions=positions,
            mass=mass_mode,
            rows=facts.pop("rows", len(topk)),
            accuracy=ranks[0].frequency,
            confidence_before=ranks[0].confidence_before,
            confidence_after=ranks[0].confidence_after,
            ece_before=metrics.ece(np.minimum(topk[:, 0], 1.0), is_label[:, 0]),
            ece_after=metrics.ece(np.minimum(after[:, 0], 1.0), is_label[:, 0]),
            ranks=ranks,
            state=recalibrator.state(),
            learned=recalibrator.summary(),
            facts=facts,
        )

    @classmethod
    def load(cls, path: Path) -> CalibrationArtifact:
        """Read a file that this or an earlier version wrote."""
        content = json.loads(path.read_text("utf-8"))
        ranks = tuple(RankCalibration(**rank) for rank in content.pop("ranks", ()))
        known = {key.name: content.pop(key.name) for key in fields(cls) if key.name in content}
        return cls(**known, ranks=ranks, facts=content)

    def to_json(self) -> dict[str, JSON]:
        """Return the content of the file; absent values have no key."""
        content = asdict(self)
        facts: dict[str, JSON] = content.pop("facts")
        return facts | {key: value for key, value in content.items() if value not in (None, (), "")}

    def save(self, path: Path) -> None:
        """Write the file."""
        path.write_text(json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n", "utf-8")

    def short_facts(self) -> dict[str, JSON]:
        """Return what a manifest keeps."""
        left_out = ("options", "mass", "positions", "ranks", "state")
        return {key: value for key, value in self.to_json().items() if key not in left_out}

    def restored(self) -> CheckedRecalibrator:
        """Return the recalibrator with its fitted state."""
        plugin = plugins.find("recalibrators", self.recalibrator)
        recalibrator = recalibrators.recalibrator(
            plugin.name, calls.validated(plugin, self.options)
        )
        recalibrator.restore(self.state)
        return recalibrator
