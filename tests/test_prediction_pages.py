"""The commands and programs of docs/prediction.md and docs/serving.md work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docs_project import blocks, commands, page, run_command, tiny_project
from serving_process import started

from nlp_mtl import Recipe, train
from nlp_mtl.recipe_parts import ConsistencySpec
from nlp_mtl.serving.app import LONG_TEXTS_WAITING
from nlp_mtl.serving.batching import BATCH_CHARACTERS, BATCH_TEXTS
from nlp_mtl.serving.bodies import BODIES_AT_ONCE, SMALL_BODY
from nlp_mtl.serving.given import TEXTS_IN_FULL
from nlp_mtl.serving.settings import Settings

PREDICTION, SERVING = page("docs/prediction.md"), page("docs/serving.md")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with runs/demo and the files that the pages name."""
    folder = tiny_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(Recipe.from_yaml("recipes/demo.yaml"))
    (folder / "texts.csv").write_text("id,review\n1,What a game!\n2,Anna moved to Oslo.\n")
    (folder / "token.txt").write_text("0123456789abcdef\n")
    return folder


def test_the_commands_and_the_program_of_the_prediction_page_work(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    found = [words for words in commands("nlp-mtl", PREDICTION) if {"runs/demo", "exported/onnx"} & {*words}]
    assert [words[1] for words in found].count("predict") >= 5
    assert [words[1] for words in found].count("export") == 1
    for words in found:
        assert run_command(words, monkeypatch, capsys), words
    assert len(Path("answers.jsonl").read_text().splitlines()) == 1
    (program,) = blocks("python", PREDICTION)
    exec(compile(program, "docs/prediction.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[")


def test_the_recipe_of_the_prediction_page_is_valid() -> None:
    (text,) = blocks("yaml", PREDICTION)
    (pair,) = yaml.safe_load(text)["consistency"]
    assert ConsistencySpec(**pair).tasks == ["ner", "pos"]


@pytest.mark.slow
def test_the_commands_and_the_program_of_the_serving_page_work(trained: Path) -> None:
    plain, with_token = ([trained / words[2], *words[3:]] for words in commands("nlp-mtl", SERVING))
    with started(*plain) as server:
        questions = commands("curl", SERVING)
        assert len(questions) == 4
        for words in questions[:3]:
            assert {*asked(words, server.url)} <= {"predictions", "model", "tasks", "limits"}
        (program,) = blocks("python", SERVING)
        code = program.replace(ADDRESS, server.url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.count("'label'") == 2
    with_token[-1] = trained / with_token[-1]
    with started(*with_token) as server:
        words = [word.replace("$(cat token.txt)", "0123456789abcdef") for word in questions[3]]
        assert asked(words, server.url.replace("0.0.0.0", "127.0.0.1"))["model"] == "demo"


def asked(words: list[str], url: str) -> dict[str, object]:
    """What a curl command gets."""
    command = [word.replace(ADDRESS, url) for word in words]
    done = subprocess.run([*command, "--silent", "--show-error", "--fail"], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_the_defaults_of_the_serving_page_are_those_of_the_code() -> None:
    settings = Settings()
    for words in (
        f"up to {BATCH_TEXTS} texts or {BATCH_CHARACTERS:,} characters",
        f"wait up to {1000 * settings.batch_wait:g} ms",
        f"in {settings.body_timeout:g} seconds",
        f"more than {settings.max_body >> 20} MiB",
        f"more than {settings.max_texts:,} texts",
        f"more than {settings.max_characters:,} characters",
        f"{settings.max_queue:,} texts wait",
        f"{BODIES_AT_ONCE * settings.max_body >> 20} MiB of bodies",
        f"has more than {SMALL_BODY >> 10} KiB",
        f"a request of more than {TEXTS_IN_FULL} times as many",
        f"or {LONG_TEXTS_WAITING} of the longest",
        f"no answer in {settings.timeout:g} seconds",
    ):
        assert words in SERVING, words
