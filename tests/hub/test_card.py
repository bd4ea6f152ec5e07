"""Model cards: valid for the Hub, made from the run, with what their owner wrote left alone."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_runs import tiny_recipe

from nlp_mtl import ModelError, train
from nlp_mtl.hub.card import model_card, task_card
from nlp_mtl.hub.card_header import TITLES, About
from nlp_mtl.hub.card_text import BEGIN, END, merged
from nlp_mtl.hub.repository import DatasetFacts


@pytest.fixture
def told(run: Path) -> dict[str, Any]:
    """The arguments of a card."""
    return {
        "config": json.loads((run / "model" / "config.json").read_text()),
        "repo_id": "me/tiny",
        "about": About("mit", ("en",), ("mine",)),
        "recipe": yaml.safe_load((run / "recipe.yaml").read_text()),
        "results": json.loads((run / "results.json").read_text()),
    }


def text_of(old: str | None = None, **told: Any) -> str:
    return merged(old, *model_card(**told), where="of me/tiny", said=told["about"].said())


def card_of(**told: Any) -> ModelCard:
    return ModelCard(text_of(**told), ignore_metadata_errors=False)


def header_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def scores_in(text: str) -> set[tuple[str, str, str, float]]:
    return {
        (result["task"]["name"], result["dataset"]["split"], metric["name"], metric["value"])
        for result in header_of(text)["model-index"][0]["results"]
        for metric in result["metrics"]
    }


def test_a_card_tells_tasks_scores_and_how_to_use_the_model(told: dict[str, Any]) -> None:
    card = card_of(**told, plots=["plots/losses.png"])
    data = card.data.to_dict()
    assert (data["library_name"], data["license"], data["language"]) == ("nlp_mtl", "mit", ["en"])
    assert {"mine", "token-classification", "text-classification"} <= {*data["tags"]}
    for part in (
        'load("me/tiny")', "nlp-mtl export me/tiny", "trust_remote_code=True", "| ner |", "## Limits",
        "![losses](plots/losses.png)", "## Training data", "## How it was trained",
    ):  # fmt: skip
        assert part in card.text
    assert "\n\n\n" not in card.text
    assert "$" not in card.text


def test_all_scores_are_in_the_metadata_under_their_tasks(told: dict[str, Any]) -> None:
    # Two tasks of one type read the same dataset here.
    expected = {
        (task, split, title, round(scores[metric], 6))
        for split, tasks in told["results"]["scores"].items()
        for task, scores in tasks.items()
        for metric, title in TITLES.items()
        if metric in scores
    }
    assert len(expected) > 10
    assert scores_in(text_of(**told)) == expected
    assert len(header_of(text_of(**told))["model-index"][0]["results"]) == 6


def test_a_score_over_several_datasets_names_them_all(told: dict[str, Any]) -> None:
    data = told["results"]["data"]
    data["words"] |= {"path": "they/words", "name": "en", "revision": "abc", "from_hub": True}
    data["more"] = {**data["words"], "name": "de"}
    told["recipe"]["tasks"]["ner"]["dataset"] = ["words", "more"]
    found = next(
        one["dataset"]
        for one in header_of(text_of(**told))["model-index"][0]["results"]
        if one["task"]["name"] == "ner" and one["dataset"]["split"] == "test"
    )
    assert found == {"name": "words, more", "type": "they/words", "revision": "abc", "split": "test"}


def test_licences_and_languages_of_datasets_are_those_of_their_pages(told: dict[str, Any]) -> None:
    words, texts = told["results"]["data"]["words"], told["results"]["data"]["texts"]
    words |= {"path": "they/treebank", "name": "de_gsd", "revision": "refs/convert/parquet", "from_hub": True}
    texts |= {"path": "they/reviews", "from_hub": True}
    facts = {"they/treebank": DatasetFacts("cc-by-sa-4.0", ("fr", "de")), "they/reviews": DatasetFacts(None, ("en",))}
    told["about"] = About()
    card = card_of(**told, facts=facts)
    assert card.data.to_dict()["language"] == ["de", "en"]  # of one of many languages, the one that was read
    assert card.data.to_dict()["datasets"] == ["they/treebank", "they/reviews"]
    treebank = "[they/treebank](https://huggingface.co/datasets/they/treebank) de_gsd refs/convert/parquet"
    assert f"| words | {treebank} | cc-by-sa-4.0 | de |" in card.text
    assert "| texts | [they/reviews](https://huggingface.co/datasets/they/reviews) | not told | en |" in card.text
    del words["name"]
    assert card_of(**told, facts=facts).data.to_dict()["language"] == ["en"]
    told["about"] = About(language=("nl",))
    assert card_of(**told, facts=facts).data.to_dict()["language"] == ["nl"]


def test_a_card_of_a_run_that_goes_on_says_so(told: dict[str, Any]) -> None:
    assert "under way" not in card_of(**told).text
    told["results"] |= {"finished": False, "step": 12, "scores": {}}
    card = card_of(**told)
    assert "Its training was under way when this was pushed: this is the model after step 12." in card.text
    assert "Nothing could be scored" in card.text
    assert "model-index" not in card.data.to_dict()


def test_a_model_without_its_run_has_a_card_that_claims_no_scores(told: dict[str, Any]) -> None:
    card = card_of(config=told["config"], repo_id="me/tiny", about=About())
    assert "Scores" not in card.text
    assert "scores" not in card.text.lower().replace("how well it answers has not been told", "")
    assert "| ner | token-classification |" in card.text
    assert "\n\n\n" not in card.text


def test_a_card_of_one_task_tells_where_it_comes_from_and_its_scores_alone(
    told: dict[str, Any], tmp_path: Path
) -> None:
    ner = next(task for task in told["config"]["tasks"] if task["name"] == "ner")
    arguments = {"encoder": told["config"]["encoder_config"], "about": About(), "source": "me/tiny"}
    run = {"recipe": told["recipe"], "results": told["results"]}
    text = merged(None, *task_card(ner, "me/ner", **arguments, **run), where="of me/ner")
    card = ModelCard(text, ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"], data["base_model"]) == (
        "token-classification", "transformers", "me/tiny",
    )  # fmt: skip
    assert {name for name, *_ in scores_in(text)} == {"ner"}
    assert 'pipeline("token-classification", "me/ner")' in card.text
    assert "[me/tiny](https://huggingface.co/me/tiny)" in card.text
    plain = task_card(ner, "USER/ner", **{**arguments, "source": str(tmp_path)}).text
    assert "# USER/ner\n" in plain
    assert f"of `{tmp_path.name}`, a multi-task model" in plain
    assert "Scores" not in plain


def test_the_run_folder_keeps_a_card_that_names_no_folder_of_this_machine(run: Path, told: dict[str, Any]) -> None:
    text = (run / "model" / "README.md").read_text()
    assert 'load("USER/run")' in text
    assert ModelCard(text, ignore_metadata_errors=False).data.to_dict()["library_name"] == "nlp_mtl"
    assert told["recipe"]["data_dir"] not in text
    assert told["recipe"]["output_dir"] not in text


def test_what_the_owner_wrote_into_the_runs_card_stays_when_the_run_is_resumed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    train(recipe)
    card = Path(recipe.output_dir) / "model" / "README.md"
    card.write_text(card.read_text() + "\nMine.\n")
    train(recipe, resume=True)
    assert "Mine." in card.read_text()


def test_a_model_is_saved_though_its_card_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    train(recipe)
    card = Path(recipe.output_dir) / "model" / "README.md"
    broken = card.read_text().replace(END, "")
    card.write_text(broken)
    train(recipe, resume=True)
    assert card.read_text() == broken
    assert f"The model card is left as it is: the card {card} holds" in caplog.text


def test_a_card_with_a_mark_too_few_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the card of me/x holds .* each should stand there once"):
        merged(f"---\nlicense: mit\n---\n{BEGIN}\n", {}, "", where="of me/x")


@pytest.mark.parametrize("header", ["license: [", "- a list"])
def test_a_card_whose_header_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(ModelError, match="the card of me/x has a header that cannot be read"):
        merged(f"---\n{header}\n---\ntext\n", {}, "", where="of me/x")


def test_labels_and_recipes_of_any_characters_do_not_break_a_card(told: dict[str, Any]) -> None:
    told["config"]["tasks"][0]["labels"] = ["a|b", BEGIN, END, "back`tick", "new\nline"]
    told["recipe"]["tasks"]["ner"]["label_map"] = {END: BEGIN, "```": "~~~"}
    text = text_of(**told)
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert "`a\\|b`" in text
    assert "`` back`tick ``" in text
    assert "`new line`" in text
    assert "\n````yaml\n" in text
    assert text_of(text, **told) == text


# ---- a second card over the first


def test_a_card_that_nobody_changed_is_made_anew_from_what_is_there_now(told: dict[str, Any]) -> None:
    told["about"] = About()
    first = text_of(**told)
    told["results"]["scores"]["test"]["ner"]["span_f1"] = 0.123
    assert text_of(first, **told) == text_of(**told)
    without_run = text_of(first, config=told["config"], repo_id="me/tiny", about=About())
    assert {"model-index", "metrics", "datasets", "base_model"}.isdisjoint(header_of(without_run))


def test_metadata_that_their_owner_wrote_or_changed_stay(told: dict[str, Any]) -> None:
    first = text_of(**told)
    header = header_of(first) | {"license": "cc-by-4.0", "thumbnail": "x.png", "datasets": ["they/own"]}
    header["tags"].append("owners")
    changed = f"---\n{yaml.safe_dump(header)}---\n{first.split('---', 2)[2]}"
    told["about"] = About(language=("de",))
    again = header_of(text_of(changed, **told))
    assert (again["license"], again["thumbnail"], again["datasets"]) == ("cc-by-4.0", "x.png", ["they/own"])
    assert again["language"] == ["de"]
    assert "owners" in again["tags"]
    assert "mine" in again["tags"]


def test_what_was_said_at_an_earlier_push_stays_until_something_else_is_said(told: dict[str, Any]) -> None:
    first = text_of(**told)
    again = text_of(first, **{**told, "about": About()})
    found = header_of(again)
    assert (found["license"], found["language"]) == ("mit", ["en"])
    assert "mine" in found["tags"]
    found = header_of(text_of(again, **{**told, "about": About("apache-2.0")}))
    assert (found["license"], found["language"]) == ("apache-2.0", ["en"])


def test_what_is_said_now_wins_over_what_the_owner_wrote(told: dict[str, Any]) -> None:
    old = "---\nlicense: mit\nlanguage: [en]\n---\n\nMine.\n"
    told["about"] = About("apache-2.0", ("de",))
    found = header_of(text_of(old, **told))
    assert (found["license"], found["language"]) == ("apache-2.0", ["de"])


def test_metadata_of_any_kind_are_written_back(told: dict[str, Any]) -> None:
    old = "\ufeff---\nreleased: 2024-05-01\nlanguage: [en, no]\n1: a\nto_dict: x\n---\nMine.\n"
    text = text_of(old, **{**told, "about": About()})
    found = header_of(text)
    assert found["released"] == date(2024, 5, 1)
    assert found["language"] == ["en", "no"]
    assert (found[1], found["to_dict"]) == ("a", "x")
    assert text.count("---\n") == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("old", ["", "Mine.\n", "---\nlicense: mit\n---\nMine.\n", "---\n---\n"])
def test_text_that_was_there_without_marks_stays_above(told: dict[str, Any], old: str, newline: str) -> None:
    text = text_of(old.replace("\n", newline), **told)
    assert ("Mine." in text) == ("Mine." in old)
    assert text.index("Mine.") < text.index(BEGIN) if "Mine." in old else True
    assert header_of(text)["library_name"] == "nlp_mtl"
