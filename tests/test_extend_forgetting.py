"""Old tasks of a model that gets more: what learns, what stays, replay, its own answers, its start."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from extensions import OLD, TEXTS, base_run, changed, logits, more_of_the_words, new_values, weights
from tiny_runs import loss_lines, values

from nlp_mtl import Recipe, evaluate, extend, load, train
from nlp_mtl.build import steps
from nlp_mtl.build_data import prepare
from nlp_mtl.build_distillation import taught, teaching
from nlp_mtl.build_extended import learned_tasks, old_lessons
from nlp_mtl.data.soft_targets import Teaching
from nlp_mtl.extend_recipes import read_extension
from nlp_mtl.metrics import old_scores
from nlp_mtl.run_evaluation import run_recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize(
    ("extension", "stays", "moves"),
    [
        ({"freeze": "nothing"}, "heads.", "encoder."),
        ({"freeze": "heads", "replay": 20}, "heads.", "encoder."),
        ({"replay": 20}, "", "heads.ner_head"),
        ({"l2_to_start": 0.1}, "heads.", "encoder."),
        ({"distillation": True}, "", "heads.pos_head"),
        ({"freeze": "heads", "distillation": True}, "heads.", "encoder."),
        ({"l2_to_start": 1, "importance": "fisher", "fisher_rows": 8, "replay": 0.5, "distillation": ["ner"],
          "teacher_weight": 0.7, "old_weight": 0.5}, "", "heads.ner_head"),
    ],
)  # fmt: skip
def test_what_learns_and_what_stays(
    base: Path, tmp_path: Path, extension: dict[str, Any], stays: str, moves: str
) -> None:
    results = extend(base, new_values(tmp_path, extension))
    found = changed(weights(base), weights(tmp_path / "extended"))
    assert not [name for name in found if stays and name.startswith(stays)]
    assert [name for name in found if name.startswith(moves)]
    assert evaluate(tmp_path / "extended") == results["scores"]["test"]


def test_frozen_layers_stay_and_others_learn(base: Path, tmp_path: Path) -> None:
    extend(base, new_values(tmp_path, frozen_layers=1))
    found = changed(weights(base), weights(tmp_path / "extended"))
    assert found
    assert all(name.startswith(("encoder.encoder.layer.1.", "encoder.pooler.")) for name in found)


def test_replay_draws_as_many_rows_as_were_asked_for_by_the_seed_and_learns_from_them_once_a_pass(
    base: Path, tmp_path: Path
) -> None:
    drawn = {}
    for seed, replay in ((0, 10), (0, 0.25), (1, 10)):
        given = {**new_values(tmp_path, {"replay": replay}, num_epochs=2), "seed": seed}
        model, recipe = read_extension(base, given)
        prepared = prepare(recipe, **model.reading(), extends=True)
        found = old_lessons(recipe, prepared, model, Accelerator())
        data = steps(recipe, found)
        count = {10: 10, 0.25: 12}[replay]
        assert [len(split) for split in data.splits] == [count, count, 40]
        drawn[seed, replay] = [tuple(split.source.source_rows.tolist()) for split in data.splits[:2]]
        rows = [
            (int(dataset), int(row))
            for plan in data.sampler
            for dataset, row in zip(plan.datasets, plan.rows, strict=True)
        ]
        assert sorted(rows) == sorted(
            2 * [(place, row) for place, split in enumerate(data.splits) for row in range(len(split))]
        )
        whole = prepared.encoded["words"]["train"]
        kept = found.encoded["words"]["train"]
        for place, row in enumerate(kept.source.source_rows.tolist()):
            assert kept.batch([place]) == whole.batch([row])
            assert kept.where(place) == whole.where(row)
    assert drawn[0, 10] != drawn[1, 10]
    assert drawn[0, 10][0] != drawn[0, 10][1]  # each dataset has rows of its own


def test_replayed_rows_that_are_changed_as_they_come_keep_their_own_words(tmp_path: Path) -> None:
    given = values(tmp_path, max_steps=1)
    given["datasets"]["words"]["augmentation"] = {"word_dropout": 0.5}
    train(Recipe.from_dict(given))
    model, recipe = read_extension(tmp_path / "run", new_values(tmp_path, {"replay": 6}))
    found = old_lessons(recipe, prepare(recipe, **model.reading(), extends=True), model, Accelerator())
    data = steps(recipe, found)
    kept = data.splits[0]
    mask = found.tokenizer.mask_token_id
    seen = 0
    for step in range(len(data)):
        plan = data.sampler[step]
        rows = plan.rows[plan.datasets == 0]
        for item, row in zip(data.items(plan), rows.tolist(), strict=False):
            whole = kept.batch([row])["pieces"][0]
            if len(item.pieces) == len(whole):
                pairs = [(one, other) for one, other in zip(item.pieces, whole, strict=True) if one != mask]
                assert all(one == other for one, other in pairs)
                seen += 1
    assert seen


def test_old_tasks_without_replay_have_no_loss_and_with_it_count_old_weight(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path, {"replay": "all", "old_weight": 0.25})
    model, recipe = read_extension(base, given)
    prepared = prepare(recipe, **model.reading(), extends=True)
    assert {task.name: task.loss_weight for task in learned_tasks(recipe, prepared)} == {
        **dict.fromkeys(OLD, 0.25), "topic": 1.0,
    }  # fmt: skip
    extend(base, given)
    assert {*loss_lines(tmp_path / "extended")[-1]["losses"]} == {*OLD, "topic"}


def test_distillation_needs_no_old_data_and_draws_old_answers_to_those_of_the_old_model(
    base: Path, tmp_path: Path
) -> None:
    kept, plain = (
        new_values(tmp_path / name, {**extension, "freeze": "heads"}, num_epochs=6, learning_rate=1e-2, dropout=0.0)
        for name, extension in (("kept", {"distillation": True, "old_weight": 4}), ("plain", {}))
    )
    for given in (kept, plain):
        extend(base / "model", given)  # a model folder: nobody knows where its data are
    old, distilled, forgotten = (
        logits(base),
        logits(tmp_path / "kept" / "extended"),
        logits(tmp_path / "plain" / "extended"),
    )
    distances = {
        name: sum(float((found[task].softmax(-1) - old[task].softmax(-1)).abs().mean()) for task in OLD)
        for name, found in (("distilled", distilled), ("forgotten", forgotten))
    }
    assert distances["distilled"] < 0.6 * distances["forgotten"]
    results = json.loads((tmp_path / "kept" / "extended" / "results.json").read_text())
    assert results["extension"]["before"] == {}
    assert old_scores(results) == []
    assert [*results["scores"]["test"]] == ["topic"]
    assert {*load(tmp_path / "kept" / "extended")(TEXTS[0])} == {*OLD, "topic"}


def test_labels_that_happen_to_be_there_are_not_learned_by_a_task_that_is_distilled(base: Path, tmp_path: Path) -> None:
    given = more_of_the_words(base, tmp_path, {"distillation": ["ner"]})
    model, recipe = read_extension(base, given)
    found = old_lessons(recipe, prepare(recipe, **model.reading(), extends=True), model, Accelerator())
    train = found.encoded["words"]["train"]
    assert ([*train.tasks], [*train.soft]) == (["nouns"], ["ner"])
    # As Li and Hoiem have it; labels of replayed rows would have the other half.
    assert teaching(recipe) == Teaching(weight=0.5, annealing=False, temperature=2.0)


def test_teachers_of_new_tasks_are_asked_about_the_rows_that_are_replayed(base: Path, tmp_path: Path) -> None:
    teacher = Recipe.from_dict({**values(tmp_path / "teacher", max_steps=1)})
    train(teacher)
    given = more_of_the_words(base, tmp_path, {"replay": 5})
    given["tasks"]["pos"] = {"type": "token-classification", "dataset": "words", "labels": "upos"}
    del given["tasks"]["nouns"]
    given["extension"] |= {"old_tasks": ["sentiment"]}
    given["datasets"] = {
        "words": {**run_recipe(base).datasets["words"].model_dump(), "data_dir": run_recipe(base).data_dir}
    }
    given["distillation"] = {"teachers": {"pos": str(tmp_path / "teacher" / "run")}, "rows": "all"}
    model, recipe = read_extension(base, given)
    found = old_lessons(recipe, prepare(recipe, **model.reading(), extends=True), model, Accelerator())
    kept = taught(recipe, found, Accelerator()).encoded["texts"]["train"]
    assert len(kept) == 5
    nlp = load(tmp_path / "teacher" / "run", layout="padded")
    for row in range(5):
        ids = torch.tensor([[*found.framing.prefix, *kept.batch([row])["pieces"][0], *found.framing.suffix]])
        with torch.no_grad():
            logits = nlp.model(ids, tasks=["pos"])["pos"][0]
        starts = torch.tensor(kept.batch([row])["starts"][0]) + len(found.framing.prefix)
        said = np.frombuffer(kept.batch([row])["soft/pos"][0], dtype=np.float32).reshape(-1, logits.shape[-1])
        np.testing.assert_allclose(said, logits[starts].numpy(), atol=1e-5)


def test_weights_that_are_drawn_to_their_start_stay_nearer_and_the_log_tells_the_penalty(
    base: Path, tmp_path: Path
) -> None:
    distances = {}
    for name, extension in {
        "plain": {"freeze": "nothing"},
        "held": {"l2_to_start": 1.0},
        "weighed": {"l2_to_start": 100.0, "importance": "fisher", "fisher_rows": 60},
    }.items():
        given = new_values(tmp_path / name, extension, num_epochs=3, weight_decay=0.0)
        results = extend(base, given)
        start, end = weights(base), weights(Path(given["output_dir"]))
        distances[name] = sum(float((end[key] - one).square().sum()) for key, one in start.items())
        lines = loss_lines(Path(given["output_dir"]))
        assert all(("l2_to_start" in line) == (name != "plain") for line in lines)
        if name == "held":
            chosen = lines[results["step"] - 1]  # the saved model is the best, not the last
            assert chosen["l2_to_start"] == pytest.approx(distances[name] / 2, rel=1e-4)
    assert distances["held"] < 0.5 * distances["plain"]
    assert distances["weighed"] < distances["plain"]
