"""The commands of docs/compression.md work."""

from pathlib import Path

import pytest
from docs_project import ROOT, commands, page, run_command, tiny_project

from nlp_mtl import Recipe, train

PAGE = page("docs/compression.md")


def test_the_commands_of_the_page_work_in_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_project(tmp_path))
    train(Recipe.from_yaml("recipes/demo.yaml"))
    found = [words for words in commands("nlp-mtl", PAGE) if any(word.startswith("runs/demo") for word in words)]
    assert [words[1] for words in found].count("compress") == 4
    for words in found:
        if "--layers" in words:
            words[words.index("--layers") + 1] = "1"  # the tiny encoder has two, of two heads each
        if "--heads" in words:
            words[words.index("--heads") + 1] = "0.5"
        if "--finetune-steps" in words:
            words[words.index("--finetune-steps") + 1] = "1"
        assert run_command(words, monkeypatch, capsys), words
    assert {path.name for path in Path("runs").iterdir()} == {
        "demo",
        "demo-small",
        "demo-words",
        "demo-half",
        "demo-taught",
    }


def test_the_commands_of_the_table_are_those_of_a_shipped_recipe() -> None:
    rest = [words for words in commands("nlp-mtl", PAGE) if "runs/ewt_sst2_agnews" in words]
    assert len(rest) == 4
    assert Recipe.from_yaml(ROOT / "recipes" / "ewt_sst2_agnews.yaml").output_dir == "runs/ewt_sst2_agnews"
