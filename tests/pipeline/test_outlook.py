"""Estimates of the time that a command will still take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstcli.errors import UserError
from firstcli.pipeline.outlook import Outlook, rounded
from firstcli.workspace.artifacts import Artifact, Digests
from firstcli.workspace.units import Model, Unit


def nothing() -> float | None:
    return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Replace the clock by the only entry of a list."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def unit(folder: Path, key: str, seconds: float | None = None, **about: object) -> Unit:
    """Return a unit whose artifact took some seconds, or does not exist."""
    stage, _, subject = key.partition(" ")
    artifact = Artifact(folder / stage / subject.replace("/", "-"), True)
    if seconds is not None:
        artifact.begin("fingerprint")
        artifact.commit(key, {}, {}, seconds, {}, Digests())
    return Unit(key, stage, artifact, **about)  # type: ignore[arg-type]


def test_nothing_is_claimed_where_nothing_is_known(tmp_path: Path) -> None:
    units = [unit(tmp_path, "finetune"), unit(tmp_path, "distill a"), unit(tmp_path, "report")]
    outlook = Outlook(units, units)
    assert outlook.in_words(nothing) == "0 of 3 done"
    outlook.begin(units[0])
    assert outlook.in_words(lambda: 30.0) == "0 of 3 done"
    outlook.finish(units[0], 60.0)
    assert outlook.in_words(nothing) == "1 of 3 done"


def test_similar_units_and_the_current_progress_give_the_estimate(
    tmp_path: Path, clock: list[float]
) -> None:
    arms = [unit(tmp_path, f"distill {name}", model=Model(name)) for name in "abc"]
    units = [*arms, unit(tmp_path, "report")]
    outlook = Outlook(units, units)
    outlook.begin(units[0])
    outlook.finish(units[0], 100.0)
    assert outlook.in_words(nothing) == "1 of 4 done, about 3 min left"  # the report is brief
    outlook.begin(units[1])
    clock[0] = 40.0
    assert outlook.in_words(nothing) == "1 of 4 done, about 3 min left"  # 60 s and 100 s
    assert outlook.in_words(lambda: 20.0) == "1 of 4 done, about 2 min left"
    clock[0] = 400.0  # longer than the estimate
    assert outlook.in_words(nothing) == "1 of 4 done, about 2 min left"
    outlook.finish(units[1])  # it was up to date after all
    outlook.finish(units[1])
    outlook.finish(units[2], 1.0)
    assert outlook.in_words(nothing) == "3 of 4 done, about 10 s left"


def test_unknown_units_make_it_a_lower_bound(tmp_path: Path) -> None:
    units = [unit(tmp_path, f"distill {name}", model=Model(name)) for name in "ab"]
    units.append(unit(tmp_path, "eval test/a", evaluation="test", model=Model("a")))
    outlook = Outlook(units, units)
    outlook.begin(units[0])
    outlook.finish(units[0], 240.0)
    assert outlook.in_words(nothing) == "1 of 3 done"
    outlook.begin(units[1])
    others = Outlook(units, [*units, unit(tmp_path, "distill c", 240.0, model=Model("c"))])
    assert others.in_words(nothing) == "0 of 3 done, at least 8 min left"


def test_its_own_earlier_time_comes_first_then_the_same_evaluation(tmp_path: Path) -> None:
    def evaluated(name: str, of: str, seconds: float | None = None) -> Unit:
        key = f"eval {name}/{of}"
        return unit(tmp_path, key, seconds, evaluation=name, model=Model(of))

    small = [evaluated("small", "a", 60.0), evaluated("small", "b")]
    large = [evaluated("large", "a", 600.0), evaluated("large", "b")]
    brief = unit(tmp_path, "eval large/b+T", evaluation="large", model=Model("b", posthoc=True))
    known = [*small, *large]

    def left(pending: Unit) -> str:
        return Outlook([pending, brief], known).in_words(nothing).partition(", ")[2]

    assert left(small[1]) == left(small[0]) == "about 1 min left"
    assert left(large[1]) == "about 10 min left"
    assert left(brief) == "about 10 s left"


def test_an_artifact_of_a_newer_firstcli_is_no_obstacle(tmp_path: Path) -> None:
    known = unit(tmp_path, "distill a", 60.0, model=Model("a"))
    manifest = known.artifact.manifest_path
    manifest.write_text(manifest.read_text("utf-8").replace('"format": 2', '"format": 99'), "utf-8")
    with pytest.raises(UserError, match="newer"):
        known.artifact.written()
    units = [unit(tmp_path, f"distill {name}", model=Model(name)) for name in "bc"]
    assert Outlook(units, [known, *units]).in_words(nothing) == "0 of 2 done"


def test_a_single_unit_shows_its_own_progress(tmp_path: Path) -> None:
    finetune = unit(tmp_path, "finetune", 60.0)
    outlook = Outlook([finetune], [finetune])
    assert outlook.in_words(nothing) == "" and outlook.remains
    outlook.finish(finetune, 60.0)
    assert not outlook.remains


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "10 s"), (10.5, "20 s"), (54, "60 s"), (89, "1 min"), (5300, "88 min"), (9000, "2.5 h")],
)
def test_estimates_are_rounded(seconds: float, text: str) -> None:
    assert rounded(seconds) == text
