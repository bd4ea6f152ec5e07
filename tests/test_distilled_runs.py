"""Runs whose tasks learn from teachers: trained models, asked once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from taught_runs import TASKS, change_rows, distilled, taught_data, trained_teacher
from tiny import byte_level_tokenizer, encoder, write_jsonl
from tiny_runs import alone_and_in_two, assert_resumes_exactly, loss_lines
from typed_runs import values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build import steps
from nlp_mtl.build_data import prepare
from nlp_mtl.data.items import Item
from nlp_mtl.data.soft_targets import Teaching
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.evaluation import evaluate
from nlp_mtl.inference import teaching as asking
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.run_check import check
from nlp_mtl.training.passes import summed_losses


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model of a task of each type."""
    return trained_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows teachers were asked, call by call."""
    found: list[int] = []
    real = asking.row_logits
    monkeypatch.setattr(asking, "row_logits", lambda *given, **how: found.append(len(given[1])) or real(*given, **how))
    return found


def rows_of(data: StepDataset) -> dict[tuple[int, int], Item]:
    """``{(dataset, row): its first window}`` of the first pass."""
    found = {}
    for step in range(len(data)):
        plan = data.sampler[step]
        for dataset in np.unique(plan.datasets):
            rows = plan.rows[plan.datasets == dataset]
            one = plan._replace(datasets=plan.datasets[plan.datasets == dataset], rows=rows)
            for item in data.items(one):
                found[(int(dataset), int(rows[item.place]))] = item
    return found


def losses(model: MultiTaskModel, data: StepDataset, step: int) -> dict[str, float]:
    """A step's, by task."""
    batches, sums = data[step], dict.fromkeys(data.counts([]), 0.0)
    with torch.no_grad():
        for micro_batch in batches.micro_batches:
            for task, loss in summed_losses(model.eval(), micro_batch, Accelerator(cpu=True), "no").items():
                sums[task] += float(loss) / max(batches.counts[task], 1)
    return sums


def test_soft_targets_are_what_the_teacher_says_of_each_row_alone(tmp_path: Path, teacher: Path) -> None:
    _, data = taught_data(distilled(tmp_path, teacher))
    model, _tokenizer = load_model(teacher)
    tasks = {task.name: task for task in data.tasks}
    found = rows_of(data)
    assert len(found) == 96
    for item in found.values():
        ids = torch.tensor([[*data.framing.prefix, *item.pieces, *data.framing.suffix]])
        with torch.no_grad():
            logits = model(ids)
        assert {*item.soft} == {task for task in TASKS if task in item.labels}
        for task, soft in item.soft.items():
            said = logits[task][0][torch.tensor(item.starts) + 1] if task == "pos" else logits[task]
            order = [
                model.config.task_list()[model.task_names.index(task)].labels.index(one) for one in tasks[task].labels
            ]
            torch.testing.assert_close(torch.tensor(soft.logits), said[:, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_but_labels(
    tmp_path: Path, teacher: Path, packed: bool
) -> None:
    model, _ = load_model(teacher)
    model.packs("auto")
    given = distilled(tmp_path, teacher, annealing=False, temperature=3)
    _, data = taught_data(given, packed=packed)
    assert losses(model, data, 0) == pytest.approx(dict.fromkeys(TASKS, 0.0), abs=1e-5)
    _, half = taught_data(given | {"distillation": {**given["distillation"], "weight": 0.25}}, packed=packed)
    labels = losses(model, steps(Recipe.from_dict(values(tmp_path)), prepare(Recipe.from_dict(values(tmp_path)))), 0)
    assert losses(model, half, 0) == pytest.approx({task: 0.75 * loss for task, loss in labels.items()}, abs=1e-5)


def test_a_loss_does_not_depend_on_how_a_step_is_laid_out(tmp_path: Path, teacher: Path) -> None:
    given = distilled(tmp_path, teacher, rows="all", temperature=2) | {"max_length": 16, "window_overlap": 4}
    change_rows(given, "texts", lambda place, row: row | {"text": row["text"] + " film" * (place % 3 * 9)})
    model, _ = load_model(teacher)
    model.packs("auto")
    with torch.no_grad():  # not its teacher
        for parameter in model.heads.parameters():
            parameter.mul_(0.5)
    expected = losses(model, taught_data(given, packed=True)[1], 1)
    assert min(expected.values()) > 0
    given["training"]["max_tokens"] = 32
    for packed in (False, True):
        found = losses(model, taught_data(given, packed=packed)[1], 1)
        assert found == pytest.approx(expected, rel=1e-4)


def test_the_teachers_share_falls_to_the_end_of_the_run(tmp_path: Path, teacher: Path) -> None:
    _, data = taught_data(distilled(tmp_path, teacher, weight=0.8))
    shares = [batch.tasks["pos"].soft for step in range(len(data)) for batch in data[step].micro_batches[:1]]
    told = [float(soft.label_weight) for soft in shares]
    assert told == pytest.approx([1 - 0.8 * (1 - step / len(data)) for step in range(len(data))])
    assert [float(soft.weights.max()) for soft in shares] == pytest.approx([1 - one for one in told])
    assert Teaching(0.8, False, 1.0).at(11, 12) == Teaching(0.8, False, 1.0)


def test_a_run_resumes_exactly_and_the_teacher_is_asked_once(tmp_path: Path, teacher: Path, asked: list[int]) -> None:
    given = distilled(tmp_path, teacher, {"save_every": 1, "keep_last": 20})
    recipe = Recipe.from_dict({**given, "output_dir": str(tmp_path / "whole")})
    assert_resumes_exactly(recipe, 5, tmp_path / "stopped")
    assert sum(asked) == 96
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["teachers"] == dict.fromkeys(TASKS, str(teacher))


def test_the_checksum_of_training_data_tells_teachers_apart(tmp_path: Path, teacher: Path) -> None:
    given = distilled(tmp_path, teacher)
    other = tmp_path / "other"
    model, tokenizer = load_model(teacher)
    with torch.no_grad():
        model.head("pos").classifier.weight.mul_(2)
    for part in (model, tokenizer):
        part.save_pretrained(other)
    found = [taught_data(given)[1].digest() for _ in range(2)]
    given["distillation"]["teachers"]["pos"] = str(other)
    found += [
        taught_data(given)[1].digest(),
        steps(plain := Recipe.from_dict(values(tmp_path)), prepare(plain)).digest(),
    ]
    assert found[0] == found[1]
    assert len({*found}) == 3


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path, teacher: Path) -> None:
    for one, two in alone_and_in_two(tmp_path, distilled(tmp_path, teacher, rows="all")):
        assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)


def test_what_has_no_label_is_learned_where_all_rows_are_wanted(tmp_path: Path, teacher: Path) -> None:
    given = distilled(tmp_path, teacher)
    change_rows(given, "texts", lambda place, row: row if place % 4 else row | {"label": None, "tags": None})
    change_rows(given, "words", lambda place, row: row if place % 4 else row | {"upos": None})
    items = {}
    for rows in ("labelled", "all"):
        given["distillation"]["rows"] = rows
        _, data = taught_data(given)
        items[rows] = rows_of(data).values()
        totals = {task: sum(data[step].counts[task] for step in range(len(data) // 2)) for task in TASKS}
        words = sum(len(item.starts) for item in items[rows])
        labelled = sum(len(item.labels.get("pos", [])) for item in items[rows])
        expected = {
            "labelled": {"pos": labelled, "tags": 36, "rating": 48},
            "all": {"pos": words, "tags": 96, "rating": 96},
        }
        assert {task: totals[task] for task in ("pos", "tags", "rating")} == expected[rows]
    assert words > labelled > 0
    model, _ = load_model(teacher)
    given["distillation"] |= {"weight": 0.5, "annealing": False}
    _, data = taught_data(given)
    assert losses(model, data, 0)["tags"] > 0  # of labels; the teacher is the student
    soft = [batch.tasks["tags"].soft for batch in data[0].micro_batches]
    counted = {float(weight) for one in soft for weight in one.weights}
    assert counted == {0.5, 1.0}


def test_learning_from_all_rows_brings_a_student_with_few_labels_nearer_to_its_teacher(
    tmp_path: Path, teacher: Path
) -> None:
    agreement = {}
    for rows in ("labelled", "all"):
        folder = tmp_path / rows
        given = distilled(folder, teacher, {"num_epochs": 8}, rows=rows, annealing=False)
        change_rows(given, "words", lambda place, row: row if place < 1 else row | {"upos": None})
        train(Recipe.from_dict(given))
        prepared, _ = taught_data(given)
        student, guide = load_model(folder / "run")[0], load_model(teacher)[0]
        order = [model.config.task_list()[model.task_names.index("pos")].labels for model in (student, guide)]
        assert order[0] == order[1]
        differences = []
        for pieces in prepared.encoded["words"]["test"].rows["pieces"]:
            ids = torch.tensor([[*prepared.framing.prefix, *pieces, *prepared.framing.suffix]])
            with torch.no_grad():
                said = [model(ids, tasks=["pos"])["pos"].softmax(-1) for model in (student, guide)]
            differences.append(float((said[0] - said[1]).abs().mean()))
        agreement[rows] = float(np.mean(differences))
    assert agreement["all"] < 0.7 * agreement["labelled"]


def test_a_teacher_may_read_other_pieces_and_name_its_labels_in_another_order(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "byte-level"
    other = encoder("roberta", max_positions=80)
    other.resize_token_embeddings(len(byte_level_tokenizer()))
    other.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    given = values(tmp_path / "of-bytes", num_epochs=1) | {"encoder": str(folder)}
    given["tasks"]["sentiment"]["label_names"] = ["positive", "negative"]
    train(Recipe.from_dict(given))
    mine = distilled(tmp_path / "student", given["output_dir"])
    prepared, data = taught_data(mine)
    model, tokenizer = load_model(given["output_dir"])
    texts = prepared.loaded["texts"].splits["train"].rows["text"]
    for (dataset, row), item in rows_of(data).items():
        if dataset == 0:
            assert len(item.soft["pos"].logits) == len(item.starts)
            continue
        ids = tokenizer(" " + texts[row], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            said = model(ids, tasks=["sentiment"])["sentiment"][:, [1, 0]]
        torch.testing.assert_close(torch.tensor(item.soft["sentiment"].logits), said, atol=1e-4, rtol=1e-3)


def test_a_chain_teaches_its_marginals(tmp_path: Path) -> None:
    given = values(tmp_path / "chain", num_epochs=2)
    given["tasks"] = {"pos": given["tasks"]["pos"] | {"decoder": "crf"}, "sentiment": given["tasks"]["sentiment"]}
    train(Recipe.from_dict(given))
    mine = values(tmp_path / "student") | {"distillation": {"teachers": {"pos": given["output_dir"]}}}
    prepared, data = taught_data(mine)
    model, _ = load_model(given["output_dir"])
    task = next(task for task in model.config.task_list() if task.name == "pos")
    assert task.decoder == "crf"
    for item in rows_of(data).values():
        if "pos" in item.soft:
            chances = np.exp(item.soft["pos"].logits).sum(-1)
            assert chances == pytest.approx(np.ones(len(item.starts)), abs=1e-4)
    assert evaluate(model, prepared.split("validation"), [task], prepared.framing, max_tokens=128)


def test_a_run_without_teachers_learns_as_before(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(values(tmp_path))
    assert recipe.distillation is None
    data = steps(recipe, prepare(recipe))
    assert all(rows.soft is None for batch in data[0].micro_batches for rows in batch.tasks.values())
    train(recipe)
    assert loss_lines(tmp_path / "run")


def test_texts_that_nobody_labelled_are_learned_from(tmp_path: Path, teacher: Path) -> None:
    given = distilled(tmp_path, teacher, rows="all")
    folder = Path(given["data_dir"])
    texts = [json.loads(line)["text"] for line in (folder / "texts" / "train.jsonl").read_text().splitlines()]
    write_jsonl(folder / "more" / "train.jsonl", [{"text": f"{text} film"} for text in texts[:20]])
    given["datasets"]["more"] = {"data_files": {"train": "more/train.jsonl"}, "text": "text", "test_fraction": 0}
    given["datasets"]["more"]["validation_fraction"] = 0
    assert not any("no label" in odd for odd in check(Recipe.from_dict(given))["odd"])
    train(Recipe.from_dict(given))
    counts = [data[step].counts for data in [taught_data(given)[1]] for step in range(len(data))]
    assert sum(one["tags"] for one in counts) == 2 * (48 + 48 + 20)
    given["distillation"]["rows"] = "labelled"
    with pytest.raises(RecipeError, match=r"datasets\.more: no task learns from this dataset"):
        Recipe.from_dict(given)


def test_answers_are_kept_whatever_else_is_learned_from_the_rows(
    tmp_path: Path, teacher: Path, asked: list[int]
) -> None:
    given = distilled(tmp_path, teacher)
    taught_data(given)
    assert sum(asked) == 96
    given["tasks"]["sentiment"]["label_names"] = ["positive", "negative"]
    given["distillation"] |= {"temperature": 2, "weight": 0.5}
    taught_data(given)
    assert sum(asked) == 96
    given["max_length"] = 32  # the student's alone
    taught_data(given)
    assert sum(asked) == 96
