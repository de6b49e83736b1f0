"""A path stands for a table, splits or shards; the path in the recipe reads the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from firstcli.errors import UserError
from firstcli.tasks import layout
from firstcli.wizard.source import source_at

ROWS = "text,label\none,a\ntwo,b\n"


def files(folder: Path, *names: str, content: str = ROWS) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
    return folder


def test_a_file(tmp_path: Path) -> None:
    source = source_at(files(tmp_path, "my tickets.csv") / "my tickets.csv")
    assert (source.path.name, source.name, source.others) == ("my tickets.csv", "my-tickets", {})
    assert [row.values["label"] for row in source.rows()] == ["a", "b"]


def test_a_folder_with_splits(tmp_path: Path) -> None:
    source = source_at(files(tmp_path / "d", "train.csv", "dev.csv", "test.csv"))
    assert source.name == "d"
    assert set(source.others) == {"validation", "test"}
    assert len(list(source.rows("test"))) == 2
    assert source.without_splits().path == tmp_path / "d" / "train.csv"


def test_shards_without_a_split_are_one_table(tmp_path: Path) -> None:
    source = source_at(files(tmp_path, "part-1.csv", "part-2.csv"))
    assert source.path == tmp_path / "part-*.csv"
    assert layout.split_files(source.path, "train") == source.train
    assert len(list(source.rows())) == 4


def test_shards_of_a_training_split(tmp_path: Path) -> None:
    folder = files(tmp_path, "train-00000-of-00002.csv", "train-00001-of-00002.csv", "test.csv")
    alone = source_at(folder).without_splits()
    assert layout.split_files(alone.path, "train") == alone.train
    assert len(alone.train) == 2


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    assert source_at(files(tmp_path, "tickets.csv")).path == tmp_path / "tickets.csv"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test.csv"], "there is no file for the split 'train'"),
        (["train_a.csv", "dev_a.csv"], "'dev_a.csv', 'train_a.csv' may be different splits"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        source_at(files(tmp_path, *names))
    assert message in str(error.value)


def test_different_tables_are_refused(tmp_path: Path) -> None:
    files(tmp_path, "a.csv")
    files(tmp_path, "b.csv", content="x,y\n1,2\n")
    with pytest.raises(UserError, match="have different columns"):
        source_at(tmp_path)


def saved(folder: Path) -> None:
    """Write what `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"]})
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}), "utf-8")


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    saved(tmp_path / "one")
    assert [row.values["text"] for row in source_at(tmp_path / "one").rows()] == ["a", "b"]
    for split in ("train", "test"):
        saved(tmp_path / "all" / split)
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}', "utf-8")
    source = source_at(tmp_path / "all")
    assert set(source.others) == {"test"}
    alone = source.without_splits()
    assert layout.split_files(alone.path, "train") == alone.train
