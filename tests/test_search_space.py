"""Search spaces: what is understood, and what is refused before any trial, with the likely fix."""

import itertools
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_values import VALUES

from nlp_mtl import Recipe, RecipeError
from nlp_mtl.recipe_parts import TuneSpec
from nlp_mtl.search_space import Choices, Range, grid, grid_size, parse_search, search_space, with_settings, with_values

LEARNING_RATE, WEIGHT = "training.learning_rate", "tasks.ner.loss_weight"


def recipe_of(search: dict[str, Any], method: str = "tpe", **changes: Any) -> Recipe:
    return Recipe.from_dict({**VALUES, "tune": {"method": method, "search": search}, **changes})


def space_of(search: dict[str, Any], method: str = "tpe", **changes: Any) -> list[Any]:
    return search_space(recipe_of(search, method, **changes))


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        (LEARNING_RATE, "1e-5..1e-4:log", Range(LEARNING_RATE, 1e-5, 1e-4, True)),
        (LEARNING_RATE, "1e-5 .. 1e-4", Range(LEARNING_RATE, 1e-5, 1e-4)),
        ("training.batch_size", "16..64:log", Range("training.batch_size", 16, 64, True)),
        (WEIGHT, "0.5,1,2", Choices(WEIGHT, (0.5, 1, 2))),
        (WEIGHT, [0.5, 1, 2], Choices(WEIGHT, (0.5, 1, 2))),
        (WEIGHT, "0..2:5", Choices(WEIGHT, (0, 0.5, 1, 1.5, 2))),
        (LEARNING_RATE, "1e-5..1e-3:log:3", Choices(LEARNING_RATE, (1e-5, 1e-4, 1e-3))),
        (LEARNING_RATE, ["1e-5", 1e-4], Choices(LEARNING_RATE, (1e-5, 1e-4))),  # YAML reads the first as text
        ("training.batch_size", "1..4:log:9", Choices("training.batch_size", (1, 2, 3, 4))),
        (LEARNING_RATE, 1e-4, Choices(LEARNING_RATE, (1e-4,))),
        ("balancing.strategy", "fixed,dwa", Choices("balancing.strategy", ("fixed", "dwa"))),
        ("training.dropout", "null,0.1", Choices("training.dropout", (None, 0.1))),
        ("encoder", "./a,./b", Choices("encoder", ("./a", "./b"))),
        ("training.frozen_layers", "0,2,encoder", Choices("training.frozen_layers", (0, 2, "encoder"))),
        ("datasets.texts.oversample", "null,topic", Choices("datasets.texts.oversample", (None, "topic"))),
    ],
)
def test_values_are_understood(key: str, given: Any, expected: Any) -> None:
    assert space_of({key: given}) == [expected]


def test_whole_numbers_stay_whole_and_others_do_not_become_it() -> None:
    (batch,) = space_of({"training.batch_size": "16..64"})
    assert [type(one) for one in batch.values] == [int, int]
    (weight,) = space_of({WEIGHT: "0..2"})
    assert [type(one) for one in weight.values] == [float, float]


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"training.learning_rat": "1,2"}, r"learning_rat: unknown key `learning_rat`. Did you mean `learning_rate`"),
        ({"batch_size": "1,2"}, r"unknown key `batch_size`. Did you mean `training.batch_size`"),
        ({"tasks.nre.loss_weight": "1,2"}, r"there is no `nre` in `tasks`. Did you mean `ner`"),
        ({"tasks.ner.loss_wait": "1,2"}, r"unknown key `loss_wait`. Did you mean `loss_weight`"),
        ({"training": "1,2"}, r"training: it holds several values"),
        ({"gradients.measured_layers": "1,2"}, r"it holds several values"),
        ({"training.max_tokens": "1024,2048"}, r"it does not say what is learned"),
        ({"output_dir": "a,b"}, r"it does not say what is learned"),
        ({"hub.private": "true,false"}, r"it does not say what is learned"),
        ({"tune.trials": "1,2"}, r"it does not say what is learned"),
        ({"seed": "0,1,2"}, r"seed: the best of several seeds is chance"),
        ({"split_seed": "0,1,2"}, r"seed: the best of several seeds is chance"),
        ({"tasks.ner.metric": "span_f1,accuracy"}, r"it decides what is read and measured.*`loss_weight`"),
        ({"datasets.texts.validation_fraction": "0.1,0.2"}, r"it decides what is read and measured.*`oversample`"),
        ({"training.selection_weights.ner": "1,2"}, r"trials could not be compared"),
        ({"training.eval_every": "10,20"}, r"trials could not be compared"),
        ({LEARNING_RATE: "1e-4..1e-5"}, r"the first number has to be less"),
        ({LEARNING_RATE: "0..1e-4:log"}, r"starts above 0"),
        ({LEARNING_RATE: "1e-5..1e-4:lin"}, r"expected a list such as .*, or a range such as"),
        ({LEARNING_RATE: "1e-5..1e-4:1"}, r"at least two points"),
        ({LEARNING_RATE: []}, r"expected a list"),
        ({WEIGHT: "1,,2"}, r"expected a list"),
        ({WEIGHT: "1,2,1.0"}, r"a value stands twice"),
        ({"training.batch_size": "8..9.5"}, r"takes whole numbers"),
        ({"balancing.strategy": "1..2"}, r"the key takes no numbers"),
        ({LEARNING_RATE: "-1,1e-4"}, r"found -1, but .* greater than 0 \(with training.learning_rate=-1\)"),
        ({"training.warmup_fraction": "0..1"}, r"less than 1 \(with training.warmup_fraction=1.0\)"),
        ({"balancing.strategy": "fixed,dwd"}, r"allowed: .*Did you mean `dwa`"),
        ({"sampling.temperature": "1.5..5"}, r"only `strategy:` `temperature` reads it"),
        ({WEIGHT: "0,1", "tasks.topic.loss_weight": "0,1"}, r"every loss_weight is 0.*ner.*=0 and the first value of"),
        (
            {"balancing.strategy": "dwa,fixed", "balancing.temperature": "3..4"},
            r"only `strategy:` `dwa`, `smooth_maximum` reads it; .* \(with balancing.strategy=fixed and the first",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_space_is_told_with_the_key(search: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        space_of(search)


def test_all_wrong_keys_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        space_of({"training.learning_rat": 1, "seed": [1, 2], WEIGHT: "2..1"})
    assert [problem.path for problem in caught.value.problems] == ["seed", WEIGHT, "training.learning_rat"]


def test_a_grid_needs_values_and_an_end() -> None:
    with pytest.raises(RecipeError, match="a grid has no default"):
        space_of({}, "grid")
    with pytest.raises(RecipeError, match=r"a grid needs points: 1e-05\.\.0\.0001:log:4, say"):
        space_of({LEARNING_RATE: "1e-5..1e-4:log"}, "grid")
    with pytest.raises(RecipeError, match="the grid has 40,000 points, 10,000 are allowed"):
        space_of({WEIGHT: "1..2:200", "tasks.topic.loss_weight": "1..2:200"}, "grid")


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_a_grid_has_each_point_once_in_an_order_of_the_seed(sizes: list[int], seed: int) -> None:
    space = [Choices(f"key{place}", tuple(range(size))) for place, size in enumerate(sizes)]
    points = grid(space, seed)
    assert grid(space, seed) == points
    assert len(points) == grid_size(space)
    found = {tuple(point.values()) for point in points}
    assert found == set(itertools.product(*(range(size) for size in sizes)))


NUMBERS = st.floats(1e-9, 1e9).map(lambda value: float(f"{value:.12g}"))


@settings(deadline=None)
@given(low=NUMBERS, high=NUMBERS, log=st.booleans())
def test_a_range_as_a_recipe_has_it_is_read_as_the_same_range(low: float, high: float, log: bool) -> None:
    if low < high:
        one = Range(WEIGHT, low, high, log)
        assert space_of({WEIGHT: one.told}) == [one]


def test_the_default_space_is_around_the_recipes_own_values() -> None:
    found = {one.key: one for one in space_of({}, training={"learning_rate": 1e-4})}
    assert found == {
        WEIGHT: Range(WEIGHT, 0.25, 4, True),
        "tasks.topic.loss_weight": Range("tasks.topic.loss_weight", 0.25, 4, True),
        LEARNING_RATE: Range(LEARNING_RATE, 2e-5, 5e-4, True),
        "training.head_learning_rate": Range("training.head_learning_rate", 2e-4, 5e-3, True),
        "sampling.strategy": Choices("sampling.strategy", ("temperature",)),
        "sampling.temperature": Range("sampling.temperature", 1, 5),
    }


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({"training": {"frozen_layers": "encoder"}}, {LEARNING_RATE}),
        ({"sampling": {"strategy": "unimax"}}, {"sampling.strategy", "sampling.temperature"}),
        ({"tasks": {**VALUES["tasks"], "ner": {**VALUES["tasks"]["ner"], "loss_weight": 0}}},
         {WEIGHT, "tasks.topic.loss_weight"}),  # one is learned alone
        ({"datasets": {**VALUES["datasets"], "texts": {**VALUES["datasets"]["texts"], "streaming": True}}},
         {"sampling.strategy", "sampling.temperature"}),
    ],
)  # fmt: skip
def test_the_default_space_leaves_out_what_changes_nothing(changes: dict[str, Any], left_out: set[str]) -> None:
    all_keys = {one.key for one in space_of({})}
    assert {one.key for one in space_of({}, **changes)} == all_keys - left_out


def test_values_take_their_places_in_the_recipe_and_nothing_else_changes() -> None:
    recipe = recipe_of({})
    found = with_values(recipe, {WEIGHT: 3, LEARNING_RATE: 1e-3}).to_dict()
    assert found["tasks"]["ner"].pop("loss_weight") == 3
    assert found["training"].pop("learning_rate") == 1e-3
    expected = recipe.to_dict()
    del expected["tasks"]["ner"]["loss_weight"], expected["training"]["learning_rate"]
    assert found == expected


def test_options_of_the_command_line_come_before_the_recipes() -> None:
    recipe = recipe_of({WEIGHT: [1, 2]}, "grid")
    assert with_settings(recipe, {"method": None, "trials": None, "seed": None, "prune": None, "search": {}}) == recipe
    found = with_settings(recipe, {"trials": 3, "prune": False, "search": parse_search([f"{LEARNING_RATE}=1e-5,1e-4"])})
    assert found.tune == TuneSpec(method="grid", trials=3, prune=False, search={LEARNING_RATE: "1e-5,1e-4"})
    with pytest.raises(RecipeError, match=r"tune\.method: found 'gird', allowed: .*Did you mean `grid`"):
        with_settings(recipe, {"method": "gird"})
    with pytest.raises(RecipeError, match=r"tune\.trials: found 0"):
        with_settings(recipe, {"trials": 0})


@pytest.mark.parametrize("option", ["learning_rate", "=1,2", "training.learning_rate="])
def test_an_option_that_is_none_is_told(option: str) -> None:
    with pytest.raises(RecipeError, match="is not of the form KEY=VALUES; values are a list"):
        parse_search([option])
    with pytest.raises(RecipeError, match="stands twice"):
        parse_search(["a=1", "a=2"])


def test_methods_are_those_of_the_recipe() -> None:
    assert get_args(TuneSpec.model_fields["method"].annotation) == ("tpe", "grid")
