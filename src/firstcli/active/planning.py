"""The plan of `first select`: what each arm may spend, and what that buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table

from firstcli.active.active_run import ActiveRun, as_it_stands
from firstcli.active.data import ActiveData
from firstcli.active.loop import ArmLoop
from firstcli.active.purchases import Buyer
from firstcli.active.spending import Spent, affordable
from firstcli.api import JSON
from firstcli.errors import UserError, did_you_mean
from firstcli.pipeline.plan import Request, open_run, plan_run
from firstcli.recipe.active import Active
from firstcli.recipe.sections import Arm
from firstcli.stages import units_of
from firstcli.stages.finetune import FINETUNE
from firstcli.workspace.run import Run
from firstcli.workspace.units import Model, models_of, with_upstream


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """What one arm and seed will do."""

    arm: str
    seed: int
    selector: str
    annotator: str
    pool: int
    """Questions that may be annotated."""
    seed_samples: int
    held_out: int
    rounds: int
    finished: int
    """Rounds that are up to date."""
    stale: bool
    """Whether the next round was made with other settings or data, so that it is made anew."""
    annotations: int
    """How many annotations the budget is expected to buy."""
    tokens_read: int
    tokens_written: int
    """Expected tokens of all annotations. Of the student's words and of second attempts nothing is
    known yet; texts are expected to be as long as they may be."""
    cost: float | None


def plan(request: Request) -> dict[str, JSON]:
    """Show the plan of a recipe; with a section `active`, that of its rounds and their budget.

    Raises:
        UserError: the recipe or its data are wrong, or the teacher cannot do what is asked.
    """
    run = open_run(request)
    if run.recipe.active is None:
        return plan_run(run, request)
    return plan_rounds(run, request)


def plan_rounds(run: Run, request: Request) -> dict[str, JSON]:
    """Show the plan of the rounds, and of the teacher if it is fine-tuned."""
    active = run.recipe.active
    assert active
    data = ActiveData(run, active)
    whole = as_it_stands(run, request, data)
    plans = [_arm_plan(run, active, data, model, whole) for model in students(run, request.arms)]
    units = units_of(run.recipe, run.folder)
    chain = with_upstream(units, FINETUNE.units(run.recipe, run.folder))
    result = plan_run(run, request, chain) if chain else {"run": str(run.folder), "units": []}
    run.console.show(_table(active, plans, [arm for arm in run.recipe.arms.values() if arm.budget]))
    run.save_memory()
    if count := asked_besides(run, plans):
        run.console.say(
            "the budget is for annotations alone: students that learn the teacher's knowledge take "
            f"its probabilities of at most {count:,} samples besides, for which its server is asked"
        )
    return {**result, "active": [asdict(each) for each in plans]}


def asked_besides(run: Run, plans: Sequence[ArmPlan]) -> int:
    """Return of how many samples a teacher behind a server is asked for its knowledge, at most.

    These are the first samples and the annotated ones of each student that learns it, and those
    held out. The server is asked once for each, and students may share some.
    """
    teacher, arms = run.recipe.teacher, run.recipe.arms
    learning = [plan for plan in plans if arms[plan.arm].learn == "knowledge"]
    if teacher is None or not teacher.model.plugin.is_remote or not learning:
        return 0
    own = sum(plan.seed_samples + plan.annotations for plan in learning)
    return own + learning[0].held_out


def students(run: Run, arms: Sequence[str]) -> list[Model]:
    """Return the students of a recipe, or those of some arms.

    Raises:
        UserError: there is no such arm.
    """
    every = [model for model in models_of(run.recipe) if model.arm and not model.posthoc]
    for arm in arms:
        if arm not in run.recipe.arms:
            hint, known = did_you_mean(arm, run.recipe.arms), ", ".join(run.recipe.arms)
            raise UserError(f"--arm {arm}: no such arm{hint}; the recipe has {known}")
    return [model for model in every if not arms or model.arm in arms]


def buyer_of(run: Run, active: Active, data: ActiveData, model: Model) -> Buyer:
    """Return what buys an arm's annotations, whose teacher is able to.

    Args:
        run: the run.
        active: the recipe's section.
        data: the data.
        model: arm and seed of the student.

    Raises:
        UserError: the annotator needs something that the teacher cannot do.
    """
    from firstcli.stages.annotating_teachers import require_able

    seed = run.recipe.seed if model.seed is None else model.seed
    ref, pool = active.annotator_of(run.recipe.arms[model.arm]), data.start(seed).pool
    buyer = Buyer(run, active, ref, pool, data, seed)
    require_able(run, buyer.annotator, pool.questions[0])
    buyer.require_room()
    return buyer


def _arm_plan(
    run: Run, active: Active, data: ActiveData, model: Model, whole: ActiveRun | None
) -> ArmPlan:
    arm = run.recipe.arms[model.arm]
    active = active.of_arm(arm)
    buyer = buyer_of(run, active, data, model)
    each, pool = buyer.expected, len(buyer.pool)
    loop = ArmLoop(whole, model) if whole else None
    if loop:
        loop.take_over()
    count = affordable(active, Spent(), each, active.rounds, pool)
    read, written = count * each.tokens_read, count * each.tokens_written
    return ArmPlan(
        arm=model.arm,
        seed=buyer.seed,
        selector=active.selector_of(arm).name,
        annotator=buyer.ref.name,
        pool=pool,
        seed_samples=active.seed_samples,
        held_out=len(data.held_out),
        rounds=active.rounds,
        finished=max(0, len(loop.progress.rounds) - 1) if loop else 0,  # without round 0
        stale=loop is not None and loop.outdated_from is not None,
        annotations=count,
        tokens_read=read,
        tokens_written=written,
        cost=active.prices.cost(read, written) if active.prices else None,
    )


def _table(active: Active, plans: Sequence[ArmPlan], with_own_budget: Sequence[Arm]) -> Table:
    limits = [
        *([f"{active.budget.samples:,} annotations"] if active.budget.samples else []),
        *([f"{active.budget.tokens:,} tokens"] if active.budget.tokens else []),
        *([f"cost {active.budget.cost:g}"] if active.budget.cost else []),
    ]
    first, unless = plans[0], ", unless the arm has its own" if with_own_budget else ""
    title = (
        f"budget of each arm and seed{unless}: {' or '.join(limits)}, in {active.rounds} rounds; "
        f"{first.pool:,} questions, {first.seed_samples:,} samples known from the start, "
        f"{first.held_out:,} held out"
    )
    headings = ["arm", "selector", "annotator", "rounds done", "annotations", "expected tokens"]
    headings += ["expected cost"] if active.prices else []
    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for each in plans:
        cells = [f"{each.arm}@{each.seed}", each.selector, each.annotator]
        stale = ", then stale" if each.stale else ""
        cells += [f"{each.finished} of {each.rounds}{stale}", f"{each.annotations:,}"]
        cells += [f"{each.tokens_read + each.tokens_written:,}"]
        cells += [f"{each.cost:.4g}"] if each.cost is not None else []
        table.add_row(*cells)
    if len(plans) > 1:
        total = sum(each.annotations for each in plans)
        tokens = sum(each.tokens_read + each.tokens_written for each in plans)
        cells = ["all", "", "", "", f"{total:,}", f"{tokens:,}"]
        costs = [each.cost for each in plans if each.cost is not None]
        table.add_section()
        table.add_row(*cells, *([f"{sum(costs):.4g}"] if costs else []))
    return table
