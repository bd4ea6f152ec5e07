import pickle

import pytest

from nlp_mtl import errors
from nlp_mtl.errors import NlpMtlError, Problem, RecipeError, did_you_mean, listed

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_is_drawn_in_the_modules_tree(kind):
    assert issubclass(kind, NlpMtlError)
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__


def test_a_recipe_error_tells_the_file_and_all_problems_with_their_paths():
    error = RecipeError([Problem("tasks.ner.type", "missing"), Problem("", "odd as a whole")], "my.yaml")
    assert str(error) == "my.yaml has 2 problems:\n  tasks.ner.type: missing\n  odd as a whole"
    assert error.problems == (("tasks.ner.type", "missing"), ("", "odd as a whole"))


def test_one_problem_is_told_as_one():
    assert str(RecipeError([Problem("seed", "missing")])) == "the recipe has a problem:\n  seed: missing"


def test_a_recipe_error_survives_the_way_from_another_process():
    error = RecipeError([Problem("seed", "missing")], "my.yaml")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.problems) == (RecipeError, str(error), error.problems)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("learning_rat", " Did you mean `learning_rate`?"),
        ("LEARNING_RATE", " Did you mean `learning_rate`?"),
        ("sentimant", " Did you mean `Sentiment`?"),
        ("quite else", ""),
        ("", ""),
    ],
)
def test_a_word_is_corrected_to_the_choice_that_looks_like_it_whatever_its_case(word, expected):
    assert did_you_mean(word, ["learning_rate", "batch_size", "Sentiment"]) == expected


def test_without_choices_nothing_is_suggested():
    assert did_you_mean("word", []) == ""


def test_names_are_listed_in_backticks_and_cut_past_the_limit():
    assert listed(["a", 2]) == "`a`, `2`"
    assert listed([]) == "none"
    assert listed("abc", limit=3) == "`a`, `b`, `c`"
    assert listed("abcde", limit=3) == "`a`, `b`, `c` and 2 more"
