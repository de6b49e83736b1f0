"""What a run publishes: neither secrets nor the folders of its machine."""

from __future__ import annotations

from pathlib import Path

from support import command_line
from support.command_line import first

SECRET = "hf_" + "aB3" * 11


def test_no_secret_is_written_and_page_and_card_name_no_folder(tmp_path: Path) -> None:
    for split, start in (("train", 0), ("test", 12)):
        command_line.write_rows(tmp_path / "data" / f"{split}.jsonl", command_line.sums(12, start))
    prompt = f"{{question}} {SECRET}\n{{choices}}\nAnswer:"
    task = command_line.of_files(tmp_path / "data", prompt=prompt)
    path = command_line.write_recipe(
        tmp_path,
        train={"task": task, "validation": 0},
        evaluate=[{"task": task}],
        teacher=None,
        arms={"fine-tune": {"learn": "labels"}},
    )
    run = tmp_path / "run"
    result = first("report", path, "--run-dir", run)
    assert result.code == 0, result.err
    written = [file for file in run.rglob("*") if file.suffix in {".yaml", ".md", ".json", ".html"}]
    texts = {file.relative_to(run).as_posix(): file.read_text("utf-8") for file in written}
    assert [name for name, text in texts.items() if SECRET in text] == []
    assert "students/fine-tune/firstcli.json" not in texts  # a redacted prompt would be wrong
    assert "firstcli.json is not written" in result.err
    published = texts["report/index.html"] + texts["students/fine-tune/README.md"]
    assert str(tmp_path) not in published and "path: data" in published
