"""What a recipe may say, and that it stays the same on its way through files."""

import copy
import typing

import pytest
from recipe_values import VALUES

from nlp_mtl import Recipe, RecipeError
from nlp_mtl.recipe import (
    BalancingSpec,
    DatasetSpec,
    GradientsSpec,
    HubSpec,
    SamplingSpec,
    SharingSpec,
    TaskSpec,
    TrainingSpec,
)
from nlp_mtl.task_types import KINDS

REMOVED = object()


def changed(path, value):
    """The values above with one of them set (or removed)."""
    values = copy.deepcopy(VALUES)
    *parents, last = path.split("/")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is REMOVED:
        del section[last]
    else:
        section[last] = value
    return values


def problems_of(values):
    """``{path: message}`` of what is wrong with a recipe of these values."""
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(values)
    return dict(caught.value.problems)


def test_the_least_recipe_is_whole_with_its_defaults():
    recipe = Recipe.from_dict(VALUES)
    assert recipe.training == TrainingSpec()
    assert recipe.sampling.strategy == "proportional"
    assert (recipe.tasks["ner"].loss_weight, recipe.tasks["ner"].metric) == (1, None)
    assert (recipe.datasets["texts"].validation_fraction, recipe.datasets["texts"].test_fraction) == (0.1, 0.1)
    assert recipe.encoder_revision is None


def test_from_dict_leaves_the_values_it_was_given_alone():
    values = copy.deepcopy(VALUES)
    Recipe.from_dict(values)
    assert values == VALUES


def test_a_recipe_cannot_be_changed_behind_the_runs_back():
    with pytest.raises(ValueError, match="frozen"):
        Recipe.from_dict(VALUES).seed = 3


def test_every_key_is_documented_by_the_text_under_it():
    import inspect

    for section in (
        Recipe,
        DatasetSpec,
        TaskSpec,
        SamplingSpec,
        BalancingSpec,
        GradientsSpec,
        SharingSpec,
        TrainingSpec,
        HubSpec,
    ):
        source = inspect.getsource(section)
        undocumented = {
            "type",
            "datasets",
            "tasks",
            "sampling",
            "balancing",
            "gradients",
            "sharing",
            "training",
            "seed",
        }  # their names say it
        for name in set(section.model_fields) - undocumented:
            after = source.split(f"\n    {name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), f"{section.__name__}.{name}"


def test_the_metrics_of_the_schema_are_those_of_the_tasks():
    allowed = typing.get_args(typing.get_args(TaskSpec.model_fields["metric"].annotation)[0])
    assert set(allowed) == {metric for kind in KINDS.values() for metric in kind.metrics}


def test_a_task_tells_its_label_column_in_each_dataset():
    def columns(dataset, labels):
        return TaskSpec(type="text-classification", dataset=dataset, labels=labels).columns()

    assert columns("a", "label") == {"a": "label"}
    assert columns(["a", "b"], "label") == {"a": "label", "b": "label"}
    assert columns(["a", "b"], {"b": "y", "a": "x"}) == {"a": "x", "b": "y"}


@pytest.mark.parametrize("key", ["encoder", "datasets", "tasks", "output_dir"])
def test_a_missing_key_is_told(key):
    assert "missing" in problems_of(changed(key, REMOVED))[key]


@pytest.mark.parametrize("wrong", [3, "text", [], None, True])
@pytest.mark.parametrize(
    "section",
    ["datasets", "tasks", "training", "sampling", "datasets/words", "tasks/ner", "training/selection_weights"],
)
def test_a_section_of_the_wrong_type_is_the_only_thing_told(section, wrong):
    problems = problems_of(changed(section, wrong))
    assert list(problems) == [section.replace("/", ".")]
    found = "nothing" if wrong is None else repr(wrong)
    assert problems.popitem()[1].startswith(f"found {found}, expected keys")


@pytest.mark.parametrize("section", ["datasets", "tasks"])
def test_an_empty_section_is_told(section):
    assert "at least one" in problems_of(changed(section, {}))[section]


@pytest.mark.parametrize("wrong", [3, "recipe.yaml", [1], None])
def test_values_that_are_no_mapping_are_refused(wrong):
    with pytest.raises(RecipeError, match="expected keys such as `encoder`"):
        Recipe.from_dict(wrong)


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("encodr", "`encoder`"),
        ("training/learning_rat", "`learning_rate`"),
        ("training/Batch_Size", "`batch_size`"),
        ("sampling/temprature", "`temperature`"),
        ("datasets/words/token", "`tokens`"),
        ("tasks/ner/label", "`labels`"),
        ("tasks/ner/lables", "`labels`"),
        ("batch_size", "`training.batch_size`"),
        ("training/output_dir", "`output_dir`"),
        ("datasets/words/seed", "`seed`"),
    ],
)
def test_an_unknown_key_is_told_at_its_path_with_the_likely_one(path, suggestion):
    problems = problems_of(changed(path, 1))
    assert list(problems) == [path.replace("/", ".")]
    assert problems.popitem()[1] == f"unknown key `{path.split('/')[-1]}`. Did you mean {suggestion}?"


@pytest.mark.parametrize(
    ("path", "section"),
    [("zzz", Recipe), ("training/zzz", TrainingSpec), ("datasets/words/zzz", DatasetSpec), ("tasks/ner/zzz", TaskSpec)],
)
def test_an_unknown_key_that_looks_like_none_is_told_with_all_that_are_known_there(path, section):
    message = problems_of(changed(path, 1)).popitem()[1]
    assert all(f"`{name}`" in message for name in section.model_fields)


@pytest.mark.parametrize("name", ["str", "list", "dict"])
def test_tasks_and_datasets_may_be_called_like_a_type(name):
    values = changed(f"tasks/{name}", {**VALUES["tasks"]["ner"], "lables": "x"})
    assert "Did you mean `labels`?" in problems_of(values)[f"tasks.{name}.lables"]


@pytest.mark.parametrize(
    ("path", "wrong", "words"),
    [
        ("training/learning_rate", "fast", "found 'fast' number"),
        ("training/learning_rate", 0, "found 0 greater than 0"),
        ("training/learning_rate", float("nan"), "finite"),
        ("training/batch_size", 16.5, "found 16.5 integer"),
        ("training/batch_size", -1, "greater than 0"),
        ("training/batch_size", None, "found nothing"),
        ("training/warmup_fraction", 1, "less than 1"),
        ("training/schedule", "linaer", "allowed: `linear` Did you mean `linear`?"),
        ("training/mixed_precision", "fp16", "allowed: `no`, `bf16`"),
        ("sampling/strategy", "unifrom", "Did you mean `uniform`?"),
        ("sampling/temperature", 0.5, "greater than or equal to 1"),
        ("seed", -1, "greater than or equal to 0"),
        ("word_splitter", "englsh", "Did you mean `english`?"),
        ("max_length", 0, "greater than 0"),
        ("encoder", "", "found ''"),
        ("output_dir", "", "found ''"),
        ("datasets/words/delimiter", "ab", "at most 1 character"),
        ("datasets/words/max_rows/trian", 5, "allowed: `train`, `validation`, `test` Did you mean `train`?"),
        ("datasets/words/max_rows/train", 0, "greater than 0"),
        ("datasets/words/splits/dev", "x", "allowed: `train`, `validation`, `test`"),
        ("datasets/words/columns", "a b", "list"),
        ("tasks/ner/type", "token_classification", "Did you mean `token-classification`?"),
        ("tasks/ner/labels", ["ner"], "found ['ner']"),
        ("tasks/ner/metric", "spanf1", "Did you mean `span_f1`?"),
        ("tasks/topic/metric", "span_f1", "allowed for text-classification: `accuracy`, `macro_f1`"),
        ("tasks/ner/loss_weight", -1, "greater than or equal to 0"),
        ("tasks/ner/label_names", ["a"], "at least two labels"),
        ("tasks/ner/label_names", ["a", "b", "a"], "stands twice"),
        ("tasks/ner/dataset", "word", "no dataset `word` `texts` Did you mean `words`?"),
        ("tasks/ner/dataset", "texts", "`texts` gives `text` `tokens` column"),
        ("tasks/ner/dataset", [], "names no dataset"),
        ("tasks/ner/dataset", ["words", "words"], "stands twice"),
        ("tasks/ner/labels", {"words": "ner", "texts": "ner"}, "`texts` the task's datasets are `words`"),
        ("training/selection_weights/nre", 1, "no such task; Did you mean `ner`?"),
        ("training/selection_weights", {"ner": "0"}, "all weights are 0"),
        ("sampling/temperature", 5, "only `strategy: temperature` reads it"),
        ("sampling/shares", {"words": 1, "texts": 1}, "only `strategy: fixed` reads it"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_found_and_what_is_allowed(path, wrong, words):
    problems = problems_of(changed(path, wrong))
    place = path.replace("/", ".")
    missing = [word for word in words.split(" ") if word not in problems[place]]
    assert not missing, problems


@pytest.mark.parametrize(
    ("shares", "place", "told"),
    [
        (
            {"wrds": 1, "words": 1, "texts": 1},
            "sampling.shares.wrds",
            "there are `words`, `texts`. Did you mean `words`?",
        ),
        ({"words": 1}, "sampling.shares", "say what `texts` gives"),
        ({}, "sampling.shares", "say what `words`, `texts` gives"),
        ({"words": 0, "texts": 0}, "sampling.shares", "all shares are 0"),
        ({"words": 3, "texts": -1}, "sampling.shares.texts", "greater than or equal to 0"),
    ],
)
def test_fixed_shares_name_every_dataset(shares, place, told):
    assert told in problems_of(changed("sampling", {"strategy": "fixed", "shares": shares}))[place]


def test_compiling_what_is_packed_is_told_beside_the_other_problems():
    problems = problems_of(changed("training", {"compile": True, "layout": "packed", "batch_size": 0}))
    assert list(problems) == ["training.batch_size", "training.compile"]
    assert "`layout: packed` pads none" in problems["training.compile"]
    for harmless in ({"compile": True, "layout": "padded"}, {"compile": True}, {"layout": "packed"}):
        Recipe.from_dict(changed("training", harmless))


@pytest.mark.parametrize("name", ["1st", "a b", "ünï", "", "a.b", "a/b", "../x", "x" * 65])
def test_a_name_that_could_not_be_a_key_or_a_folder_is_refused(name):
    values = copy.deepcopy(VALUES)
    values["tasks"][name] = values["tasks"]["ner"]
    assert list(problems_of(values)) == [f"tasks.{name}"]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ({"tokens": "tokens"}, "`path` `data_files`"),
        ({"data_files": [], "tokens": "tokens"}, "`path` `data_files`"),
        ({"path": "x"}, "`text` `tokens`"),
        ({"path": "x", "text": "a", "tokens": "b"}, "`text` `tokens`"),
        ({"path": "conll", "data_files": "x", "tokens": "tokens"}, "`columns`"),
        ({"path": "x", "tokens": "t", "validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing"),
        ({"path": "x", "tokens": "t", "validation_fraction": "95e-2"}, "leave nothing"),
    ],
)
def test_a_dataset_that_cannot_be_read_as_described_is_told(dataset, words):
    problems = problems_of(changed("datasets/words", dataset))
    assert list(problems) == ["datasets.words"]
    assert all(word in problems["datasets.words"] for word in words.split(" "))


def test_a_bad_entry_of_a_mapping_is_told_once_and_at_its_own_path():
    assert list(problems_of(changed("datasets/words/data_files", {"train": 3}))) == ["datasets.words.data_files.train"]
    assert list(problems_of(changed("tasks/ner/dataset", ["words", 3]))) == ["tasks.ner.dataset.1"]


def test_a_dataset_that_no_task_learns_from_is_told():
    values = changed("datasets/spare", {"path": "x", "text": "t"})
    assert "no task" in problems_of(values)["datasets.spare"]


def test_a_misspelled_dataset_is_told_once_and_not_also_as_left_over():
    assert list(problems_of(changed("tasks/ner/dataset", "wrods"))) == ["tasks.ner.dataset"]


def test_a_recipe_whose_losses_all_count_nothing_is_refused():
    values = changed("tasks/ner/loss_weight", 0)
    Recipe.from_dict(values)  # one task may stand aside
    values["tasks"]["topic"]["loss_weight"] = "0"
    assert "every loss_weight is 0" in problems_of(values)["tasks"]


def test_five_different_mistakes_are_all_told_at_once():
    values = copy.deepcopy(VALUES)
    del values["output_dir"]
    values["training"] = {"learning_rat": 1, "batch_size": "many"}
    values["tasks"]["ner"]["type"] = "tokens"
    values["tasks"]["topic"]["dataset"] = "text"
    problems = problems_of(values)
    assert set(problems) == {
        "output_dir", "training.learning_rat", "training.batch_size", "tasks.ner.type", "tasks.topic.dataset",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("datasets/words/data_files", "https://me:secret@host/a.jsonl"),
        ("datasets/words/data_files", {"train": ["a.jsonl", "s3://secret@host/a"]}),
        ("datasets/words/data_files", "https://host/a.jsonl?X-Amz-Signature=secret"),
        ("datasets/texts/path", "https://host/a?access_token=secret"),
        ("encoder", "https://secret@host/encoder"),
        ("tasks/ner/init_from", "hf_secret12345678901"),
    ],
)
def test_what_looks_like_a_password_or_a_token_is_refused_without_telling_it(path, value):
    with pytest.raises(RecipeError, match="what looks like a password or a token") as told:
        Recipe.from_dict(changed(path, value))
    assert "secret" not in str(told.value)
    assert path.replace("/", ".").removesuffix(".train") in str(told.value)


@pytest.mark.parametrize(
    "value", ["https://host/a@b:c.jsonl", "https://host/a.jsonl?monkey", "hf_mono/x", "keys=.jsonl"]
)
def test_addresses_without_secrets_are_taken(value):
    Recipe.from_dict(changed("datasets/words/data_files", value))
