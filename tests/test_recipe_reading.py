"""Recipe files and overrides: what YAML does to values, where paths start, and that no file ends in a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import recipe

from nlp_mtl import Recipe, RecipeError
from nlp_mtl.recipe import SamplingSpec, TrainingSpec
from nlp_mtl.recipe_reading import changed_keys

TEXT = """\
encoder: ./encoder
datasets:
  words: {data_files: words.jsonl, tokens: tokens}
tasks:
  ner: {type: token-classification, dataset: words, labels: ner}
output_dir: runs/x
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipes" / "recipe.yaml"
    file.parent.mkdir()
    file.write_text(TEXT)
    return file


def read(path, *, text=None, overrides=()):
    if text is not None:
        path.write_text(text, encoding="utf-8")
    return Recipe.from_yaml(path, overrides)


def message(path, **options):
    with pytest.raises(RecipeError) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_numbers_that_yaml_reads_as_text_are_numbers(path):
    training = read(path, text=TEXT + "training: {learning_rate: 5e-5, batch_size: '16', num_epochs: 1E1}").training
    assert (training.learning_rate, training.batch_size, training.num_epochs) == (5e-5, 16, 10)
    assert read(path, overrides=["training.learning_rate=2e-4"]).training.learning_rate == 2e-4


def test_a_bare_no_is_the_mixed_precision_no(path):
    assert read(path, text=TEXT + "training: {mixed_precision: no}").training.mixed_precision == "no"
    assert read(path, overrides=["training.mixed_precision=no"]).training.mixed_precision == "no"


@pytest.mark.parametrize("line", ["encoder_revision: no", "encoder_revision: on", "encoder_revision: Yes"])
def test_a_bare_boolean_where_a_text_belongs_is_explained(path, line):
    told = message(path, text=TEXT + line)
    assert "encoder_revision: found the boolean" in told
    assert "quotes" in told


@pytest.mark.parametrize("line", ["encoder_revision: 12", "encoder_revision: 1e3", "encoder_revision: 2024-01-31"])
def test_a_number_or_a_date_where_a_text_belongs_is_told_to_be_quoted(path, line):
    if "1e3" in line:  # YAML 1.1 reads this one as a text
        assert read(path, text=TEXT + line).encoder_revision == "1e3"
    else:
        assert f"found {line.split(': ')[1]}, which is no text: put it in quotes" in message(path, text=TEXT + line)


@pytest.mark.parametrize(
    "key",
    ["seed", "training.batch_size", "training.learning_rate", "training.num_workers", "datasets.words.max_rows.train"],
)
def test_a_bare_boolean_is_not_taken_for_the_number_one(path, key):
    assert f"{key}: found True, but a number is wanted" in message(path, overrides=[f"{key}=yes"])


def test_a_boolean_key_is_told_as_it_was_read(path):
    told = message(path, text=TEXT.replace("labels: ner}", "labels: ner, label_map: {no: a, yes: b}}"))
    assert "tasks.ner.label_map.False: found the boolean" in told
    assert "tasks.ner.label_map.True: found the boolean" in told


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (TEXT + "output_dir: elsewhere\n", "output_dir", 7),
        (TEXT.replace("labels: ner}", "labels: ner, labels: pos}"), "labels", 5),
        (TEXT.replace("tasks:\n", "tasks:\n  ner: {}\n"), "ner", 6),
        (TEXT + "seed: 1\n'seed': 2\n", "seed", 8),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(path, text, key, line):
    told = message(path, text=text)
    assert f"the key `{key}` stands twice" in told
    assert f"line {line}," in told


def test_an_override_that_gives_a_key_twice_is_refused(path):
    assert "training: " in message(path, overrides=["training={batch_size: 1, batch_size: 2}"])


def test_anchors_and_merged_keys_work_and_the_own_key_wins(path):
    text = TEXT.replace("ner: {", "ner: &ner {") + "".join(
        ["  pos: &pos {<<: *ner, labels: upos, metric: accuracy}\n", "  chunk: {<<: *pos, labels: chunk}\n"]
    )
    head, rest = text.split("output_dir: runs/x\n")
    tasks = read(path, text=head + rest + "output_dir: runs/x\n").tasks
    assert {name: task.labels for name, task in tasks.items()} == {"ner": "ner", "pos": "upos", "chunk": "chunk"}
    assert tasks["chunk"].metric == "accuracy"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found nothing"),
        (b"# only a comment\n", "found nothing"),
        (b"- a\n- b\n", "found ['a', 'b']"),
        (b"just words\n", "found 'just words'"),
        (bytes(range(256)), "UTF-8"),
        (TEXT.encode("utf-16"), "UTF-8"),
        (b"a: \x00\n", "not valid YAML"),
        (b"a: [1, 2\n", "line 2"),
        (b"a:\n\t- b\n", "line 2"),
        (b"a: b: c\n", "line 1"),
        (TEXT.encode() + b"---\n" + TEXT.encode(), "another document"),
        (b"seed: 2024-13-45\n", "not valid YAML"),
        (b"seed: !!int abc\n", "not valid YAML"),
        (b"seed: !!python/object/apply:os.getpid []\n", "not valid YAML"),
        (b"? [a]\n: b\n", "not valid YAML"),
        (b"a: " + b"[" * 5000, "not valid YAML"),
        (b"tasks: &t {t: *t}\n", "encoder: missing"),
        (b"encoder: &e [*e]\n", "encoder: found"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_and_not_a_traceback(path, content, words):
    path.write_bytes(content)
    assert words in message(path)


def test_a_byte_order_mark_does_no_harm(path):
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert read(path).encoder == "./encoder"


def test_a_missing_file_is_told_with_the_likely_one(path):
    assert "no such file. Did you mean `recipe.yaml`?" in message(path.with_name("recipes.yaml"))
    assert message(path.parent / "no" / "folder.yaml").endswith("no such file.")
    assert "no such file" in message(path / "below_a_file.yaml")


def test_a_folder_instead_of_a_recipe_is_told(path):
    assert "a folder; give the recipe file" in message(path.parent)


def test_a_path_that_the_system_refuses_is_told():
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_yaml("x" * 5000)


def test_overrides_take_any_yaml_value_at_any_depth(path):
    recipe = read(
        path,
        overrides=[
            "training.max_steps=20",
            "training.eval_every=5",
            "training.eval_every=null",
            "datasets.words.data_files={train: [a.jsonl, b.jsonl], test: c.jsonl}",
            "datasets.words.max_rows.train=10",
            "datasets.more.path=some/id",
            "datasets.more.tokens=words",
            "tasks.ner.dataset=[words, more]",
            "tasks.ner.label_map={a=b: c}",
            "encoder=package:some-encoder",
            "output_dir=runs/with=sign",
        ],
    )
    assert (recipe.training.max_steps, recipe.training.eval_every) == (20, None)
    assert recipe.datasets["words"].data_files == {"train": ["a.jsonl", "b.jsonl"], "test": "c.jsonl"}
    assert recipe.datasets["words"].max_rows == {"train": 10}
    assert recipe.datasets["more"].path == "some/id"
    assert recipe.tasks["ner"].dataset == ["words", "more"]
    assert recipe.tasks["ner"].label_map == {"a=b": "c"}
    assert (recipe.encoder, recipe.output_dir) == ("package:some-encoder", "runs/with=sign")


def test_an_override_of_null_takes_the_default_of_a_key_and_of_a_section(path):
    path.write_text(
        path.read_text() + "sampling: {strategy: fixed, shares: {words: 1}}\ntraining: {batch_size: 8, num_epochs: 2}\n"
    )
    assert Recipe.from_yaml(path).training.batch_size == 8
    plain = Recipe.from_yaml(path, ["sampling=null", "training=null"])
    assert (plain.sampling, plain.training) == (SamplingSpec(), TrainingSpec())
    other = Recipe.from_yaml(
        path, ["sampling.strategy=proportional", "sampling.shares=null", "training.batch_size=null"]
    )
    assert (other.sampling, other.training.num_epochs) == (SamplingSpec(), 2)
    assert other.training.batch_size == TrainingSpec().batch_size
    again = Recipe.from_yaml(path, ["sampling=null", "sampling.strategy=uniform"])
    assert again.sampling == SamplingSpec(strategy="uniform")
    (dataset,) = again.datasets
    assert Recipe.from_yaml(path, ["sampling=null", f"datasets.{dataset}.splits.test=null"]).datasets[
        dataset
    ].splits == {"test": None}
    for override, told in (
        ("training.batchsize=null", "unknown key `batchsize`"),
        ("encoder=null", "missing; every recipe needs it"),
    ):
        with pytest.raises(RecipeError, match=told):
            Recipe.from_yaml(path, ["sampling=null", override])


def test_an_override_fills_a_section_that_the_file_leaves_empty(path):
    assert read(path, text=TEXT + "training:\n", overrides=["training.batch_size=3"]).training.batch_size == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "`seed` is not of the form key=value"),
        ("=3", "`=3` is not of the form key=value"),
        ("training.max_steps=", "training.max_steps: the override `training.max_steps=` has no value"),
        ("seed=[", "seed: the override's value is not valid YAML"),
        ("seed=2024-13-45", "seed: the override's value is not valid YAML"),
        ("encoder.x=3", "encoder.x: `encoder` is a value"),
        ("tasks.ner.labels.words=3", "`tasks.ner.labels` is a value"),
        ("trainng.max_steps=3", "Did you mean `training`?"),
        ("training.max_step=3", "training.max_step: unknown key `max_step`. Did you mean `max_steps`?"),
        (".seed=3", "unknown key"),
        ("seed=", "the override `seed=` has no value; `seed=null` takes the default"),
    ],
)
def test_a_wrong_override_is_told(path, override, words):
    assert words in message(path, overrides=[override])


def test_mistakes_of_the_file_and_of_the_overrides_are_told_together(path):
    told = message(
        path, text=TEXT + "sede: 3\n", overrides=["seed", "encoder.x=3", "training.batch_size=no", "x=[", "y=1"]
    )
    assert "has 6 problems" in told
    assert all(
        word in told for word in ("sede", "`seed`", "encoder.x", "training.batch_size", "x: the override", "`y`")
    )


def test_data_dir_of_a_file_starts_from_the_file_and_of_an_override_from_the_current_directory(
    path, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    relative = Path("..") / "recipes" / "recipe.yaml"
    assert read(relative).data_dir == str(path.parent)
    assert read(relative, overrides=["data_dir=data"]).data_dir == str(here / "data")
    path.write_text(TEXT + "data_dir: ../data\n")
    assert read(relative).data_dir == str(tmp_path / "data")
    assert read(relative, overrides=["data_dir=."]).data_dir == str(here)
    absolute = tmp_path / "absolute"
    assert read(relative, overrides=[f"data_dir={absolute}"]).data_dir == str(absolute)


def test_data_dir_of_plain_values_starts_from_the_current_directory_and_stays_there_in_a_file(
    path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    values = read(path).to_dict()
    recipe = Recipe.from_dict({**values, "data_dir": "data"})
    assert recipe.data_dir == str(tmp_path / "data")
    assert read(path, text=recipe.to_yaml()) == recipe
    del values["data_dir"]
    assert Recipe.from_dict(values).data_dir == str(tmp_path)


def test_a_tilde_is_the_home_folder(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = read(path, overrides=["output_dir=~/runs", "data_dir=~/data"])
    assert (recipe.output_dir, recipe.data_dir) == (str(tmp_path / "runs"), str(tmp_path / "data"))
    assert read(path, text=TEXT + "data_dir: ~/other\n").data_dir == str(tmp_path / "other")


def test_an_output_dir_stays_relative_to_where_the_command_runs(path):
    assert read(path).output_dir == "runs/x"


def test_changed_keys_tells_each_difference_with_both_values(path):
    old = read(path).to_dict()
    assert changed_keys(old, read(path).to_dict()) == []
    new = read(
        path, overrides=["training.batch_size=3", "tasks.ner.dataset=[words]", "tasks.ner.label_map.a=b"]
    ).to_dict()
    assert changed_keys(old, new) == [
        ("tasks.ner.dataset", "words", ["words"]),
        ("tasks.ner.label_map.a", None, "b"),
        ("training.batch_size", 64, 3),
    ]


def test_changed_keys_tells_what_only_one_side_has():
    assert changed_keys({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}) == [
        ("a", 1, None), ("b.c", 2, None), ("b.d", None, 3),
    ]  # fmt: skip
    assert changed_keys({"a": {"b": 1}}, {"a": 1}) == [("a", {"b": 1}, 1)]


def test_reading_a_recipe_imports_no_torch(path):
    code = f"""
import sys
from nlp_mtl import Recipe
Recipe.from_yaml({str(path)!r}, ["seed=3"])
heavy = {{"torch", "transformers", "datasets", "accelerate", "pyarrow", "scipy", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "error"})


def test_several_problems_at_one_place_are_all_told(tmp_path: Path) -> None:
    values = recipe(tmp_path)
    values["datasets"]["bare"] = {"splits": {}}
    values["tasks"]["sentiment"]["dataset"] = ["bare", "one", "two"]
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict(values)
    told = str(error.value)
    for part in ("says neither `path`", "give one of `text`", "there is no dataset `one`", "there is no dataset `two`"):
        assert told.count(part) == 1, part


def test_a_path_with_a_null_byte_and_epochs_without_end_are_refused(tmp_path: Path) -> None:
    values = recipe(tmp_path) | {"output_dir": "a\0b"}
    values["training"]["num_epochs"] = 1e300
    with pytest.raises(RecipeError) as error:
        Recipe.from_dict(values)
    assert "null byte" in str(error.value)
    assert "training.num_epochs" in str(error.value)
