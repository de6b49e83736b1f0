"""`first select`: bring the rounds of every arm up to date."""

from __future__ import annotations

from firstcli.active import report
from firstcli.active.active_run import opened
from firstcli.active.data import ActiveData
from firstcli.active.folders import ROUNDS
from firstcli.active.loop import ArmLoop
from firstcli.active.planning import buyer_of, plan_rounds, students
from firstcli.api import JSON
from firstcli.errors import UserError
from firstcli.pipeline.execute import bring_mentor_up_to_date
from firstcli.pipeline.plan import Request, disk_errors_reported, open_run
from firstcli.runtime import distributed
from firstcli.runtime.files import locked

NO_SECTION = (
    "has no section `active`; add one with the pool and the budget, or start from `first init "
    "active`"
)
OUTDATED = "their rounds were made with other settings or data, or by an earlier version"


def select(request: Request, rounds: int | None) -> dict[str, JSON]:
    """Run the rounds that are not up to date; return what each has cost and brought.

    Args:
        request: the options of the command.
        rounds: how many more rounds of each arm to run; None for all.

    Raises:
        UserError: the recipe or its data are wrong, or the work cannot be done.
    """
    if distributed.count() > 1:
        raise UserError("first select: runs in one process; start it without a launcher")
    bring_mentor_up_to_date(request)
    run = open_run(request)
    if run.recipe.active is None:
        raise UserError(f"{request.recipe}: {NO_SECTION}")
    if request.dry_run:
        return plan_rounds(run, request)
    models = students(run, request.arms)
    with disk_errors_reported(run.folder), locked(run.folder / ROUNDS):
        data = ActiveData(run, run.recipe.active)
        for model in models:
            buyer_of(run, run.recipe.active, data, model)  # mistakes before the teacher is trained
        whole = opened(run, request, data)
        loops = [ArmLoop(whole, model) for model in models]
        for loop in loops:
            loop.play(rounds)
        shown = report.rounds_data(whole, loops)
        page = report.write_page(whole, shown)
        run.save_memory()
    for table in report.tables(shown):
        run.console.show(table)
    if shown.outdated:
        run.console.say(f"not shown, because {OUTDATED}: {', '.join(shown.outdated)}")
    trained = [loop.progress.student for loop in loops if loop.progress.student]
    if trained:
        run.console.say(f'try:  first predict {trained[-1].folder} "..."')
    run.console.say(f"page: {page}")
    return {
        "run": str(run.folder),
        "page": str(page),
        "arms": {loop.model.trained: loop.progress.rounds for loop in loops},
    }
