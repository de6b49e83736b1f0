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
from firstcli.workspace.artifacts import fingerprint
from firstcli.workspace.run import Run, once_per_run
from firstcli.workspace.units import Part

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


def training_part(
    run: Run, tokenizer: PreTrainedTokenizerBase, part: Part, where: str
) -> EncodedStore:
    """Encode a part of the training split.

    Args:
        run: the run.
        tokenizer: a fast tokenizer.
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
    return _Source(run, tokenizer, EncodedSample, hold, part, content).rows(encode, where)


def evaluation(
    run: Run, tokenizer: PreTrainedTokenizerBase, name: str, where: str
) -> list[EncodedQuestion]:
    """Encode the samples of an evaluation.

    Args:
        run: the run.
        tokenizer: a fast tokenizer.
        name: the evaluation.
        where: the recipe's key and the role, which begin messages.

    Raises:
        UserError: a sample cannot be encoded.
    """

    def encode(encoding: Encoding) -> list[EncodedQuestion]:
        return encode_questions(run.evaluation_samples(name), encoding)

    slot, content = f"evaluation-{name}", run.evaluation_content(name)
    return _Source(run, tokenizer, EncodedQuestion, list, slot, content).rows(encode, where)


def _has_many_candidates(row: EncodedSample | EncodedQuestion) -> bool:
    """Return whether encoding again is faster than reading: such samples share candidates."""
    return isinstance(row, EncodedQuestion) and len(row.candidates) > MANY


class _Source(Generic[Row, Rows]):
    """One set of samples and one tokenizer."""

    def __init__(
        self,
        run: Run,
        tokenizer: PreTrainedTokenizerBase,
        kind: type[Row],
        hold: Callable[[Iterable[Row]], Rows],
        name: str,
        content: str,
    ) -> None:
        """Name the file; nothing is read or encoded yet.

        Args:
            run: the run.
            tokenizer: a fast tokenizer.
            kind: the class of a row.
            hold: makes a collection of rows.
            name: name of the set of samples.
            content: digest of the samples.
        """
        self._run, self._tokenizer, self._kind, self._hold = run, tokenizer, kind, hold
        identity = identity_of(run, tokenizer)
        depends_on = {
            "tokenizer": identity,
            "samples": content,
            "kind": kind.__name__,
            "doubled BOS": run.recipe.train.doubled_bos,
            "chat template": conversations.identity(tokenizer),
            "format": str(FORMAT),
            "firstcli": __version__,
            **{name: version(name) for name in ("tokenizers", "transformers")},
        }
        self._key = fingerprint(depends_on)
        self._slot = f"{name}-{identity[:12]}"
        self._path = run.folder / FOLDER / f"{self._slot}-{self._key[:12]}"

    def rows(self, encode: Encode[Row], where: str) -> Rows:
        """Return the encoded samples; the first failure is raised again at every later call.

        Args:
            encode: yields the encoded samples.
            where: the recipe's key and the role, which begin warnings.
        """
        loaded = self._run.loaded
        if self._key not in loaded:
            try:
                loaded[self._key] = self._read_or_encoded(encode, where)
            except UserError as error:
                loaded[self._key] = error
        rows = loaded[self._key]
        if isinstance(rows, UserError):
            raise rows.with_traceback(None)
        return cast(Rows, rows)

    def _read_or_encoded(self, encode: Encode[Row], where: str) -> Rows:
        drop = self._run.recipe.train.doubled_bos == "drop"
        encoding = Encoding(self._tokenizer, where, drop)
        warnings = encoding.warnings
        if known := token_files.read(self._path, self._key, self._kind):
            rows, warnings = self._hold(known[0]), known[1]
        else:
            with self._run.console.status(f"encoding {where}"):
                rows = self._hold(encode(encoding))
            if len(rows) >= FEW and not _has_many_candidates(rows[0]):
                self._run.write_cache(lambda: self._write(rows, warnings))
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
