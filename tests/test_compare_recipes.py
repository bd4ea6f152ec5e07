"""The recipes of a comparison: the same rows, the same budget, and nothing that one task cannot use."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny_runs import streamed_values, values

from nlp_mtl import Recipe
from nlp_mtl.build import steps, trainer_arguments
from nlp_mtl.build_data import prepare
from nlp_mtl.compare_recipes import (
    Budget,
    budget,
    differences,
    groups,
    joint_recipe,
    measured,
    part_recipe,
    planned_rows,
    training_tokens,
)
from nlp_mtl.data.items import item_lengths


def made(folder: Path, changes: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """A tiny recipe whose texts are fewer than its rows of words."""
    given = values(folder, **training)
    file = Path(given["data_dir"]) / "texts" / "train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:20]))
    return Recipe.from_dict({**given, **(changes or {})})


def drawn(recipe: Recipe) -> dict[str, int]:
    """``{dataset: rows that a run draws from it}``."""
    prepared = prepare(recipe)
    data = steps(recipe, prepared)
    names = {id(split): name for name, split in prepared.split("train").items()}
    rows: Counter[str] = Counter()
    for plan in data.sampler:
        for place in plan.datasets:
            rows[names[id(data.splits[place])]] += 1
    return dict(rows)


def part(recipe: Recipe, group: tuple[str, ...], **options: Any) -> Recipe:
    return part_recipe(recipe, group, budget(recipe, prepare(recipe)), Path(recipe.output_dir), **options)


def test_the_groups_of_tasks_come_once_and_have_names() -> None:
    tasks = ["ner", "pos", "mood"]
    assert groups(tasks, False, False) == {
        "joint": ("ner", "pos", "mood"), "only-ner": ("ner",), "only-pos": ("pos",), "only-mood": ("mood",)
    }  # fmt: skip
    assert [*groups(tasks, True, True)] == [*groups(tasks, False, False), "ner+pos", "ner+mood", "pos+mood"]
    assert {*groups(tasks, False, True)} == {*groups(tasks, True, False)}
    assert [*groups(["a", "b"], True, True)] == ["joint", "only-a", "only-b"]
    more = groups(["a", "b", "c", "d"], False, True)
    assert more["without-b"] == ("a", "c", "d")
    assert len(groups(["a", "b", "c", "d"], True, True)) == 1 + 4 + 6 + 4


@pytest.mark.parametrize(
    "sampling",
    [
        {"strategy": "proportional"},
        {"strategy": "uniform"},
        {"strategy": "annealed"},
        {"strategy": "fixed", "shares": {"words": 1, "texts": 3}},
        {"strategy": "unimax", "max_passes": 2},
    ],
    ids=lambda sampling: sampling["strategy"],
)
@pytest.mark.parametrize("group", [("ner",), ("sentiment",), ("ner", "sentiment"), ("ner", "pos")])
@pytest.mark.parametrize("same_steps", [False, True])
def test_each_dataset_gives_as_many_rows_as_to_the_joint_run(
    tmp_path: Path, sampling: dict[str, Any], group: tuple[str, ...], same_steps: bool
) -> None:
    joint = made(tmp_path, {"sampling": sampling}, num_epochs=1.7)
    own, whole = drawn(part(joint, group, same_steps=same_steps)), drawn(joint)
    wanted = {name: rows for name, rows in whole.items() if name in own}
    # With the same steps, rows a step are rounded.
    assert own == pytest.approx(wanted, abs=1 + same_steps * len(steps(joint, prepare(joint))) / 2)
    assert {*own} == {"texts" if task == "sentiment" else "words" for task in group}


def test_with_the_same_steps_there_are_as_many_steps_of_fewer_rows(tmp_path: Path) -> None:
    joint = made(tmp_path, {"sampling": {"strategy": "uniform"}}, num_epochs=3, batch_size=16)
    one = part(joint, ("sentiment",), same_steps=True)
    assert one.training.batch_size == 8
    lengths = [len(steps(recipe, prepare(recipe))) for recipe in (joint, one, part(joint, ("sentiment",)))]
    assert lengths[0] == lengths[1] == pytest.approx(2 * lengths[2], abs=1)


@pytest.mark.parametrize(
    ("of_part", "batch_size", "num_steps", "num_rows"),
    [
        (1100, 4, 250, 1000),  # 4.4 a step
        (1150, 5, 250, 1246),  # 4.6 a step: as few as 250 steps of 5 can have
        (1000, 4, 250, 1000),
        (300, 1, 250, 250),
        (200, 1, 200, 200),  # fewer rows than steps
    ],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["of known size", "of unknown size"])
def test_the_same_steps_are_taken_also_where_rows_do_not_go_into_them(
    tmp_path: Path, of_part: int, batch_size: int, num_steps: int, num_rows: int, is_known: bool
) -> None:
    joint = made(tmp_path, {"sampling": {"strategy": "uniform"}}, batch_size=32, num_epochs=50, eval_every=25)
    rows = {"words": 8000 - of_part, "texts": of_part}
    sizes = {"words": 48, "texts": 20} if is_known else dict.fromkeys(rows, 0)
    plan = Budget(rows, sizes, sizes, 250, 25, frozenset({"sentiment"}), {})
    one = part_recipe(joint, ("sentiment",), plan, tmp_path, same_steps=True)
    if not is_known:
        assert (one.training.batch_size, one.training.max_steps) == (batch_size, num_steps)
        return
    prepared = prepare(joint)
    assert one.training.batch_size == batch_size
    assert len(steps(one, prepare(one))) == num_steps
    assert sum(drawn(one).values()) == planned_rows(one, prepared) == num_rows
    assert one.training.eval_every == num_steps // 10
    as_large = part_recipe(joint, ("sentiment",), plan, tmp_path)
    assert planned_rows(as_large, prepared) == of_part


def test_what_is_counted_in_steps_is_scaled_to_the_run(tmp_path: Path) -> None:
    joint = made(
        tmp_path, {"sampling": {"strategy": "fixed", "shares": {"words": 3, "texts": 1}}}, max_steps=40, num_epochs=50,
        eval_every=10, unfreeze_every=12, ema_decay=0.96,
    )  # fmt: skip
    one = part(joint, ("sentiment",))
    assert len(steps(one, prepare(one))) == 10
    assert one.training.eval_every == 3  # four evaluations
    assert one.training.unfreeze_every == 3
    assert one.training.ema_decay == pytest.approx(0.96**4)
    assert (one.training.learning_rate, one.training.warmup_fraction) == (
        joint.training.learning_rate, joint.training.warmup_fraction,
    )  # fmt: skip
    assert part(joint, ("ner", "sentiment")).training.eval_every == joint.training.eval_every


def test_one_task_has_nothing_of_what_weighs_several(tmp_path: Path) -> None:
    changes = {"balancing": {"strategy": "dwa", "period": 4}, "gradients": {"strategy": "pcgrad"}}
    joint = made(tmp_path, changes, selection_weights={"ner": 2, "pos": 1})
    values_ = joint.to_dict()
    values_["tasks"]["ner"]["loss_weight"] = 0.3
    joint = Recipe.from_dict(values_)
    one = part(joint, ("ner",))
    assert (one.tasks["ner"].loss_weight, one.balancing.strategy, one.gradients.strategy) == (1.0, "fixed", "sum")
    assert one.training.selection_weights == {"ner": 2}
    assert part(joint, ("sentiment",)).training.selection_weights == {}
    pair = part(joint, ("ner", "sentiment"))
    assert (pair.tasks["ner"].loss_weight, pair.balancing.strategy, pair.gradients.strategy) == (0.3, "dwa", "pcgrad")
    told = {one["key"] for one in differences(joint, one)}
    assert told == {
        "tasks.ner.loss_weight", "balancing.strategy", "balancing.period", "gradients.strategy",
        "training.num_epochs", "training.eval_every", "training.selection_weights.pos",
    } - ({"training.num_epochs"} if one.training.num_epochs == joint.training.num_epochs else set())  # fmt: skip


@pytest.mark.parametrize(("strategy", "alone"), [("gate", "hard"), ("mmoe", "hard"), ("layer_mix", "layer_mix")])
def test_one_task_keeps_of_sharing_how_it_reads_the_encoder(tmp_path: Path, strategy: str, alone: str) -> None:
    joint = made(tmp_path, {"sharing": {"strategy": strategy}})
    assert part(joint, ("ner",)).sharing.strategy == alone
    assert part(joint, ("ner", "sentiment")).sharing.strategy == strategy


def test_early_stopping_is_left_out_where_no_task_is_scored(tmp_path: Path) -> None:
    joint = made(tmp_path, early_stopping_patience=2)
    given = joint.to_dict()
    given["datasets"]["texts"] |= {"validation_fraction": 0.0, "splits": {"validation": None}}
    joint = Recipe.from_dict(given)
    assert part(joint, ("ner",)).training.early_stopping_patience == 2
    alone = part(joint, ("sentiment",))
    assert alone.training.early_stopping_patience is None
    trainer_arguments(alone, prepare(alone))


def held_out_twice(folder: Path) -> dict[str, Any]:
    """A recipe whose rows carry words' labels and two texts' labels, without any split but train."""
    given = values(folder, num_epochs=1)
    random = np.random.default_rng(0)
    file = Path(given["data_dir"]) / "words" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tiny.write_jsonl(file, [
        {**row, "mood": str(random.choice(["a", "b"], p=[0.2, 0.8])), "topic": str(random.choice(["x", "y", "z"]))}
        for row in rows
    ])  # fmt: skip
    given["datasets"] = {"words": {"data_files": {"train": "words/train.jsonl"}, "tokens": "tokens",
                                   "validation_fraction": 0.2, "test_fraction": 0.2}}  # fmt: skip
    given["tasks"] = {
        "ner": {"type": "token-classification", "dataset": "words", "labels": "ner"},
        "mood": {"type": "text-classification", "dataset": "words", "labels": "mood"},
        "topic": {"type": "text-classification", "dataset": "words", "labels": "topic"},
    }
    return given


def test_all_models_and_seeds_have_the_same_rows_held_out(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(held_out_twice(tmp_path))

    def rows(one: Recipe) -> dict[str, list[int]]:
        return {name: split.source_rows.tolist() for name, split in prepare(one).loaded["words"].splits.items()}

    whole = rows(recipe)
    assert {name: len(found) for name, found in whole.items()} == {"train": 28, "validation": 10, "test": 10}
    for seed in (0, 1):
        joint = joint_recipe(recipe, seed, tmp_path / f"joint-{seed}", {})
        assert (joint.seed, joint.split_seed) == (seed, 0)
        assert rows(joint) == whole
        for group in (("ner",), ("mood",), ("topic",), ("ner", "topic")):
            assert rows(part(joint, group)) == whole
    # As it would be otherwise: the trap that this test is about.
    alone = recipe.to_dict()
    alone["tasks"] = {"topic": alone["tasks"]["topic"]}
    assert rows(Recipe.from_dict(alone)) != whole
    assert rows(recipe.model_copy(update={"seed": 1})) != whole


def test_balanced_classes_go_with_the_task_that_they_are_of(tmp_path: Path) -> None:
    given = held_out_twice(tmp_path)
    given["datasets"]["words"]["oversample"] = "mood"
    joint = Recipe.from_dict(given)
    for group, kept in ((("mood",), "mood"), (("ner",), None), (("ner", "mood"), "mood")):
        own = part(joint, group)
        assert own.datasets["words"].oversample == kept
        assert drawn(own) == pytest.approx(drawn(joint), abs=1)


def test_the_shares_that_dynamic_sampling_found_are_drawn(tmp_path: Path) -> None:
    joint = made(tmp_path, {"sampling": {"strategy": "dynamic"}}, max_steps=10, num_epochs=50, eval_every=5)
    lines = [{"step": 1, "loss": 1.0}, {"step": 5, "shares": {"words": 0.2, "texts": 0.8}}, {"step": 10}]
    found = budget(joint, prepare(joint), lines)
    assert found.rows == pytest.approx({"words": 80 * 0.5 + 80 * 0.2, "texts": 80 * 0.5 + 80 * 0.8}, abs=2)
    one = part_recipe(joint, ("ner",), found, tmp_path)
    assert (one.sampling.strategy, one.sampling.targets) == ("proportional", {})
    assert drawn(one) == {"words": found.rows["words"]}


def test_a_stream_of_unknown_size_gives_as_many_rows_to_the_step(tmp_path: Path) -> None:
    joint = Recipe.from_dict(streamed_values(tmp_path, max_steps=12, eval_every=6))
    found = budget(joint, prepare(joint))
    assert found.rows == {"words": 64, "texts": 128}
    one = part_recipe(joint, ("sentiment",), found, tmp_path)
    assert (one.training.max_steps, one.training.eval_every) == (8, 4)
    assert steps(one, prepare(one)).sampler.num_rows == 128
    assert training_tokens(one, prepare(joint), [], 8) is None


def test_conflicts_are_measured_where_they_can_be(tmp_path: Path) -> None:
    recipe = made(tmp_path, log_every=5)
    prepared = prepare(recipe)
    assert measured(recipe, prepared, 1000) == (recipe.gradients.model_dump(mode="json") | {"measure_every": 50}, "")
    assert measured(recipe, prepared, 7)[0]["measure_every"] == 1
    own = made(tmp_path, {"gradients": {"measure_every": 3}})
    assert measured(own, prepared, 1000) == (own.gradients.model_dump(mode="json"), "")
    for training, why in (
        ({"unfreeze_every": 5}, "unfreeze_every"),
        ({"frozen_layers": "encoder"}, "share nothing"),
        ({"frozen_layers": 2}, "share nothing"),
    ):
        section, told = measured(made(tmp_path, **training), prepared, 1000)
        assert section["measure_every"] is None
        assert why in told
    alone = made(tmp_path, {"sampling": {"strategy": "round_robin"}})
    alone = alone.model_copy(update={"tasks": {name: spec for name, spec in alone.tasks.items() if name != "pos"}})
    assert "one task alone" in measured(alone, prepared, 1000)[1]


def test_a_pooler_that_text_tasks_share_is_measured(tmp_path: Path) -> None:
    given = made(tmp_path, frozen_layers="encoder").to_dict()
    given["tasks"]["again"] = given["tasks"]["sentiment"]
    recipe = Recipe.from_dict(given)
    section, why = measured(recipe, prepare(recipe), 100)
    assert (section["measure_every"], why) == (5, "")
    joint_recipe(recipe, 1, tmp_path / "joint", section)


def test_training_tokens_are_those_that_the_steps_hold(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(made(tmp_path, num_epochs=1.3).to_dict() | {"max_length": 16, "window_overlap": 4})
    file = Path(recipe.data_dir) / "words" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tiny.write_jsonl(file, [*rows, {column: rows[0][column] * 12 for column in rows[0]}])  # of several windows
    prepared = prepare(recipe)
    for own in (recipe, part(recipe, ("sentiment",)), part(recipe, ("pos",))):
        of_own = prepare(own)
        data = steps(own, of_own)
        lengths = [item_lengths(data.items(plan), data.framing) for plan in data.sampler]
        assert training_tokens(own, prepared, [], len(data)) == sum(int(found.sum()) for found in lengths)
