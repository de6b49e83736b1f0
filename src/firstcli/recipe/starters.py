"""The recipes that ship with firstcli: self-contained, commented files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from firstcli.errors import UserError, did_you_mean

HEADINGS = ("your own data", "examples", "studies", "the paper's settings")
"""Headings of the list of starters, in order."""
LAUNCHERS = "accelerate"
"""The folder beside the starters with configurations of `accelerate launch`."""
OWN_DATA = ("classification", "own-prompts", "own-questions")
"""Starters for a user's own files."""


@dataclass(frozen=True, slots=True)
class Starter:
    """A shipped recipe; `name` is its path below `recipes/` without the extension."""

    name: str
    path: Path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def description(self) -> str:
        """The file's first comment line."""
        return self.text.partition("\n")[0].removeprefix("#").strip()

    @property
    def heading(self) -> str:
        """The one of `HEADINGS` under which the starter is listed."""
        own, examples, studies, paper = HEADINGS
        if self.name in OWN_DATA:
            return own
        if self.name.startswith("paper/"):
            return paper
        return studies if self.name.startswith("study-") else examples


def starters() -> list[Starter]:
    """List the shipped recipes: for own data, then examples, studies and the paper's settings."""
    packaged = Path(__file__).parents[1] / "recipes"  # where a wheel has them
    folder = packaged if packaged.is_dir() else Path(__file__).parents[3] / "recipes"
    paths = sorted(path for path in folder.rglob("*.yaml") if path.parent.name != LAUNCHERS)
    found = [Starter(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]
    return sorted(found, key=lambda each: HEADINGS.index(each.heading))


def starter(name: str) -> Starter:
    """Return the starter with this name, or with this last part of its name.

    Raises:
        UserError: no starter has that name.
    """
    known = starters()
    matches = [each for each in known if name in (each.name, each.name.rpartition("/")[2])]
    if len(matches) == 1:
        return matches[0]
    names = [each.name for each in known]
    short = [each.name.rpartition("/")[2] for each in known]
    raise UserError(
        f"unknown starter '{name}'{did_you_mean(name, [*names, *short])}; available: "
        f"{', '.join(names)}"
    )
