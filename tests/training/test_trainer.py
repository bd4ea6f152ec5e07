import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import Drawn
from tiny_runs import loss_lines, score_lines, tiny_recipe, values
from trained import Run, run, same

from nlp_mtl import Recipe
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.manifest import MANIFEST, write_manifest
from nlp_mtl.training.optimizer import schedule_factor
from nlp_mtl.training.trainer import _step_seed


def test_every_parameter_changes(tmp_path: Path) -> None:
    a_run = run(tmp_path)
    a_run.train()
    before, after = a_run.seen[0], a_run.weights()
    assert [name for name, _ in a_run.model.named_parameters() if torch.equal(before[name], after[name])] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="trains on the GPU")
def test_a_run_on_cpu_draws_dropout_quickly_and_adds_up_embeddings_by_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("nlp_mtl.training.trainer.keep_freed_memory", lambda: kept.append(True))
    a_run = run(tmp_path, dropout=0.3, max_steps=2)
    layouts: list[torch.layout] = []
    embedding = a_run.model.get_input_embeddings()
    embedding.weight.register_hook(lambda gradient: layouts.append(gradient.layout))
    held: list[bool] = []

    def evaluate(model: MultiTaskModel) -> tuple[dict, None]:
        held.append(any(parameter.grad is not None for parameter in model.heads.parameters()))
        return {}, None

    monkeypatch.setattr(a_run, "_evaluate", evaluate)
    with Drawn() as drawn:
        a_run.train()
    assert (kept, drawn.names, set(layouts), held) == ([True], [], {torch.sparse_coo}, [False])
    assert embedding.sparse is False
    assert all(parameter.grad is None for parameter in a_run.model.parameters())


def test_a_step_without_any_label_changes_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, batch_size=1, max_steps=3, weight_decay=0.5, warmup_fraction=0)
    for file in (Path(recipe.data_dir) / "words" / "train.jsonl", Path(recipe.data_dir) / "texts" / "train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        first = {str(row.get("label", place % 2)): place for place, row in reversed([*enumerate(rows)])}
        for place, row in enumerate(rows):
            if place not in first.values():  # two rows of each with labels, so that there is something to tell apart
                row |= {key: None for key in ("ner", "upos", "label") if key in row}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.from_dict({**recipe.to_dict(), "training": {**recipe.to_dict()["training"], "eval_every": 1}})
    a_run = Run(recipe)
    a_run.train()
    counts = [any(a_run.data.counts(a_run.data.items(plan)).values()) for plan in a_run.data.sampler]
    assert False in counts
    for step, labelled in enumerate(counts):
        assert same(a_run.seen[step], a_run.seen[step + 1]) is not labelled, step


def test_the_model_ends_with_the_weights_of_the_best_evaluation(tmp_path: Path) -> None:
    a_run = run(tmp_path, [0.1, 0.9, 0.9, 0.3], eval_every=3)
    state = a_run.train()
    assert (state.step, state.best_step, state.best_score, state.finished) == (12, 6, 0.9, True)
    assert same(a_run.weights(), a_run.seen[2])
    assert not same(a_run.weights(), a_run.seen[4])
    assert a_run.checkpoints() == {6, 12}


def test_without_scores_the_model_ends_with_the_last_weights(tmp_path: Path) -> None:
    a_run = run(tmp_path, eval_every=5)
    state = a_run.train()
    assert (state.best_step, state.best_score, state.finished) == (None, None, True)
    assert same(a_run.weights(), a_run.seen[-1])
    assert a_run.checkpoints() == {12}


def test_training_stops_early_after_so_many_evaluations_without_gain(tmp_path: Path) -> None:
    a_run = run(tmp_path, [0.5, 0.4, 0.6, 0.6, 0.1, 0.9], eval_every=2, early_stopping_patience=2)
    state = a_run.train()
    assert (state.step, state.best_step, state.evaluations_without_gain) == (10, 6, 2)
    assert [line["step"] for line in score_lines(a_run.folder)] == [2, 4, 6, 8, 10]
    assert same(a_run.weights(), a_run.seen[3])


def test_patience_is_remembered_by_a_resumed_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, eval_every=2, early_stopping_patience=2, max_steps=4, schedule="constant")
    assert Run(recipe, [0.5, 0.4]).train().finished  # all of its four steps are done
    (state_file,) = (tmp_path / "run" / "checkpoints" / "step-4").glob("state.json")
    state_file.write_text(state_file.read_text().replace('"finished": true', '"finished": false'))
    (state_file.parent / MANIFEST).unlink()
    write_manifest(state_file.parent)
    longer = recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_steps": None})})
    state = Run(longer, [0.3, 0.9]).train(resume=True)
    assert (state.step, state.best_step, state.best_score) == (6, 2, 0.5)


def test_lines_and_checkpoints_come_when_they_were_asked_for(tmp_path: Path) -> None:
    a_run = run(tmp_path, log_every=5, eval_every=6, save_every=4, keep_last=99)
    a_run.train()
    assert [line["step"] for line in loss_lines(a_run.folder)] == [5, 10, 12]
    assert [line["step"] for line in score_lines(a_run.folder)] == [6, 12]
    assert a_run.checkpoints() == {4, 6, 8, 12}


def test_a_line_tells_the_means_since_the_last_one(tmp_path: Path) -> None:
    # One row a step: each step lacks some task.
    options = {"batch_size": 1, "max_steps": 10, "save_every": 4}
    each, some = run(tmp_path / "each", **options), run(tmp_path / "some", **options)
    each.train(log_every=1)
    some.train(log_every=5)
    singles, means = loss_lines(each.folder), loss_lines(some.folder)
    assert all(len(line["losses"]) < 3 for line in singles)
    for number, line in enumerate(means):
        part = singles[number * 5 : number * 5 + 5]
        for task, loss in line["losses"].items():
            given = [one["losses"][task] for one in part if task in one["losses"]]
            assert loss == pytest.approx(sum(given) / len(given))
        assert line["grad_norm"] == part[-1]["grad_norm"]
        assert line["loss"] == pytest.approx(sum(line["losses"].values()))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rates_in_the_log_follow_the_schedule(tmp_path: Path, schedule: str) -> None:
    a_run = run(tmp_path, schedule=schedule, warmup_fraction=0.2)
    a_run.train()
    for step, line in enumerate(loss_lines(a_run.folder)):
        factor = schedule_factor(step, 12, schedule, 0.2)  # type: ignore[arg-type]
        assert line["learning_rates"]["encoder"] == pytest.approx(2e-3 * factor)
        assert line["learning_rates"]["heads, no decay"] == pytest.approx(1e-2 * factor)


def test_with_layer_decay_the_log_tells_the_rate_of_each_layer(tmp_path: Path) -> None:
    a_run = run(tmp_path, layer_decay=0.5, schedule="constant", warmup_fraction=0, max_steps=1)
    a_run.train()
    rates = loss_lines(a_run.folder)[0]["learning_rates"]
    layers = {name: rate for name, rate in rates.items() if "no decay" not in name}
    assert layers == {"embeddings": 5e-4, "encoder layer 1": 1e-3, "encoder layer 2": 2e-3, "heads": 1e-2}
    moved = {name: (tensor - a_run.seen[0][name]).abs().max() for name, tensor in a_run.weights().items()}
    # The first step of AdamW moves a weight by its learning rate, but for decay.
    assert moved["encoder.encoder.layer.0.output.dense.weight"] == pytest.approx(1e-3, rel=0.01)
    assert moved["encoder.encoder.layer.1.output.dense.weight"] == pytest.approx(2e-3, rel=0.01)


def test_the_first_step_does_not_depend_on_how_it_is_laid_out(tmp_path: Path) -> None:
    firsts = []
    for layout, max_tokens in itertools.product(("padded", "packed"), (64, 128, 4096)):
        a_run = run(tmp_path / f"{layout}-{max_tokens}", layout=layout, max_tokens=max_tokens, max_steps=1)
        a_run.train()
        assert a_run.data.packed is (layout == "packed")
        firsts.append((len(a_run.data[0].micro_batches), loss_lines(a_run.folder)[0]))
    for counts in ([count for count, _ in firsts[:3]], [count for count, _ in firsts[3:]]):
        assert len(set(counts)) == 3
    for _, line in firsts[1:]:
        assert line["losses"] == pytest.approx(firsts[0][1]["losses"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(firsts[0][1]["grad_norm"], rel=1e-5)


def test_a_head_that_no_row_of_a_step_needs_is_neither_updated_nor_decayed(tmp_path: Path) -> None:
    a_run = run(tmp_path, batch_size=1, max_steps=24, eval_every=1, weight_decay=0.5)
    a_run.train()
    idle = 0
    for step, (before, after) in enumerate(itertools.pairwise(a_run.seen)):
        counts = a_run.data[step].counts
        for task, count in counts.items():
            names = [name for name in before if name.startswith(f"heads.{task}_head.")]
            assert all(torch.equal(before[name], after[name]) != bool(count) for name in names), (step, task)
            idle += not count
        # BERT's pooler is read by its text tasks only.
        changed = not torch.equal(before["encoder.pooler.dense.weight"], after["encoder.pooler.dense.weight"])
        assert changed == bool(counts["sentiment"])
    assert idle > 24


def test_a_task_with_loss_weight_0_is_watched_but_not_learned(tmp_path: Path) -> None:
    plain = values(tmp_path, max_steps=4, weight_decay=0.5)
    plain["tasks"]["sentiment"]["loss_weight"] = 0
    a_run = Run(Recipe.from_dict(plain))
    a_run.train()
    before, after = a_run.seen[0], a_run.weights()
    unlearned = {name for name, _ in a_run.model.named_parameters() if torch.equal(before[name], after[name])}
    assert unlearned == {name for name in before if name.startswith(("heads.sentiment_head.", "encoder.pooler."))}
    line = loss_lines(a_run.folder)[-1]
    assert line["losses"].keys() == {"ner", "pos", "sentiment"}
    assert line["loss"] == pytest.approx(line["losses"]["ner"] + line["losses"]["pos"])


def test_loss_weights_scale_what_a_task_counts(tmp_path: Path) -> None:
    plain = values(tmp_path, max_steps=1)
    norms = {}
    for weight in (1.0, 4.0):
        for task in plain["tasks"].values():
            task["loss_weight"] = weight
        a_run = Run(Recipe.from_dict(plain))
        a_run.train()
        norms[weight] = loss_lines(a_run.folder)[-1]["grad_norm"]
    assert norms[4.0] == pytest.approx(4 * norms[1.0], rel=1e-5)


def test_max_grad_norm_0_never_clips(tmp_path: Path) -> None:
    never, huge, small = (run(tmp_path / str(norm), max_grad_norm=norm, max_steps=3) for norm in (0, 1e9, 0.01))
    for a_run in (never, huge, small):
        a_run.train()
    assert same(never.weights(), huge.weights())
    assert not same(never.weights(), small.weights())
    # The norm in the log is the one before clipping.
    assert loss_lines(small.folder)[0]["grad_norm"] == loss_lines(never.folder)[0]["grad_norm"] > 0.01


def test_dropout_is_on_everywhere_from_the_first_step_and_off_nowhere_after_an_evaluation(tmp_path: Path) -> None:
    a_run = run(tmp_path, dropout=0.3, max_steps=4, eval_every=2)
    modes: list[bool] = []
    drops = [module for module in a_run.model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in drops:
        module.register_forward_hook(lambda module, *_: modes.append(module.training))
    a_run.train()
    assert len(modes) >= 4 * len(drops) > 0
    assert all(modes)


def test_dropout_differs_between_steps_processes_and_seeds() -> None:
    places = list(itertools.product(range(8), range(200), range(8)))
    seeds = {_step_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.manual_seed(max(seeds))
    draws = set()
    for place in places[:400]:
        torch.manual_seed(_step_seed(*place))
        draws.add(float(torch.rand(())))
    assert len(draws) > 395


@pytest.mark.parametrize("cores", [1, 2], indirect=True)
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.usefixtures("cores")
def test_two_runs_are_bit_identical_and_another_seed_is_another_run(tmp_path: Path, precision: str) -> None:
    options = {"dropout": 0.2, "mixed_precision": precision, "num_epochs": 1}
    one, two = run(tmp_path / "one", **options), run(tmp_path / "two", **options, num_workers=2)
    one.train()
    torch.manual_seed(12345)  # whatever the program did in between
    two.train()
    assert same(one.weights(), two.weights())
    assert (one.folder / "metrics.jsonl").read_bytes() == (two.folder / "metrics.jsonl").read_bytes()
    assert {tensor.dtype for tensor in one.weights().values() if tensor.is_floating_point()} == {torch.float32}
    other = run(tmp_path / "other", **options)
    other.train(seed=1)  # the same rows and first weights: only dropout differs
    assert not same(one.weights(), other.weights())


def test_bf16_is_really_used(tmp_path: Path) -> None:
    losses = []
    for precision in ("no", "bf16"):
        a_run = run(tmp_path / precision, mixed_precision=precision, max_steps=1)
        a_run.train()
        losses.append(loss_lines(a_run.folder)[0]["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_that_is_evaluated_and_saved_is_the_exponential_one_of_all_steps(
    tmp_path: Path, decay: float
) -> None:
    plain = run(tmp_path / "plain", eval_every=1)
    plain.train()
    a_run = run(tmp_path / "averaged", scores=[0.1, 0.2, 0.9, 0.3], eval_every=1, ema_decay=decay, keep_last=99)
    a_run.train()
    raw, evaluated = plain.seen[1:], a_run.evaluated
    assert len(raw) == len(evaluated) == 12
    expected = raw[0]
    for step, weights in enumerate(raw):
        expected = {name: expected[name] * decay + weights[name] * (1 - decay) for name in weights} if step else weights
        for name, tensor in expected.items():
            torch.testing.assert_close(evaluated[step][name], tensor, atol=1e-6, rtol=1e-5)
    assert same(a_run.weights(), evaluated[2])  # of the best evaluation
    newest = load_file(a_run.folder / "checkpoints" / "step-12" / "model.safetensors")
    assert all(torch.equal(tensor, newest[name]) for name, tensor in raw[-1].items())  # averaging changes no step


def test_the_average_of_a_run_without_scores_is_what_it_ends_with(tmp_path: Path) -> None:
    a_run = run(tmp_path, ema_decay=0.9)
    a_run.train()
    assert same(a_run.weights(), a_run.evaluated[-1])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_gradient_checkpointing_learns_the_same(tmp_path: Path, layout: str) -> None:
    ends = []
    for checkpointing in (False, True):
        a_run = run(
            tmp_path / str(checkpointing), layout=layout, gradient_checkpointing=checkpointing, max_steps=4,
            learning_rate=1e-4,
        )  # fmt: skip
        ran: list[int] = []
        a_run.model.encoder.encoder.layer[0].attention.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        a_run.train()
        ends.append((len(ran), a_run.data[0], loss_lines(a_run.folder)))
    micro_batches = len(ends[0][1].micro_batches)
    assert micro_batches >= 1
    assert ends[1][0] > ends[0][0]  # layers ran again
    for plain, checkpointed in zip(ends[0][2], ends[1][2], strict=True):
        assert checkpointed["losses"] == pytest.approx(plain["losses"], rel=1e-4)
