"""The samples of a run as tokens, once per tokenizer: teacher and student often share theirs.

Large sets of samples are kept in the run folder, so that the next command need not encode them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Generic, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from firstcli import __version__
from firstcli.data import conversations, joint, token_files
from firstcli.data.encoded import EncodedStore
from firstcli.data.encoding import (
    EncodedQuestion,
    EncodedSample,
    Encoding,
    each_encoded,
    encode_questions,
)
from firstcli.data.joint import MANY
from firstcli.errors import UserError
from firstcli.stages import chat
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Part, Role

FOLDER = ".tokens"
"""Folder of the files with tokens, in the run folder."""
FEW = 5000
"""Number of samples below which encoding takes no longer than reading a file."""
FORMAT = 1
"""Raise it when the same samples and tokenizer give different tokens."""

Row = TypeVar("Row", bound=EncodedSample | EncodedQuestion)
Rows = TypeVar("Rows", bound=Sequence[EncodedSample] | Sequence[EncodedQuestion])
Encode = Callable[[Encoding], Iterable[Row]]


@once_per_run
def identity_of(run: Run, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of what determines a tokenizer's encodings."""
    return joint.identity(tokenizer)


def training_part(run: Run, role: Role, part: Part, where: str) -> EncodedStore:
    """Encode a part of the training split.

    Args:
        run: the run.
        role: whose tokenizer and chat template encode it.
        part: the part.
        where: the recipe's key and the role, which begin messages.

    Raises:
        UserError: a sample cannot be encoded.
    """

    def hold(rows: Iterable[EncodedSample]) -> EncodedStore:
        return EncodedStore(rows, run.folder)

    def encode(encoding: Encoding) -> Iterator[EncodedSample]:
        return each_encoded(run.samples_of(part), encoding)

    content = run.part_content(part)
    settings = chat.encoding(run, role, where)
    return _Source(run, settings, EncodedSample, hold, part, content).rows(encode)


def evaluation(run: Run, role: Role, name: str, where: str) -> list[EncodedQuestion]:
    """Encode the samples of an evaluation.

    Args:
        run: the run.
        role: whose tokenizer and chat template encode them.
        name: the evaluation.
        where: the recipe's key and the role, which begin messages.

    Raises:
        UserError: a sample cannot be encoded.
    """

    def encode(encoding: Encoding) -> list[EncodedQuestion]:
        return encode_questions(run.evaluation_samples(name), encoding)

    slot, content = f"evaluation-{name}", run.evaluation_content(name)
    settings = chat.encoding(run, role, where, name)
    return _Source(run, settings, EncodedQuestion, list, slot, content).rows(encode)


def _has_many_candidates(row: EncodedSample | EncodedQuestion) -> bool:
    """Return whether encoding again is faster than reading: such samples share candidates."""
    return isinstance(row, EncodedQuestion) and len(row.candidates) > MANY


class _Source(Generic[Row, Rows]):
    """One set of samples and one way to encode them."""

    def __init__(
        self,
        run: Run,
        encoding: Encoding,
        kind: type[Row],
        hold: Callable[[Iterable[Row]], Rows],
        name: str,
        content: str,
    ) -> None:
        """Name the file; nothing is read or encoded yet.

        Args:
            run: the run.
            encoding: the tokenizer and how it is used.
            kind: the class of a row.
            hold: makes a collection of rows.
            name: name of the set of samples.
            content: digest of the samples.
        """
        self._run, self._encoding, self._kind, self._hold = run, encoding, kind, hold
        identity = identity_of(run, encoding.tokenizer)
        depends_on = {
            "tokenizer": identity,
            "samples": content,
            "kind": kind.__name__,
            "doubled BOS": run.recipe.train.doubled_bos,
            "chat template": conversations.identity(encoding.tokenizer),
            "format": str(FORMAT),
            "firstcli": __version__,
            **{name: version(name) for name in ("tokenizers", "transformers")},
        }
        if encoding.chat is not None:
            depends_on["chat"] = encoding.chat.identity
        if encoding.for_teacher:
            depends_on["prompts"] = "the teacher's"
        self._key = fingerprint(depends_on)
        rendered = "" if encoding.chat is None else f"-{encoding.chat.identity[:6]}"
        apart = "-teacher" if encoding.for_teacher else ""
        self._slot = f"{name}-{identity[:12]}{rendered}{apart}"
        self._path = run.folder / FOLDER / f"{self._slot}-{self._key[:12]}"

    def rows(self, encode: Encode[Row]) -> Rows:
        """Return the encoded samples; the first failure is raised again at every later call."""
        loaded = self._run.loaded
        if self._key not in loaded:
            try:
                loaded[self._key] = self._read_or_encoded(encode)
            except UserError as error:
                loaded[self._key] = error
        rows = loaded[self._key]
        if isinstance(rows, UserError):
            raise rows.with_traceback(None)
        return cast(Rows, rows)

    def _read_or_encoded(self, encode: Encode[Row]) -> Rows:
        encoding = self._encoding
        where, warnings = encoding.where, encoding.warnings
        if known := token_files.read(self._path, self._key, self._kind):
            rows, warnings = self._hold(known[0]), known[1]
        else:
            with self._run.console.status(f"encoding {where}"):
                rows = self._hold(encode(encoding))
            if len(rows) >= FEW and not _has_many_candidates(rows[0]):
                self._run.caches.write(lambda: self._write(rows, warnings))
        for warning in warnings:
            self._run.console.warn(f"{where}: {warning}")
        return rows

    def _write(self, rows: Rows, warnings: list[str]) -> None:
        """Write the file, and remove that of earlier samples in its place."""
        self._path.parent.mkdir(exist_ok=True)
        for outdated in self._path.parent.glob(f"{self._slot}-*"):
            outdated.unlink(missing_ok=True)
        every = cast(Sequence[Row], rows)
        token_files.write(self._path, self._key, every, self._kind, warnings)
