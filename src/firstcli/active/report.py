"""The page of the rounds, and the table that the terminal shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from firstcli.active import choosing
from firstcli.active.active_run import ActiveRun
from firstcli.active.folders import RoundFolder, read_json
from firstcli.active.loop import ArmLoop
from firstcli.active.planning import students
from firstcli.active.reading import read_said
from firstcli.active.reasons import is_correction
from firstcli.api import JSON
from firstcli.data.annotations import read_annotations
from firstcli.reporting.rounds import (
    PLACES,
    SHOWN,
    PickedQuestion,
    PickedRound,
    RoundsData,
    last_rows,
)
from firstcli.runtime.files import write_json
from firstcli.workspace.artifacts import fingerprint

FOLDER = "curves"
"""Folder of the page, in the run folder."""
FORMAT = 8
"""Raise it when the same rounds give a different page than before."""
EXAMPLES = 3
"""Picked questions that the page shows of a round."""


def rounds_data(whole: ActiveRun, played: Sequence[ArmLoop]) -> RoundsData:
    """Return what the page shows.

    Args:
        whole: the run.
        played: the arms whose rounds are up to date. Of others, those rounds are shown that are.
    """
    known = {loop.model.trained: loop for loop in played}
    rounds: dict[str, dict[int, Sequence[Mapping[str, JSON]]]] = {}
    picked: list[PickedRound] = []
    outdated: list[str] = []
    for model in students(whole.run, ()):
        loop = known.get(model.trained)
        if loop is None:
            loop = ArmLoop(whole, model)
            loop.take_over()
        every = loop.progress.rounds
        if loop.outdated_from is not None:
            outdated.append(f"{model.trained} from round {loop.outdated_from} on")
        if not every:
            continue
        if model.arm not in rounds:
            picked += [_picked(loop, int(facts["round"])) for facts in every if facts["round"]]
        rounds.setdefault(model.arm, {})[loop.seed] = every
    recipe = whole.run.recipe
    names = [section.name for section in recipe.evaluate]
    return RoundsData(recipe.name, rounds, names, picked, outdated)


def _picked(loop: ArmLoop, number: int) -> PickedRound:
    folder = loop.folder.round(number)
    chosen = read_json(folder.chosen) or {"ids": []}
    scores = choosing.read_scores(folder.scores, str(chosen.get("fingerprint")))
    ids = [str(id) for id in chosen["ids"][:EXAMPLES] if id in scores]
    return PickedRound(loop.model.arm, number, list(_questions(loop, folder, ids, scores)))


def _questions(
    loop: ArmLoop, folder: RoundFolder, ids: Sequence[str], scores: Mapping[str, float]
) -> Iterator[PickedQuestion]:
    said = read_said(folder.said)
    bought = {each.id: each for each in read_annotations(folder.annotations)}
    for id in ids:
        words, one = said.get(id), bought.get(id)
        surprises = words.surprises if words else ()
        yield PickedQuestion(
            prompt=loop.data.pool.question(id).prompt,
            score=scores[id],
            said=words.steps if words else (),
            answered=words.answer if words else "",
            unsure=max(range(len(surprises)), key=surprises.__getitem__) if surprises else None,
            taught=one.steps if one else (),
            right=one.answer if one else "",
            flaw=one.first_flaw if words and one and is_correction(one, words) else None,
        )


def write_page(whole: ActiveRun, data: RoundsData) -> Path:
    """Write the page, unless it shows the same rounds already; return its file."""
    folder = whole.run.folder / FOLDER
    mark = folder / "curves.json"
    content = [FORMAT, data.run, data.rounds, data.evaluations, data.outdated]
    shown = json.dumps(content, sort_keys=True)
    key = {"fingerprint": fingerprint({"shown": shown})}
    if read_json(mark) != key:
        from firstcli.reporting.rounds_page import write_rounds

        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_rounds(folder, data)
        write_json(mark, key)
    return folder / "index.html"


def tables(data: RoundsData) -> Iterator[Table]:
    """Yield the table of every evaluation: what each row has spent and reached."""
    for evaluation in data.evaluations:
        headings = ["seeds", *(PLACES[place] for place in data.places)]
        headings += [metric.heading for metric in SHOWN]
        table = Table(title=f"{evaluation}, after the latest round", box=box.SIMPLE_HEAD)
        table.title_justify = "left"
        table.add_column("model", no_wrap=True)
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in last_rows(data, evaluation):
            table.add_row(*row)
        yield table
