"""The files of each split: folders of `save_to_disk` and of the hub, shards, lists and globs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from firstcli.errors import UserError
from firstcli.tasks import layout
from firstcli.tasks.instruction import Instruction, InstructionOptions
from firstcli.tasks.layout import split_files, splits_at
from firstcli.tasks.tables import read_rows


def parquet(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"a": list(values)}), path)
    return path


def lines(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in values))
    return path


def values(path: Path | Sequence[Path], split: str) -> list[Any]:
    return [row.value("a") for row in read_rows(split_files(path, split))]


def refused(path: Path | Sequence[Path]) -> str:
    with pytest.raises(UserError) as caught:
        splits_at(path)
    return str(caught.value)


def test_a_clone_from_the_hub_with_several_shards_per_split(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", 3)
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", 1, 2)
    parquet(tmp_path / "data" / "validation-00000-of-00001-6ef3991c06080e14.parquet", 4)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".gitattributes").write_text("")
    assert splits_at(tmp_path) == ("train", "validation")
    assert values(tmp_path, "train") == [1, 2, 3]
    assert values(tmp_path, "validation") == values(tmp_path / "data", "validation") == [4]


def test_a_missing_shard_is_an_error(tmp_path: Path) -> None:
    for number in (0, 2):
        parquet(tmp_path / f"train-{number:05}-of-00003.parquet", number)
    assert "split 'train' is incomplete: of its 3 files, 1 are missing, such as number 00001" in (
        refused(tmp_path)
    )


def test_shards_of_two_versions_are_ambiguous(tmp_path: Path) -> None:
    for total in (1, 2):
        parquet(tmp_path / f"train-00000-of-{total:05}.parquet", total)
    assert "can be the split 'train'" in refused(tmp_path)


def test_the_cache_of_the_hub_and_its_parquet_branch(tmp_path: Path) -> None:
    snapshots = tmp_path / "datasets--a--b" / "snapshots"
    parquet(snapshots / "94630fe" / "data" / "train-00000-of-00001.parquet", 1)
    assert values(tmp_path / "datasets--a--b", "train") == [1]
    parquet(snapshots / "1f3a" / "data" / "train-00000-of-00001.parquet", 2)
    assert "several folders hold data: '1f3a', '94630fe'; give the path of one" in refused(
        tmp_path / "datasets--a--b"
    )
    for number in range(2):
        parquet(tmp_path / "converted" / "default" / "train" / f"000{number}.parquet", number)
    assert values(tmp_path / "converted", "train") == [0, 1]


def test_one_of_several_subsets_must_be_named(tmp_path: Path) -> None:
    for subset in ("ARC-Challenge", "ARC-Easy"):
        parquet(tmp_path / subset / "test-00000-of-00001.parquet", subset)
    assert "several folders hold data: 'ARC-Challenge', 'ARC-Easy'" in refused(tmp_path)
    assert values(tmp_path / "ARC-Easy", "test") == ["ARC-Easy"]


def saved(folder: Path, **shards: list[list[int]]) -> Path:
    """Write what `DatasetDict.save_to_disk` does."""
    for split, parts in shards.items():
        (folder / split).mkdir(parents=True)
        names = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            table = pa.table({"a": part})
            with pa.ipc.new_stream(folder / split / name, table.schema) as writer:
                writer.write_table(table)
        state = {"_data_files": [{"filename": name} for name in names]}
        (folder / split / "state.json").write_text(json.dumps(state))
        (folder / split / "dataset_info.json").write_text("{}")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(shards)}))
    return folder


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    folder = saved(tmp_path, test=[[4]], train=[[1, 2], [3]])
    (folder / "train" / "cache-1234.arrow").write_bytes(b"left by Dataset.map")
    assert splits_at(folder) == ("train", "test")
    assert values(folder, "train") == [1, 2, 3]
    assert values(folder / "train", "test") == [1, 2, 3]  # a single Dataset serves as any split
    (folder / "train" / "data-00001-of-00002.arrow").unlink()
    assert "'data-00001-of-00002.arrow', listed in state.json, is missing" in refused(folder)
    (folder / "train" / "state.json").write_text("{}")
    assert "state.json: cannot be read as what `save_to_disk` writes" in refused(folder)


def test_what_datasets_itself_saves(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    part = datasets.Dataset.from_dict({"a": [1, 2, 3], "choices": [{"text": ["x"]}] * 3})
    part.select([2, 0]).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=part).save_to_disk(str(tmp_path / "all"), num_shards={"train": 2})
    assert values(tmp_path / "one", "test") == [3, 1]
    assert values(tmp_path / "all", "train") == [1, 2, 3]
    (row, *_) = read_rows(split_files(tmp_path / "all", "train"))
    assert row.value("choices") == {"text": ["x"]}


def test_an_arrow_file_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "a.arrow", "train") == [1, 2]
    (tmp_path / "b.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"b\.arrow: not a readable Arrow file"):
        values(tmp_path / "b.arrow", "train")


def test_a_list_and_a_glob_are_one_table(tmp_path: Path) -> None:
    second, first = lines(tmp_path / "b.jsonl", 2), lines(tmp_path / "a.jsonl", 1)
    assert values([second, first], "train") == [2, 1]
    assert values(tmp_path / "*.jsonl", "test") == [1, 2]
    assert splits_at([second, first]) == ("train", "validation", "test")
    literal = lines(tmp_path / "c[1].jsonl", 3)
    assert values(literal, "train") == [3]
    assert "no file or folder matches this pattern" in refused(tmp_path / "*.csv")
    assert "is listed or matched more than once" in refused([first, tmp_path / "*.jsonl"])


def test_folders_in_a_list_are_joined_split_by_split(tmp_path: Path) -> None:
    for subject, name in enumerate(("law", "art")):
        lines(tmp_path / name / "dev.jsonl", subject)
        lines(tmp_path / name / "test.jsonl", subject)
    lines(tmp_path / "law" / "train.jsonl", 7)
    both = [tmp_path / "law", tmp_path / "art"]
    assert splits_at(both) == ("validation", "test")
    assert values(both, "test") == [0, 1]
    with pytest.raises(UserError, match="no file for the split 'train'"):
        split_files(both, "train")
    lines(tmp_path / "only" / "train.jsonl", 8)
    assert "no split that all of" in refused([tmp_path / "art", tmp_path / "only"])


def test_empty_files_matter_only_if_all_are_empty(tmp_path: Path) -> None:
    empty, full = lines(tmp_path / "a.jsonl"), lines(tmp_path / "b.jsonl", 1)
    assert values([empty, full], "train") == [1]
    with pytest.raises(UserError, match="there are no rows"):
        values([empty], "train")


def test_the_option_path_is_a_path_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "p", "response": "r"}\n')
    options = InstructionOptions.model_validate({"path": [str(file)]})
    assert Instruction(options).sources("train") == (file,)
    assert options.model_dump(mode="json")["path"] == [str(file)]
    for wrong in ([], 3, [3]):
        with pytest.raises(ValueError, match="path"):
            InstructionOptions.model_validate({"path": wrong})


def test_a_plain_file_goes_before_compressed_copies(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", 1)
    for name in ("train.jsonl.gz", "train.zip", "train.tsv"):
        (tmp_path / name).write_bytes(b"")
    assert values(tmp_path, "train") == [1]


@pytest.mark.parametrize(
    ("path", "name", "folder"),
    [
        ("mmlu/law/test.csv", "test", "law"),
        ("mmlu/law/data/test-00000-of-00002.parquet", "test", "law"),
        ("mmlu/law/test/data-00000-of-00001.arrow", "data", "law"),
        ("mmlu/law.jsonl.gz", "law", "mmlu"),
    ],
)
def test_the_name_and_the_folder_of_a_data_file(path: str, name: str, folder: str) -> None:
    file = Path("/x") / path
    assert (layout.name_of(file), layout.folder_of(file)) == (name, folder)


def test_a_pattern_must_not_mix_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001.csv", "test-00000-of-00001.csv"):
        (tmp_path / name).write_text("question\n")
    with pytest.raises(UserError, match=r"different splits \(test, train\).*give their folder"):
        split_files(tmp_path / "*.csv", "train")
    assert len(split_files(tmp_path / "train-*.csv", "train")) == 1


def test_a_pattern_of_folders_leaves_out_other_files(tmp_path: Path) -> None:
    for subject in ("art", "law"):
        (tmp_path / subject).mkdir()
        (tmp_path / subject / "test.jsonl").write_text("{}\n")
    for other in ("README.md", "dataset_infos.json"):
        (tmp_path / other).write_text("{}")
    files = layout.split_files(tmp_path / "*", "test")
    assert [file.parent.name for file in files] == ["art", "law"]
