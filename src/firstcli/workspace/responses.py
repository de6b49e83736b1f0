"""The responses that the teacher writes: which are missing, and the file in the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np

from firstcli.api import Sample
from firstcli.data import splits
from firstcli.data.samples import Samples
from firstcli.data.sequences import Selected
from firstcli.runtime.console import Console
from firstcli.workspace.training_split import TrainingSplit

FILE_NAME = "responses.jsonl"


@dataclass(frozen=True, slots=True)
class Response:
    """What the teacher wrote after a prompt."""

    prompt: str
    """Digest of the prompt."""
    text: str
    """The response, with the space that separates it from the prompt."""
    tokens: int
    """Number of tokens, with the one that ends the response."""
    finished: bool
    """Whether the teacher ended the response itself."""

    @property
    def failure(self) -> str | None:
        """Why students do not learn the response, in a word; None if they do."""
        if not self.finished:
            return "unfinished"
        return None if self.text.strip() else "empty"


def prompt_digest(prompt: str) -> str:
    """Return the digest under which a prompt's response is kept."""
    return sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


def request_digest(request: Sample) -> str:
    """Return the digest under which what follows a request for a copy is kept.

    It covers the copy's number, so that two copies of one sample are written differently.
    """
    return prompt_digest(f"{str(request.id).partition('/')[0]}\0{request.prompt}")


def written_samples(folder: Path, prompts: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the samples with the responses that the teacher finished; the others are left out.

    Args:
        folder: the finished folder of responses.
        prompts: the samples that the teacher was given.
    """
    known = read(folder / FILE_NAME)
    for sample in prompts:
        response = known.get(prompt_digest(sample.as_teacher.prompt))
        if response and response.failure is None:
            yield replace(sample, response=response.text)


def prompts_to_answer(
    samples: Samples, training: TrainingSplit, console: Console, *, rewrites: bool
) -> Iterator[Sample]:
    """Return the samples whose responses the teacher writes, without those that they have.

    Left out are those whose prompt also has a response in the data: it is learned with that one, or
    held out so that no model is trained on it.

    Args:
        samples: the training split.
        training: its labelled samples, cut into training and validation part.
        console: says how many are left out.
        rewrites: whether the responses of the training part are also written anew.
    """
    train = [] if rewrites else training.train
    known = splits.prompt_digests(chain(train, training.validation))
    without = Selected(samples, np.flatnonzero(samples.unanswered))
    taken = splits.among(without, known)
    if taken.any():
        console.warn(
            f"train.task: {taken.sum()} of {len(without)} prompts without a response are left "
            "out, because they also occur with one"
        )
    rewritten = training.train if rewrites else []
    chosen = chain(rewritten, Selected(without, np.flatnonzero(~taken)))
    return (replace(sample, response="", steps=()) for sample in chosen)


def read(path: Path) -> dict[str, Response]:
    """Return the responses of a file by their prompts' digests; empty if there is no file.

    A line that a killed process left incomplete is ignored: its response is written again.
    """
    responses: dict[str, Response] = {}
    if not path.exists():
        return responses
    with path.open("rb") as file:
        for line in file:
            try:
                response = Response(**json.loads(line))
            except (ValueError, TypeError):
                continue
            responses[response.prompt] = response
    return responses


def as_lines(responses: Mapping[str, Response]) -> str:
    """Return a file's text with one response per line."""
    return "".join(json.dumps(asdict(each)) + "\n" for each in responses.values())
