"""Runs that learn from pairs of texts: scored, asked, checked, streamed, and what is refused."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from pair_values import SAME, pair_values
from transformers import pipeline

from nlp_mtl import DataError, ModelError, Recipe, RecipeError, load, train
from nlp_mtl.build_data import prepare
from nlp_mtl.cli import main
from nlp_mtl.hub.export import export
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.run_check import check
from nlp_mtl.run_evaluation import evaluate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    train(Recipe.from_dict(pair_values(folder)))
    return folder / "run"


# A run


def test_a_model_of_pairs_and_single_texts_is_scored_and_says_which_task_reads_what(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert {*results["scores"]["test"]} == {"ner", "sentiment", "same", "close"}
    for task, found in evaluate(run).items():
        expected = results["scores"]["test"][task]
        labels = {key: value for key, value in found.items() if task != "close" or key == "items"}
        assert labels == {key: expected[key] for key in labels}
        # The correlation of a model that hardly learned: the last digits of its numbers count.
        numbers = {key: value for key, value in found.items() if key not in labels}
        assert numbers == pytest.approx({key: expected[key] for key in numbers}, rel=1e-3)
    card = (run / "model" / "README.md").read_text()
    assert "Texts longer than 64 tokens are read in overlapping windows. Of pairs of more than 64 tokens the" in card
    config = json.loads((run / "model" / "config.json").read_text())
    assert {task["name"]: task["pairs"] for task in config["tasks"]} == {
        "ner": False, "sentiment": False, "same": True, "close": True,
    }  # fmt: skip


def test_pairs_are_answered_by_the_tasks_that_learned_from_pairs(run: Path, tmp_path: Path) -> None:
    nlp = load(run)
    assert {*nlp("a good film")} == {"ner", "sentiment"}
    answer = nlp("a good film", text_pair="a bad film")
    assert {*answer} == {"same", "close"}
    several = nlp(["a good film", "tea"], text_pair=["a bad film", "oslo"])
    assert several[0]["same"]["score"] == pytest.approx(answer["same"]["score"], abs=1e-5)
    assert nlp([["a", "good", "film"]], text_pair=[["a", "bad", "film"]], tasks=["same"])[0]["same"] == {
        "label": answer["same"]["label"], "score": pytest.approx(answer["same"]["score"], abs=1e-5),
    }  # fmt: skip
    assert nlp("", text_pair=" ") == {"same": {"label": None, "score": None}, "close": {"value": None}}
    assert nlp("", text_pair="tea")["same"]["label"] in ("no", "yes")
    for task in ("same", "close"):
        export(run, task, tmp_path / task)
        found = pipeline("text-classification", str(tmp_path / task))(
            {"text": "a good film", "text_pair": "a bad film"}
        )
        found = found[0] if isinstance(found, list) else found
        expected = answer[task].get("score", answer[task].get("value"))
        assert found["score"] == pytest.approx(expected, abs=1e-5)


def test_the_wrong_kind_of_text_is_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    nlp = load(run)
    with pytest.raises(ModelError, match="`same` learned from pairs of texts: give the second text as text_pair"):
        nlp("a film", tasks=["ner", "same"])
    with pytest.raises(ModelError, match="`ner` learned from single texts: leave out text_pair"):
        nlp("a film", text_pair="tea", tasks=["ner"])
    with pytest.raises(ValueError, match="found 2 texts, but 1 in text_pair"):
        nlp(["a", "b"], text_pair=["c"])
    with pytest.raises(TypeError, match="should be a string"):
        nlp("a", text_pair=["c"])
    with pytest.raises(TypeError, match="found str"):
        nlp(["a"], text_pair="c")
    only = from_encoder(tiny.encoder(), [SAME], max_length=32)
    only.save_pretrained(tmp_path / "only")
    tiny.tokenizer().save_pretrained(tmp_path / "only")
    with pytest.raises(ModelError, match="`same` learned from pairs"):
        load(tmp_path / "only")("a film")


def test_cut_pairs_are_told_when_they_are_answered(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(run)(["tea " * 80, "tea"], text_pair=["film", "film"])
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 pairs of texts are longer than 64 tokens: the longer text of each was cut"
    ]


def test_the_command_line_answers_pairs(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted(*arguments: str, lines: str = "") -> tuple[int, list[dict[str, Any]], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(run), *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), [json.loads(line) for line in out.splitlines() if line.startswith("{")], err

    expected = load(run)("a good film", text_pair="a bad film")
    for arguments, lines in (
        (["a good film", "--text-pair", "a bad film"], ""),
        (["--json-lines"], '{"text": "a good film", "text_pair": "a bad film"}\n'),
    ):
        code, (line,), err = predicted(*arguments, lines=lines)
        assert (code, line) == (0, {"text": "a good film", "text_pair": "a bad film", "predictions": expected}), err
    code, (line,), _ = predicted("--json-lines", "--tasks", "ner", lines='{"text": "anna"}\n')
    assert line["predictions"] == load(run)("anna", tasks=["ner"])
    for lines, told in (
        ("tea\n", "line 1 of standard input is not JSON"),
        ('{"text": 1}\n', "line 1 of standard input should be an object with a `text`"),
        ('{"text": "a"}\n{"text": "a", "text_pair": "b"}\n', "some lines of standard input are pairs"),
    ):
        code, _, err = predicted("--json-lines", lines=lines)
        assert code == 2
        assert told in err
    assert predicted("a", "b", "--text-pair", "c")[0] == 2


def test_check_tells_cut_pairs_and_repeats_of_both_texts(tmp_path: Path) -> None:
    given = {**pair_values(tmp_path), "max_length": 16}
    file = tmp_path / "corpus" / "pairs" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["first"] = "tea " * 20
    rows[5] = {**rows[4], "second": "another film"}  # one of its texts alone is no repeat
    rows[7] = dict(rows[6])
    tiny.write_jsonl(file, rows)
    report = check(Recipe.from_dict(given))
    told = next(row for row in report["splits"] if (row["dataset"], row["split"]) == ("pairs", "train"))
    assert told["cut_pairs"] >= 1
    assert (told["windowed_share"], told["cut_words"]) == (0, 0)
    odd = [one for one in report["odd"] if "dataset `pairs`, split train" in one]
    assert any("row 3 " in one and "a pair of more than 16 tokens" in one for one in odd)
    repeats = [one for one in odd if one.startswith("the same text") and "row 7 " in one]
    assert len(repeats) == 1
    assert not any("row 5 " in one and one.startswith("the same text") for one in odd)


# What is refused


@pytest.mark.parametrize(
    ("change", "path", "told"),
    [
        ({"tasks": {"ner": {"dataset": "pairs"}}}, "tasks.ner.dataset", "pairs of texts, whose words have no labels"),
        ({"tasks": {"same": {"dataset": ["pairs", "texts"]}}}, "tasks.same.dataset", "some of its datasets hold pairs"),
        ({"datasets": {"words": {"text_pair": "x"}}}, "datasets.words.text_pair", "give `text`"),
        ({"datasets": {"pairs": {"text_pair": "first"}}}, "datasets.pairs.text_pair", "the same column as `text`"),
    ],
)
def test_a_recipe_that_mixes_up_pairs_is_refused(tmp_path: Path, change: dict[str, Any], path: str, told: str) -> None:
    given = pair_values(tmp_path)
    for section, keys in change.items():
        for key, value in keys.items():
            given[section][key] |= value
    with pytest.raises(RecipeError) as refused:
        Recipe.from_dict(given)
    assert any(one.path == path and told in one.message for one in refused.value.problems), refused.value


def test_a_second_column_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    given = pair_values(tmp_path)
    given["datasets"]["pairs"]["text_pair"] = "close"
    with pytest.raises(DataError, match="the column `close` should hold text"):
        prepare(Recipe.from_dict(given))
    given["datasets"]["pairs"]["text_pair"] = "secnd"
    with pytest.raises(DataError, match=r"no column `secnd`.*Did you mean `second`"):
        prepare(Recipe.from_dict(given))


def test_a_model_of_pairs_is_not_scored_on_single_texts(run: Path) -> None:
    given = Recipe.from_yaml(run / "recipe.yaml").to_dict()
    given["datasets"]["pairs"] |= {"text_pair": None}
    with pytest.raises(ModelError, match="`same` reads pairs of texts, but the recipe's datasets hold single texts"):
        evaluate(run, Recipe.from_dict(given))


def test_streamed_pairs_are_read_as_others(tmp_path: Path) -> None:
    given = pair_values(tmp_path, max_steps=3, eval_every=3)
    plain = prepare(Recipe.from_dict(given)).encoded["pairs"]["train"]
    given["datasets"]["pairs"] |= {"streaming": True, "buffer_size": 8}
    given["tasks"]["same"]["label_names"] = ["no", "yes"]
    given["sampling"] = {"strategy": "uniform"}
    prepared = prepare(Recipe.from_dict(given))
    batch = prepared.streams["pairs"].batch([*range(40)])
    rows = sorted(zip(batch["pieces"], batch["second"], strict=True))
    assert rows == sorted(zip(plain.rows["pieces"], plain.rows["second"], strict=True))
    assert np.isfinite(train(Recipe.from_dict(given))["scores"]["test"]["close"]["pearson"])
