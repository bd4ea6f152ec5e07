"""The recipe of a trained model with more tasks: what is kept, what is taken over, and all that is wrong at once."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from extensions import OLD, new_values
from tiny_runs import streamed_values, values

from nlp_mtl import ModelError, Recipe, RecipeError, train
from nlp_mtl.compare import compare
from nlp_mtl.extend_recipes import read_extension
from nlp_mtl.recipe_reading import changed_keys
from nlp_mtl.run_check import check
from nlp_mtl.run_folder import learned_changes
from nlp_mtl.tune import tune


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step: what matters is its recipe, and what its model fixes."""
    folder = tmp_path_factory.mktemp("base")
    given = values(folder, max_steps=1)
    given |= {"word_splitter": "english", "max_length": 32, "window_overlap": 8, "cleaning": {"lowercase": True}}
    given["tasks"]["ner"]["loss_weight"] = 0.5
    train(Recipe.from_dict(given))
    return folder / "run"


def problems(base: Path, given: dict[str, Any]) -> dict[str, str]:
    """``{path: message}`` of a recipe that is refused."""
    with pytest.raises(RecipeError) as error:
        read_extension(base, given)
    return {problem.path: problem.message for problem in error.value.problems}


def test_what_the_model_fixes_is_the_models_and_all_else_the_recipes(base: Path, tmp_path: Path) -> None:
    _, recipe = read_extension(base, {**new_values(tmp_path), "seed": 7})
    old = Recipe.from_yaml(base / "recipe.yaml")
    for key in ("encoder", "word_splitter", "max_length", "window_overlap", "cleaning", "sharing"):
        assert getattr(recipe, key) == getattr(old, key)
    assert (recipe.seed, recipe.training.batch_size) == (7, 8)
    assert recipe.output_dir == str(tmp_path / "extended")
    for name in OLD:
        assert recipe.tasks[name] == old.tasks[name]
    for name in ("words", "texts"):
        assert recipe.datasets[name] == old.datasets[name].model_copy(update={"data_dir": old.data_dir})
    assert recipe.extension is not None
    assert recipe.extension.model == str(base)
    assert recipe.extension.freeze == "model"
    assert recipe.extension.old_splits["texts"].model_dump() == {"seed": 0, "stratify": "label"}


def test_a_recipe_file_is_read_with_overrides_and_its_own_folder(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path)
    given |= {"data_dir": "topics", "extension": {"data_dir": "old", "freeze": "heads"}}
    file = tmp_path / "topic.yaml"
    file.write_text(yaml.safe_dump(given))
    _, recipe = read_extension(base, file, ["extension.freeze=null", "extension.l2_to_start=0.5", "encoder=null"])
    assert recipe.data_dir == str(tmp_path / "topics")
    assert recipe.datasets["words"].data_dir == str(tmp_path / "old")
    assert recipe.extension is not None
    assert (recipe.extension.freeze, recipe.extension.l2_to_start) == ("nothing", 0.5)
    with pytest.raises(RecipeError, match="there is no such file"):
        read_extension(base, tmp_path / "nothing.yaml")


def test_what_was_said_to_a_recipe_in_code_counts_and_its_defaults_do_not(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path)
    plain = read_extension(base, given)[1]
    encoder = Recipe.from_yaml(base / "recipe.yaml").encoder
    assert read_extension(base, Recipe.from_dict({**given, "encoder": encoder}))[1] == plain


@pytest.mark.parametrize(
    ("changes", "freeze"),
    [
        ({}, "model"),
        ({"extension": {"replay": 10}}, "nothing"),
        ({"extension": {"l2_to_start": 1}}, "nothing"),
        ({"extension": {"distillation": True}}, "nothing"),
        ({"extension": {"distillation": False, "l2_to_start": 0}}, "model"),
        ({"training": {"max_tokens": 64, "frozen_layers": "embeddings"}}, "nothing"),
        ({"training": {"max_tokens": 64, "unfreeze_every": 2}}, "nothing"),
        ({"extension": {"replay": 10, "freeze": "heads"}}, "heads"),
    ],
)
def test_without_a_word_on_forgetting_the_model_is_frozen(
    base: Path, tmp_path: Path, changes: dict[str, Any], freeze: str
) -> None:
    extension = read_extension(base, {**new_values(tmp_path), **changes})[1].extension
    assert extension is not None
    assert extension.freeze == freeze


def test_all_that_differs_from_what_the_model_keeps_is_told_at_once_with_both(base: Path, tmp_path: Path) -> None:
    other = tiny.save_encoder(tmp_path / "encoder", "roberta")
    found = problems(
        base,
        {
            **new_values(tmp_path), "encoder": str(other), "word_splitter": "unicode", "max_length": 64,
            "window_overlap": 4, "traning": {},
        },
    )  # fmt: skip
    encoder = Recipe.from_yaml(base / "recipe.yaml").encoder
    assert (
        found["encoder"]
        == f"found {str(other)!r:.100}, but the trained model has {encoder!r:.100}, which it keeps: leave it out"
    )
    assert (
        found["word_splitter"] == "found 'unicode', but the trained model has 'english', which it keeps: leave it out"
    )
    assert found["max_length"].startswith("found 64, but the trained model has 32")
    assert {"window_overlap", "traning"} < {*found}


@pytest.mark.parametrize(
    ("key", "said", "told"),
    [
        ("sharing", {"strategy": "gate"}, "found {'strategy': 'gate'}, but the trained model has nothing"),
        ("cleaning", {"lowercase": False}, "found nothing, but the trained model has {'lowercase': True}"),
        ("cleaning", {"lowercase": True, "fix_encoding": True}, "found {'fix_encoding': True, 'lowercase': True}, but"),
    ],
)
def test_sections_that_differ_are_told(base: Path, tmp_path: Path, key: str, said: dict[str, Any], told: str) -> None:
    assert problems(base, {**new_values(tmp_path), key: said})[key].startswith(told)


def test_what_the_recipe_says_as_the_model_has_it_is_taken(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path)
    old = Recipe.from_yaml(base / "recipe.yaml")
    link = tmp_path / "link"
    link.symlink_to(old.encoder)
    same = {"encoder": str(link), "max_length": "32", "cleaning": {"lowercase": True}, "sharing": {"strategy": "hard"}}
    assert read_extension(base, {**given, **same})[1] == read_extension(base, given)[1]


@pytest.mark.parametrize(
    ("extension", "training", "path", "told"),
    [
        ({"freeze": "model", "replay": 3}, {}, "extension.freeze", "`extension.replay` has nothing to do"),
        ({"freeze": "model"}, {"frozen_layers": 1}, "extension.freeze", "`training.frozen_layers` has nothing"),
        ({"importance": "fisher"}, {}, "extension.importance", "only `l2_to_start` reads it"),
        ({"fisher_rows": 5, "l2_to_start": 1}, {}, "extension.fisher_rows", "only `importance: fisher`"),
        ({"temperature": 3}, {}, "extension.temperature", "only `distillation` reads it"),
        ({"distillation": True, "teacher_weight": 0.1}, {}, "extension.teacher_weight", "give `replay` as well"),
        ({"old_weight": 2, "l2_to_start": 1}, {}, "extension.old_weight", "only `replay` and `distillation`"),
        *[({"replay": one}, {}, "extension.replay", "a number of rows (100), a share of them (0.1) or `all` is wanted")
          for one in (0, 1.5, -3, True, "some", [1], float("nan"))],
        ({"freeze": "encoder"}, {}, "extension.freeze", "allowed: `nothing`, `heads`, `model`"),
        ({"old_tasks": ["topic"]}, {}, "extension.old_tasks", "`topic` goes on learning"),
        ({"old_tasks": ["nr"]}, {}, "extension.old_tasks", "`nr` is not known; the recipe beside"),
        ({"old_tasks": "ner"}, {}, "extension.old_tasks", "list"),
        ({"distillation": ["sentment"]}, {}, "extension.distillation", "Did you mean `sentiment`?"),
        ({"distillation": ["topic"]}, {}, "extension.distillation", "`topic` goes on learning"),
        ({"model": "elsewhere"}, {}, "extension.model", "says it by itself"),
        ({"old_splits": {"texts": {"seed": 3}}}, {}, "extension.old_splits", "says it by itself"),
        ({"repaly": 3}, {}, "extension.repaly", "Did you mean `replay`?"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_told(
    base: Path, tmp_path: Path, extension: dict[str, Any], training: dict[str, Any], path: str, told: str
) -> None:
    assert told in problems(base, new_values(tmp_path, extension, **training))[path]


def test_micro_batches_have_to_hold_the_models_windows(base: Path, tmp_path: Path) -> None:
    found = problems(base, new_values(tmp_path, max_tokens=16))
    assert found["training.max_tokens"] == "found 16, but a window of max_length 32 has to fit; raise it"


def test_a_dataset_by_the_name_of_an_old_one_is_the_same_or_refused(base: Path, tmp_path: Path) -> None:
    given, old = new_values(tmp_path), Recipe.from_yaml(base / "recipe.yaml")
    given["datasets"]["texts"] = {**given["datasets"]["news"]}
    given["tasks"]["topic"]["dataset"] = "texts"
    del given["datasets"]["news"]
    told = problems(base, given)["datasets.texts"]
    assert told.startswith("an old task reads another dataset of this name (data_files: ")
    assert told.endswith("give this one another name")
    same = old.datasets["texts"].model_dump(exclude_unset=True)
    given["datasets"]["texts"] = same
    assert "`extension.data_dir`" in problems(base, given)["datasets.texts"]
    given["datasets"]["texts"] = {**same, "data_dir": old.data_dir}
    _, recipe = read_extension(base, given)
    assert recipe.old_datasets == ["words"]
    assert recipe.draws_from("texts")
    assert not recipe.draws_from("words")


def test_shares_of_old_datasets_are_0_unless_they_are_replayed(base: Path, tmp_path: Path) -> None:
    given = {**new_values(tmp_path), "sampling": {"strategy": "fixed", "shares": {"news": 2}}}
    assert read_extension(base, given)[1].sampling.shares == {"words": 0, "texts": 0, "news": 2}
    assert "say what `words`, `texts` gives" in problems(base, {**given, "extension": {"replay": 3}})["sampling.shares"]
    shares = {"news": 2, "words": 1, "texts": 0}
    with_shares = {**given, "sampling": {"strategy": "fixed", "shares": shares}}
    found = problems(base, with_shares)
    assert "`extension.replay` says how many" in found["sampling.shares.words"]
    _, recipe = read_extension(base, {**with_shares, "extension": {"replay": 3}})
    assert [name for name in recipe.datasets if recipe.draws_from(name)] == ["words", "news"]


def test_classes_of_an_old_task_are_balanced_where_it_is_read(tmp_path: Path) -> None:
    given = values(tmp_path, max_steps=1)
    given["datasets"]["texts"]["oversample"] = "sentiment"
    given["tasks"]["tone"] = given["tasks"]["sentiment"]
    train(Recipe.from_dict(given))
    for old, balanced in (["sentiment", "tone"], "sentiment"), (["tone"], None):
        _, recipe = read_extension(tmp_path / "run", new_values(tmp_path, {"replay": 9, "old_tasks": old}))
        assert recipe.datasets["texts"].oversample == balanced


def test_a_recipe_that_extends_is_checked_by_its_own_data(base: Path, tmp_path: Path) -> None:
    encoder = Recipe.from_yaml(base / "recipe.yaml").encoder
    given = {**new_values(tmp_path, {"replay": 3, "old_tasks": ["ner"]}), "encoder": encoder}
    report = check(Recipe.from_dict(given))
    assert {row["dataset"] for row in report["splits"]} == {"news"}
    assert [row["dataset"] for row in report["sampling"]] == ["news"]


def test_a_meta_run_extends_nothing(base: Path, tmp_path: Path) -> None:
    found = problems(base, {**new_values(tmp_path, max_steps=2), "meta": {"algorithm": "reptile"}})
    assert "ends in an encoder" in found["meta"]


def test_nothing_to_learn_is_told(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path)
    assert "tasks" in problems(base, {key: value for key, value in given.items() if key not in ("tasks", "datasets")})
    given["tasks"]["topic"]["loss_weight"] = 0
    assert "nothing to learn" in problems(base, given)["tasks"]


def test_a_head_that_is_there_is_not_taken_from_elsewhere_and_its_decoder_stays(base: Path, tmp_path: Path) -> None:
    given, old = new_values(tmp_path), Recipe.from_yaml(base / "recipe.yaml")
    given["datasets"]["mine"] = {**old.datasets["words"].model_dump(exclude_unset=True), "data_dir": old.data_dir}
    ner = {"type": "token-classification", "dataset": "mine", "labels": "ner"}
    given["tasks"]["ner"] = {**ner, "init_from": "./stock", "decoder": "crf"}
    found = problems(base, given)
    assert "has a head for it already" in found["tasks.ner.init_from"]
    assert found["tasks.ner.decoder"].startswith("found 'crf', but the trained model has 'iob2'")
    given["tasks"]["ner"] = {**ner, "decoder": "softmax"}
    assert read_extension(base, given)[1].learned_tasks == ["ner", "topic"]


@pytest.mark.parametrize(
    ("extension", "path"),
    [
        ({"replay": 3}, "extension.replay"),
        ({"l2_to_start": 1, "importance": "fisher"}, "extension.importance"),
        ({"old_tasks": ["ner"]}, "extension.old_tasks"),
    ],
)
def test_old_rows_of_a_model_without_its_recipe_cannot_be_had(
    base: Path, tmp_path: Path, extension: dict[str, Any], path: str
) -> None:
    told = problems(base / "model", new_values(tmp_path, extension))[path]
    assert f"there is no recipe beside {base / 'model'}" in told
    assert "give" in told


def test_old_rows_where_the_recipe_names_all_old_tasks_itself_cannot_be_had(base: Path, tmp_path: Path) -> None:
    found = problems(base, new_values(tmp_path, {"replay": 3, "old_tasks": []}))
    assert "none is left" in found["extension.replay"]


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere"):
        with pytest.raises(ModelError, match="there is no model folder"):
            read_extension(name, new_values(tmp_path))
    with pytest.raises(ModelError, match="not one of nlp_mtl"):
        read_extension(tiny.save_encoder(tmp_path / "encoder"), new_values(tmp_path))


def test_what_cannot_be_asked_about_before_training_is_not_distilled(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path, {"distillation": True}, max_steps=2, eval_every=2)
    given["datasets"]["news"] |= {"streaming": True}
    given["tasks"]["topic"]["label_names"] = ["other", "place"]
    assert "the old model is asked of all rows" in problems(base, given)["datasets.news.streaming"]
    given = new_values(tmp_path, {"distillation": True})
    given["datasets"]["news"]["augmentation"] = {"typos": 0.1}
    assert "`extension.distillation`" in problems(base, given)["datasets.news.augmentation.typos"]
    given = new_values(tmp_path, {"distillation": True})
    given["distillation"] = {"teachers": {"topic": str(base)}}
    assert "choose one of both" in problems(base, given)["extension.distillation"]
    given = {**new_values(tmp_path), "distillation": {"teachers": {"ner": str(base)}}}
    assert "where it is replayed" in problems(base, given)["distillation.teachers.ner"]


def test_rows_of_a_stream_are_not_replayed(tmp_path: Path) -> None:
    train(Recipe.from_dict(streamed_values(tmp_path, max_steps=1, eval_every=1)))
    found = problems(tmp_path / "run", new_values(tmp_path, {"replay": 3}))
    assert found["extension.replay"].startswith("rows of `texts` cannot be drawn, as it is streamed")
    _, recipe = read_extension(tmp_path / "run", new_values(tmp_path, {"replay": 3, "old_tasks": ["ner", "pos"]}))
    assert recipe.old_datasets == ["words"]


def test_a_chain_is_not_distilled(tmp_path: Path) -> None:
    given = values(tmp_path, max_steps=1)
    given["tasks"]["ner"]["decoder"] = "crf"
    train(Recipe.from_dict(given))
    told = problems(tmp_path / "run", new_values(tmp_path, {"distillation": True}))["extension.distillation"]
    assert told.startswith("`ner` has the decoder crf")
    _, recipe = read_extension(tmp_path / "run", new_values(tmp_path, {"distillation": ["pos"]}))
    assert recipe.extension is not None
    assert recipe.extension.distilled == ["pos"]


def test_other_verbs_refuse_a_recipe_that_extends(base: Path, tmp_path: Path) -> None:
    encoder = Recipe.from_yaml(base / "recipe.yaml").encoder
    recipe = Recipe.from_dict({**new_values(tmp_path, {"replay": 3}), "encoder": encoder})
    two = recipe.model_copy(update={"tasks": {**recipe.tasks, "again": recipe.tasks["topic"]}})
    for verb in (train, tune, lambda one: compare(two)):
        with pytest.raises(RecipeError, match=r"extension: only `nlp-mtl extend MODEL RECIPE` reads it"):
            verb(recipe)
    assert not (tmp_path / "extended").exists()


def test_where_the_model_and_the_data_lie_may_change_when_a_run_is_resumed(base: Path, tmp_path: Path) -> None:
    old = read_extension(base, new_values(tmp_path, {"replay": 3}))[1].to_dict()
    moved = read_extension(base, new_values(tmp_path, {"replay": 3, "data_dir": str(tmp_path / "moved")}))[1].to_dict()
    moved["extension"]["model"] = "elsewhere"
    assert {key for key, *_ in changed_keys(old, moved)} == {
        "datasets.words.data_dir", "datasets.texts.data_dir", "extension.model", "extension.data_dir",
    }  # fmt: skip
    assert learned_changes(old, moved) == []
    moved["extension"]["replay"] = 4
    assert learned_changes(old, moved) == ["extension.replay: 3 -> 4"]
