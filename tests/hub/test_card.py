"""Model cards: valid for the Hub, made from the run, with what their owner wrote left alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from tiny_runs import tiny_recipe

from nlp_mtl import ModelError, train
from nlp_mtl.hub.card import BEGIN, END, About, merged, model_card, task_card
from nlp_mtl.hub.repository import DatasetFacts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("run"), max_steps=2, log_every=1, eval_every=1)
    train(recipe)
    return Path(recipe.output_dir)


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


def card_of(**told: Any) -> ModelCard:
    return ModelCard(merged(None, *model_card(**told)), ignore_metadata_errors=False)


def scores_in(card: ModelCard) -> list[tuple[str, str, str, float]]:
    return [
        (result["task"]["name"], result["dataset"]["split"], metric["name"], metric["value"])
        for result in card.data.to_dict()["model-index"][0]["results"]
        for metric in result["metrics"]
    ]


def test_a_card_tells_tasks_scores_and_how_to_use_the_model(told: dict[str, Any]) -> None:
    card = card_of(**told, plots=["plots/losses.png"])
    data = card.data.to_dict()
    assert (data["library_name"], data["license"], data["language"]) == ("nlp_mtl", "mit", ["en"])
    assert {"mine", "token-classification", "text-classification"} <= {*data["tags"]}
    expected = told["results"]["scores"]["test"]["ner"]["span_f1"]
    assert ("ner", "test", "Span F1 (strict IOB2)", round(expected, 6)) in scores_in(card)
    for part in (
        'load("me/tiny")', "nlp-mtl export me/tiny", "trust_remote_code=True", "| ner |", "## Limits",
        "![losses](plots/losses.png)", "## Training data", "## How it was trained",
    ):  # fmt: skip
        assert part in card.text
    assert "\n\n\n" not in card.text
    assert "$" not in card.text


def test_licences_and_languages_of_datasets_are_those_of_their_pages(told: dict[str, Any]) -> None:
    words, texts = told["recipe"]["datasets"]["words"], told["recipe"]["datasets"]["texts"]
    words |= {"path": "they/treebank", "name": "de_gsd", "revision": "refs/convert/parquet"}
    texts |= {"path": "they/reviews"}
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


def test_a_card_of_one_task_tells_where_it_comes_from_and_its_scores_alone(told: dict[str, Any]) -> None:
    ner = next(task for task in told["config"]["tasks"] if task["name"] == "ner")
    arguments = {"encoder": told["config"]["encoder_config"], "about": About(), "source": "me/tiny"}
    run = {"recipe": told["recipe"], "results": told["results"]}
    card = ModelCard(merged(None, *task_card(ner, "me/ner", **arguments, **run)), ignore_metadata_errors=False)
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"], data["base_model"]) == (
        "token-classification", "transformers", "me/tiny",
    )  # fmt: skip
    assert {name for name, *_ in scores_in(card)} == {"ner"}
    assert 'pipeline("token-classification", "me/ner")' in card.text
    assert "[me/tiny](https://huggingface.co/me/tiny)" in card.text
    plain = task_card(ner, "USER/ner", **{**arguments, "source": "/runs/demo"})[1]
    assert "# USER/ner\n" in plain
    assert "of `demo`, a multi-task model" in plain
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


def test_a_card_with_a_mark_too_few_is_refused() -> None:
    with pytest.raises(ModelError, match="each should stand there once"):
        merged(f"---\nlicense: mit\n---\n{BEGIN}\n", {}, f"{BEGIN}\n{END}")


def test_a_card_whose_header_cannot_be_read_is_refused() -> None:
    with pytest.raises(ModelError, match="a header that cannot be read"):
        merged("---\nlicense: [\n---\ntext\n", {}, f"{BEGIN}\n{END}")


def test_labels_and_recipes_that_hold_marks_or_bars_do_not_break_a_card(told: dict[str, Any]) -> None:
    told["config"]["tasks"][0]["labels"] = ["a|b", BEGIN, END]
    told["recipe"]["tasks"]["ner"]["label_map"] = {END: BEGIN}
    text = merged(None, *model_card(**told))
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert "`a\\|b`" in text
    merged(text, *model_card(**told))
