"""Recipes that clean their texts: what is refused, what is done in training, and that prediction does the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_jsonl
from tiny_runs import assert_resumes_exactly, streamed_values, values

from nlp_mtl import Recipe, RecipeError, evaluate, load, train
from nlp_mtl.build_cleaning import dataset_cleaning, model_cleaning, row_filter
from nlp_mtl.build_data import prepare
from nlp_mtl.cleaning.cleaning import NOTHING, Cleaning
from nlp_mtl.cli import main
from nlp_mtl.data.row_filter import RowFilter
from nlp_mtl.errors import ModelError
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.run_check import check

ALL = {"remove_html": True, "normalize_white_space": True, "replace_urls": "http", "lowercase": True}


def dirty(folder: Path, cleaning: dict[str, Any] | None, **training: Any) -> dict[str, Any]:
    """A recipe whose texts have markup in them, for tasks on words and on texts."""
    given = values(folder, **training)
    for file in (Path(given["data_dir"]) / "texts").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        dirt = "<p>{}&nbsp;<b>See</b> http://x.org/1</p>"
        write_jsonl(file, [{**row, "text": dirt.format(row["text"].upper())} for row in rows])
    return given if cleaning is None else {**given, "cleaning": cleaning}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cleaning": {"remove_stop_words": ["a"]}}, r"\.remove_stop_words: it leaves out words, and `ner`, `pos` la"),
        ({"cleaning": {"remove_punctuation": True}}, r"cleaning\.remove_punctuation: it leaves out words"),
        ({"cleaning": {"replace_urls": ""}}, r"cleaning\.replace_urls: it leaves out words.*or give a word"),
        ({"cleaning": {"replace_urls": "a b"}}, r"cleaning\.replace_urls: "),
        ({"cleaning": {"lower_case": True}}, r"cleaning\.lower_case: .*Did you mean `lowercase`"),
        ({"cleaning": {"normalize_unicode": "nfc"}}, r"cleaning\.normalize_unicode: .*NFC"),
        ({"texts": {"remove_punctuation": True}}, r"texts\.cleaning\.remove_punctuation: it leaves out words"),
        ({"words": {"remove_html": True}}, r"words\.cleaning\.remove_html: it is for running text"),
        ({"texts": {"lowercase": True}}, r"cleaning: `texts` cleans texts in its own way, so it is open"),
        ({"texts": {"duplicate_threshold": 0.9}}, r"\.duplicate_threshold: only `drop_duplicates: near` reads it"),
        ({"texts": {"min_words": 5, "max_words": 4}}, r"cleaning\.min_words: it is more than `max_words`"),
        ({"texts": {"drop_duplicates": "exact"}, "streaming": True}, r"cleaning\.drop_duplicates: rows of a stream"),
        ({"cleaning": {"drop_duplicates": "exact"}}, r"cleaning\.drop_duplicates"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told_with_its_key(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    given = values(tmp_path)
    for name in ("texts", "words"):
        given["datasets"][name]["cleaning"] = changes.get(name, {})
    given["datasets"]["texts"]["streaming"] = changes.get("streaming", False)
    given["cleaning"] = changes.get("cleaning", {})
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(given)


def test_texts_alone_may_lose_words(tmp_path: Path) -> None:
    given = values(tmp_path)
    del given["tasks"]["ner"], given["tasks"]["pos"], given["datasets"]["words"]
    cleaning = {"remove_stop_words": ["The"], "remove_punctuation": True, "replace_urls": ""}
    recipe = Recipe.from_dict({**given, "cleaning": cleaning})
    assert model_cleaning(recipe) == Cleaning(remove_stop_words=("The",), remove_punctuation=True, replace_urls="")


def test_a_dataset_may_differ_and_take_steps_back(tmp_path: Path) -> None:
    given = {**values(tmp_path), "cleaning": {"lowercase": True, "replace_urls": "http", "normalize_unicode": "NFC"}}
    given["datasets"]["texts"]["cleaning"] = {"lowercase": False, "replace_urls": False, "remove_html": "escaped"}
    recipe = Recipe.from_dict(given)
    base = model_cleaning(recipe)
    assert base == Cleaning(lowercase=True, replace_urls="http", normalize_unicode="NFC")
    assert dataset_cleaning(recipe, "texts", base) == Cleaning(normalize_unicode="NFC", remove_html="escaped")
    assert dataset_cleaning(recipe, "words", base) == base
    assert not row_filter(recipe, "texts")


def test_what_all_datasets_say_alike_is_done_at_prediction(tmp_path: Path) -> None:
    given = values(tmp_path)
    for spec in given["datasets"].values():
        spec["cleaning"] = {"lowercase": True}
    given["datasets"]["texts"]["cleaning"] |= {"min_words": 2, "drop_duplicates": "exact"}
    recipe = Recipe.from_dict(given)
    assert model_cleaning(recipe) == Cleaning(lowercase=True)
    assert row_filter(recipe, "texts") == RowFilter("exact", 0.8, 2, None)
    assert model_cleaning(Recipe.from_dict(values(tmp_path))) == NOTHING


def test_stop_words_of_a_language_are_kept_as_words(tmp_path: Path) -> None:
    library = pytest.importorskip("stopwordsiso")
    given = values(tmp_path)
    del given["tasks"]["ner"], given["tasks"]["pos"], given["datasets"]["words"]
    found = model_cleaning(Recipe.from_dict({**given, "cleaning": {"remove_stop_words": "en"}}))
    assert set(found.remove_stop_words) == set(library.stopwords("en"))
    with pytest.raises(RecipeError, match=r"cleaning\.remove_stop_words: there are no stop words of `english`"):
        model_cleaning(Recipe.from_dict({**given, "cleaning": {"remove_stop_words": "english"}}))


# ---- runs


def test_a_model_that_learned_from_clean_texts_cleans_what_it_is_given(tmp_path: Path) -> None:
    results = train(Recipe.from_dict(dirty(tmp_path, ALL)))
    run = tmp_path / "run"
    assert json.loads((run / "model" / "config.json").read_text())["cleaning"] == ALL
    nlp = load(run)
    text = "<p>ANNA sees<b>&nbsp;Ber</b>lin at http://x.org/page?a=1 .</p>"
    found, plain = nlp(text), nlp("anna sees berlin at http .")
    assert [entry["label"] for entry in found["pos"]] == [entry["label"] for entry in plain["pos"]]
    assert [entry["text"] for entry in found["pos"]] == [
        "ANNA",
        "sees",
        "Ber</b>lin",
        "at",
        "http://x.org/page?a=1",
        ".",
    ]
    assert all(text[entry["start"] : entry["end"]] == entry["text"] for entry in (*found["pos"], *found["ner"]))
    assert found["sentiment"] == pytest.approx(plain["sentiment"])
    words = ["ANNA", "sees", "http://x.org/1"]
    assert [entry["text"] for entry in nlp([words])[0]["pos"]] == words
    assert nlp([words])[0]["sentiment"] == pytest.approx(nlp([["anna", "sees", "http"]])[0]["sentiment"])
    assert evaluate(run, split="test") == results["scores"]["test"]


def test_a_recipe_that_says_nothing_scores_a_model_as_the_model_cleans(tmp_path: Path) -> None:
    given = dirty(tmp_path, ALL)
    train(Recipe.from_dict(given))
    without = Recipe.from_dict({key: value for key, value in given.items() if key != "cleaning"})
    assert evaluate(tmp_path / "run", without) == evaluate(tmp_path / "run")


def test_cleaning_is_part_of_what_the_cache_goes_by(tmp_path: Path) -> None:
    given = dirty(tmp_path, None)
    plain = prepare(Recipe.from_dict(given)).encoded["texts"]["train"]
    cleaned = prepare(Recipe.from_dict({**given, "cleaning": ALL})).encoded["texts"]["train"]
    assert cleaned.lengths.sum() < plain.lengths.sum()
    words = [prepare(Recipe.from_dict({**given, "cleaning": one})).encoded["words"]["train"].digest()
             for one in ({}, {"remove_html": True}, {"replace_usernames": "@"})]  # fmt: skip
    assert len(set(words)) == 1  # there is nothing of these in them


def test_a_stream_is_cleaned_as_rows_that_are_held(tmp_path: Path) -> None:
    given = streamed_values(tmp_path, max_steps=4, eval_every=2)
    given["cleaning"] = {"replace_usernames": "@", "remove_html": True, "lowercase": True}
    recipe = Recipe.from_dict(given)
    stream = prepare(recipe).streams["texts"]
    given["datasets"]["texts"] |= {"streaming": False, "buffer_size": 10_000, "test_fraction": 0}
    held = prepare(Recipe.from_dict(given)).encoded["texts"]["train"]
    found = {tuple(pieces) for pieces in stream.batch(list(range(48)))["pieces"]}
    assert found == {tuple(pieces) for pieces in held.rows["pieces"]}


def test_a_run_that_cleans_and_leaves_out_rows_resumes_exactly(tmp_path: Path) -> None:
    given = dirty(tmp_path, ALL, num_epochs=2, save_every=1, keep_last=20)
    given["datasets"]["texts"]["cleaning"] = {"drop_duplicates": "exact", "min_words": 2}
    recipe = Recipe.from_dict({**given, "output_dir": str(tmp_path / "whole")})
    assert_resumes_exactly(recipe, 5, tmp_path / "stopped")


def test_check_tells_what_is_done_to_how_many_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = dirty(tmp_path, ALL)
    report = check(Recipe.from_dict(given))["cleaning"]
    assert report["prediction"] == ALL
    of_texts = {split["split"]: split for split in report["splits"] if split["dataset"] == "texts"}
    assert set(of_texts) == {"train", "validation", "test"}
    assert of_texts["train"]["texts"] == of_texts["train"]["changed"] == 48
    before, after = of_texts["train"]["examples"][0]
    assert before.startswith("<p>")
    assert after == after.lower()
    of_words = next(split for split in report["splits"] if split["dataset"] == "words")
    assert of_words["steps"] == {"replace_urls": "http", "lowercase": True}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(given))
    with pytest.raises(SystemExit) as exit_:
        main(["check", str(file)])
    assert exit_.value.code in (0, None)
    told = capsys.readouterr().out
    assert "Cleaning at prediction: remove_html, replace_urls 'http', lowercase, normalize_white_space." in told
    assert "Cleaning of texts, train: 48 of 48 texts changed by" in told


def test_a_model_whose_cleaning_cannot_be_read_is_told(tmp_path: Path) -> None:
    train(Recipe.from_dict(dirty(tmp_path, ALL, max_steps=1)))
    file = tmp_path / "run" / "model" / "config.json"
    config = json.loads(file.read_text())
    for cleaning in ({"bleach": True}, {"lowercase": "yes"}, ["lowercase"]):
        file.write_text(json.dumps({**config, "cleaning": cleaning}))
        with pytest.raises(ModelError, match=r"has a cleaning that cannot be read"):
            load(tmp_path / "run")
    assert MultiTaskConfig().cleaning is None


def test_answers_of_a_model_that_cleans_are_not_mixed_with_those_of_one_that_does_not(tmp_path: Path) -> None:
    train(Recipe.from_dict(dirty(tmp_path, ALL, max_steps=1)))
    nlp = load(tmp_path / "run")
    before = nlp.digest()
    nlp.cleaning = NOTHING
    assert nlp.digest() != before
