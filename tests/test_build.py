import dataclasses
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny as tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import recipe, write_corpus, write_jsonl

from nlp_mtl import DataError, ModelError, Recipe, RecipeError
from nlp_mtl.build import expects_to_pack, layout, new_model, steps, steps_per_epoch, trainer_arguments
from nlp_mtl.build_data import Prepared, prepare


def tiny_recipe(folder: Path, changes: dict[str, Any] | None = None, **training: Any) -> Recipe:
    return Recipe.from_dict({**recipe(folder, **training), **(changes or {})})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Prepared]:
    made = tiny_recipe(tmp_path_factory.mktemp("build"))
    return made, prepare(made)


def with_training(made: Recipe, **changes: Any) -> Recipe:
    return made.model_copy(update={"training": made.training.model_copy(update=changes)})


def test_all_that_a_run_needs_is_prepared(tiny: tuple[Recipe, Prepared]) -> None:
    _, prepared = tiny
    assert [task.name for task in prepared.tasks] == ["ner", "pos", "sentiment"]
    assert {
        name: {split: len(rows) for split, rows in splits.items()} for name, splits in prepared.encoded.items()
    } == {name: {"train": 48, "validation": 16, "test": 16} for name in ("words", "texts")}
    assert prepared.split("validation").keys() == {"words", "texts"}
    assert prepared.framing.max_length == 64  # the encoder's positions, fewer than max_tokens


def test_only_the_splits_asked_for_are_encoded(tiny: tuple[Recipe, Prepared]) -> None:
    prepared = prepare(tiny[0], splits=["test"])
    assert {name: list(splits) for name, splits in prepared.encoded.items()} == {"words": ["test"], "texts": ["test"]}


@settings(deadline=None, max_examples=40)
@given(num_epochs=st.floats(0.001, 5), batch_size=st.integers(1, 120), max_steps=st.none() | st.integers(1, 50))
def test_epochs_may_be_fractions_and_max_steps_cuts_them(tiny, num_epochs, batch_size, max_steps) -> None:
    made, prepared = tiny
    made = with_training(made, num_epochs=num_epochs, batch_size=batch_size, max_steps=max_steps)
    data = steps(made, prepared)
    rows = max(1, round(96 * num_epochs))
    assert len(data) == min(math.ceil(rows / batch_size), max_steps or 10**9)
    served = sum(len(plan.rows) for plan in data.sampler)
    assert served == min(rows, (max_steps or 10**9) * batch_size)


def test_an_evaluation_comes_once_an_epoch_unless_told_otherwise(tiny: tuple[Recipe, Prepared]) -> None:
    made, prepared = tiny
    assert steps_per_epoch(made, prepared) == 6
    assert trainer_arguments(made, prepared)["eval_every"] == 6
    assert trainer_arguments(with_training(made, eval_every=4), prepared)["eval_every"] == 4
    assert trainer_arguments(with_training(made, batch_size=1000), prepared)["eval_every"] == 1


def test_sampling_follows_the_recipe(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    text = (corpus / "texts" / "train.jsonl").read_text().splitlines(keepends=True)
    (corpus / "texts" / "train.jsonl").write_text("".join(text[:12]))
    shares = {}
    for strategy in ("proportional", "uniform"):
        made = Recipe.from_dict({**recipe(tmp_path, corpus=corpus), "sampling": {"strategy": strategy}})
        data = steps(made, prepare(made))
        shares[strategy] = float(data.sampler.allocation.phases[0].rates[1])
    assert shares == {"proportional": pytest.approx(0.2), "uniform": 0.5}


def test_processes_share_the_rows_of_a_step(tiny: tuple[Recipe, Prepared]) -> None:
    made, prepared = tiny
    whole = steps(made, prepared)[0]
    parts = [steps(made, prepared, process=process, num_processes=3)[0] for process in range(3)]
    rows = [sum(len(batch.inputs["input_ids"]) for batch in part.micro_batches) for part in parts]
    assert sum(rows) == sum(len(batch.inputs["input_ids"]) for batch in whole.micro_batches) == 16
    assert all(part.counts == whole.counts for part in parts)
    assert len({len(part.micro_batches) for part in parts}) == 1


def test_a_task_without_a_label_to_train_on_is_told(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    file = corpus / "words" / "train.jsonl"
    file.write_text(file.read_text().replace('"ner"', '"other"'))
    made = Recipe.from_dict(recipe(tmp_path, corpus=corpus))
    with pytest.raises(DataError, match="ner"):
        steps(made, prepare(made))


def test_a_task_with_one_label_to_train_on_is_told(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    file = corpus / "texts" / "train.jsonl"
    rows = [json.loads(line) | {"label": "positive"} for line in file.read_text().splitlines()]
    write_jsonl(file, rows)  # the other splits have both
    made = Recipe.from_dict(recipe(tmp_path, corpus=corpus))
    with pytest.raises(DataError, match=r"task `sentiment` has only the label `positive` in the train splits"):
        steps(made, prepare(made))


@pytest.mark.parametrize(
    ("changes", "training", "told"),
    [
        ({"max_length": 65}, {}, ["max_length: found 65", "at most 64"]),
        ({"max_length": 60}, {"max_tokens": 32}, ["training.max_tokens", "60", "32"]),
        ({"max_length": 8}, {}, ["max_length: windows of 8 tokens are too short"]),
        ({}, {"max_tokens": 60}, ["training.max_tokens: found 60", "max_length 64", "lower max_length"]),
    ],
)
def test_lengths_that_do_not_fit_are_told_with_their_keys(tmp_path: Path, changes, training, told) -> None:
    with pytest.raises(RecipeError) as error:
        prepare(tiny_recipe(tmp_path, changes, **training))
    assert all(words in str(error.value) for words in told)


def test_early_stopping_without_anything_to_score_is_refused(tmp_path: Path) -> None:
    values = recipe(tmp_path, early_stopping_patience=2)
    for dataset in values["datasets"].values():
        del dataset["data_files"]["validation"]
        dataset["validation_fraction"] = 0
    made = Recipe.from_dict(values)
    with pytest.raises(RecipeError, match=r"training\.early_stopping_patience: .*validation"):
        trainer_arguments(made, prepare(made))
    del values["training"]["early_stopping_patience"]
    assert trainer_arguments(Recipe.from_dict(values), prepare(made))["early_stopping_patience"] is None


def test_early_stopping_and_selection_need_a_task_that_can_be_scored(tiny: tuple[Recipe, Prepared]) -> None:
    made, prepared = tiny
    patient = with_training(made, early_stopping_patience=1)
    weighted = with_training(made, selection_weights={"pos": 1.0})
    assert trainer_arguments(patient, prepared)["early_stopping_patience"] == 1
    trainer_arguments(weighted, prepared)
    kept = {}
    for dataset, splits in prepared.encoded.items():
        for task, labelled in splits["validation"].labelled.items():
            kept[dataset, task] = labelled.copy()
            labelled[:] = 0
    try:
        with pytest.raises(RecipeError, match="early_stopping"):
            trainer_arguments(patient, prepared)
        with pytest.raises(RecipeError, match=r"selection_weights.*no model can be selected"):
            trainer_arguments(weighted, prepared)
    finally:
        for (dataset, task), labelled in kept.items():
            prepared.encoded[dataset]["validation"].labelled[task][:] = labelled


def test_a_task_that_the_trained_model_lacks_is_told_and_left_out(
    tiny: tuple[Recipe, Prepared], caplog: pytest.LogCaptureFixture
) -> None:
    made, prepared = tiny
    with caplog.at_level(logging.WARNING, "nlp_mtl"):
        found = prepare(made, trained_tasks=prepared.tasks[:2], splits=["test"])
    assert [task.name for task in found.tasks] == ["ner", "pos"]
    assert "no task `sentiment`" in caplog.text


@pytest.mark.slow
def test_looking_at_data_does_not_settle_the_device_of_a_later_run(tmp_path: Path) -> None:
    # accelerate keeps the first device that a program asks for. In a process of its own: nothing asked before.
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import conftest, tiny\n"
        "from nlp_mtl import Recipe; from nlp_mtl.run_check import check; from accelerate.state import PartialState\n"
        "check(Recipe.from_dict(tiny.recipe(Path(sys.argv[2]))))\n"
        "assert PartialState._shared_state == {}, PartialState._shared_state"
    )
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def with_shares(made: Recipe, **shares: float) -> Recipe:
    return made.model_copy(
        update={"sampling": made.sampling.model_copy(update={"strategy": "fixed", "shares": shares})}
    )


def test_a_task_whose_datasets_are_never_drawn_from_is_refused(tiny: tuple[Recipe, Prepared]) -> None:
    made, prepared = tiny
    with pytest.raises(DataError, match=r"`sentiment` has no labelled row in the train splits that sampling\.shares"):
        steps(with_shares(made, words=1, texts=0), prepared)


def test_a_dataset_with_the_share_0_gives_no_rows(tmp_path: Path) -> None:
    values = recipe(tmp_path)
    values["datasets"]["more"] = values["datasets"]["texts"]
    values["tasks"]["sentiment"]["dataset"] = ["texts", "more"]
    made = Recipe.from_dict(
        {**values, "sampling": {"strategy": "fixed", "shares": {"words": 1, "texts": 0, "more": 2}}}
    )
    prepared = prepare(made)
    data = steps(made, prepared)
    assert data.sampler.allocation.phases[0].rates.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert "texts" in prepared.split("validation")


def test_shares_of_datasets_that_have_no_train_split_are_refused(tmp_path: Path) -> None:
    values = recipe(tmp_path)
    values["datasets"]["held"] = {**values["datasets"]["texts"], "splits": {"train": None}}
    values["tasks"]["sentiment"]["dataset"] = ["texts", "held"]
    made = Recipe.from_dict(
        {**values, "sampling": {"strategy": "fixed", "shares": {"words": 0, "texts": 0, "held": 1}}}
    )
    with pytest.raises(DataError, match=r"no labelled row in the train splits that sampling\.shares draws from"):
        steps(made, prepare(made))


def test_a_trained_task_of_another_type_is_refused(tiny: tuple[Recipe, Prepared]) -> None:
    made, prepared = tiny
    other = [dataclasses.replace(prepared.tasks[0], type="text-classification"), *prepared.tasks[1:]]
    with pytest.raises(ModelError, match="task `ner` is text-classification, but the recipe's is token-classification"):
        prepare(made, trained_tasks=other, splits=["test"])


def test_an_epoch_is_one_of_the_datasets_that_are_trained_on(tiny: tuple[Recipe, Prepared]) -> None:
    made, prepared = tiny
    shares = made.sampling.model_copy(update={"strategy": "fixed", "shares": {"words": 1.0, "texts": 0.0}})
    made = made.model_copy(update={"sampling": shares})
    assert (steps_per_epoch(tiny[0], prepared), steps_per_epoch(made, prepared)) == (6, 3)
    assert trainer_arguments(made, prepared)["eval_every"] == 3


@pytest.mark.parametrize(("layout", "packed"), [("auto", True), ("packed", True), ("padded", False)])
def test_texts_are_packed_where_the_encoder_can(tiny: tuple[Recipe, Prepared], layout: str, packed: bool) -> None:
    made = with_training(tiny[0], layout=layout)
    assert new_model(made, tiny[1]).packs(layout) is expects_to_pack(made) is packed


def test_an_encoder_that_cannot_pack_pads_and_says_why_or_is_refused(tmp_path: Path, caplog) -> None:
    made = tiny_recipe(tmp_path, encoder_folder=tiny_models.save_encoder(tmp_path / "deberta", "deberta-v2"))
    model = new_model(made, prepare(made))
    with caplog.at_level(logging.INFO):
        assert model.packs("auto") is expects_to_pack(made) is False
    assert (
        caplog.messages.count(
            "Texts are padded, as the encoder cannot read packed ones: the attention of a deberta-v2 cannot be replaced"
        )
        == 2
    )
    for refused in (lambda: model.packs("packed"), lambda: expects_to_pack(with_training(made, layout="packed"))):
        with pytest.raises(ModelError, match=r"layout: packed, but .* deberta-v2 .*choose auto or padded"):
            refused()
    assert model.packs("padded") is False


def test_what_is_compiled_is_padded_to_few_lengths_and_not_shared_by_threads(
    tiny: tuple[Recipe, Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlp_mtl.build.num_threads", lambda *_: 2)
    made, prepared = tiny
    for compiled, shared in ((False, 2), (True, 1)):
        made = with_training(made, compile=compiled)
        data = steps(made, prepared)
        assert (layout(made), expects_to_pack(made)) == (("padded", False) if compiled else ("auto", True))
        assert data.num_threads == shared
        assert {batch.inputs["input_ids"].shape[1] == 32 for batch in data[0].micro_batches} == {compiled}
