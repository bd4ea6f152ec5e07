"""Meta-learning: outer updates held against closed forms and against plain loops, exact resume, what a run leaves."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_runs import alone_and_in_two, assert_resumes_exactly, lines, loss_lines, tiny_recipe, values, weights
from torch import Tensor, nn
from trained import copied, same

from nlp_mtl import ModelError, Recipe, RecipeError, load, train
from nlp_mtl.build import layout, new_model
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.build_meta import episode_scorer, episode_steps, inner_loop, meta_gradients
from nlp_mtl.data.episode_steps import EpisodeSteps
from nlp_mtl.data.episodes import EpisodeShape
from nlp_mtl.data.steps import Episode, StepBatches
from nlp_mtl.errors import DataError
from nlp_mtl.models.heads import build_head
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.run_check import check
from nlp_mtl.tasks import MISSING
from nlp_mtl.training import meta
from nlp_mtl.training.few_shot import few_shot_scores
from nlp_mtl.training.meta import InnerLoop, MetaGradients, encoder_parameters, learned
from nlp_mtl.training.passes import summed_losses

FEW = {"episodes": 3, "shots": 3, "query": 3, "inner_steps": 2, "evaluated_episodes": 2}
SGD = {"inner_optimizer": "sgd"}


def meta_values(folder: Path, given_meta: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """A tiny recipe's values whose run is a meta run."""
    given = values(folder, **{"max_steps": 4, "batch_size": 8, **training})
    del given["training"]["num_epochs"]
    return {**given, "meta": {**FEW, **(given_meta or {})}}


class Made:
    """What a recipe makes."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.recipe = Recipe.from_dict(given)
        self.prepared: Prepared = prepare(self.recipe)
        torch.manual_seed(0)
        self.model: MultiTaskModel = new_model(self.recipe, self.prepared)
        self.data = episode_steps(self.recipe, self.prepared)
        self.data.packed = self.model.packs(layout(self.recipe))
        self.accelerator = Accelerator()
        self.model.train()

    def gradients(self, batches: StepBatches) -> dict[str, Tensor]:
        made = meta_gradients(self.recipe, self.prepared, self.model)
        losses = made.forward_backward(self.model, batches, torch.ones(3), self.accelerator, "no")
        made.combine(0, batches.counts, losses, self.accelerator)
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


# An episode whose loss is a quadratic of the encoder's weights has a known end.

RATE, STEPS = 0.1, 3


@pytest.mark.parametrize(
    ("algorithm", "factor"),
    [("reptile", 1 - (1 - RATE) ** STEPS), ("fomaml", (1 - RATE) ** STEPS)],
)
def test_outer_gradients_of_quadratics_are_those_of_the_closed_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: Any, factor: float
) -> None:
    made = Made(meta_values(tmp_path))
    targets = iter(range(1, 100))
    of_batch: dict[int, float] = {}
    kept: list[Any] = []

    def quadratic(model: nn.Module, micro_batch: Any, *_: Any) -> dict[str, Tensor]:
        assert isinstance(model, MultiTaskModel)
        target = of_batch[id(micro_batch)]
        return {"task": sum(0.5 * (p - target).square().sum() for p in encoder_parameters(model))}  # type: ignore[dict-item]

    monkeypatch.setattr(meta, "summed_losses", quadratic)
    episodes = []
    for task in made.prepared.tasks[:2]:
        batch, target = [object()], float(next(targets))
        of_batch[id(batch[0])] = target
        episodes.append(Episode(task, [0, int(target)], [(batch, 1)] * STEPS, (batch, 1)))  # type: ignore[list-item]
        kept.append(batch)  # so that no other gets its id
    batches = StepBatches(0, [], {"ner": 1, "pos": 1, "sentiment": 0}, 0, {}, episodes)
    inner = InnerLoop("sgd", RATE, RATE, 0.0, 1.0, 0.0, "no")
    before = copied(made.model)
    gradients = MetaGradients(made.model, made.prepared.tasks, algorithm, 2, inner)
    gradients.forward_backward(made.model, batches, torch.ones(3), made.accelerator, "no")
    gradients.combine(0, batches.counts, torch.zeros(3), made.accelerator)
    for parameter in encoder_parameters(made.model):
        mean_target = (1.0 + 2.0) / 2
        torch.testing.assert_close(parameter.grad, factor * (parameter - mean_target), atol=1e-5, rtol=1e-4)
    assert same(before, copied(made.model))


# The same against loops written with nothing but torch, on the real losses of real episodes.


def by_hand(made: Made, episode: Episode) -> tuple[MultiTaskModel, Tensor]:
    """A copy of the model that has learned an episode by plain steps, and the loss of its query (or 0)."""
    model = copy.deepcopy(made.model)
    seed = episode.seed[0] + (episode.seed[1] << 32)
    torch.manual_seed(seed)
    head = build_head(episode.task.type, model.config.encoder_config, episode.task.labels)
    head.init_weights()
    model.heads[f"{episode.task.name}_head"] = head.train()
    rates = {
        name: made.recipe.training.head_learning_rate
        if name.startswith(("heads.", "encoder.pooler."))
        else made.recipe.training.learning_rate
        for name, _ in model.named_parameters()
    }

    def loss_of(micro_batches: Any, count: int) -> Tensor:
        sums = [summed_losses(model, one, made.accelerator, "no")[episode.task.name] for one in micro_batches]
        return torch.stack(sums).sum() / count

    named = dict(model.named_parameters())
    for micro_batches, count in episode.inner:
        found = torch.autograd.grad(loss_of(micro_batches, count), [*named.values()], allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(named.items(), found, strict=True):
                if gradient is not None:
                    parameter -= rates[name] * gradient
    micro_batches, count = episode.query
    return model, loss_of(micro_batches, count) if micro_batches else torch.zeros(())


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml"])
def test_outer_gradients_of_episodes_are_those_of_a_plain_loop(tmp_path: Path, algorithm: str) -> None:
    plain = {"weight_decay": 0, "max_grad_norm": 0, "learning_rate": 0.05, "head_learning_rate": 0.1}
    made = Made(meta_values(tmp_path, {"algorithm": algorithm, **SGD}, **plain))
    batches = made.data[1]
    before = copied(made.model)
    expected: dict[str, Tensor] = {}
    for episode in batches.episodes:
        model, loss = by_hand(made, episode)
        named = {name: p for name, p in model.named_parameters() if name.startswith("encoder.")}
        if algorithm == "fomaml":
            found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
        else:
            found = tuple(before[name] - p.detach() for name, p in named.items())
        for (name, p), one in zip(named.items(), found, strict=True):
            expected[name] = expected.get(name, torch.zeros_like(p)) + (0 if one is None else one / 3)
    gradients = made.gradients(batches)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert max(gradient.abs().max() for gradient in gradients.values()) > 1e-4


def test_a_step_of_reptile_goes_a_part_of_the_way_to_the_mean_of_what_episodes_made(tmp_path: Path) -> None:
    given = meta_values(tmp_path, {"outer_learning_rate": 0.25}, max_steps=1, schedule="constant", warmup_fraction=0)
    made = Made(given)
    train(made.recipe)
    start = copied(made.model)
    ends: list[dict[str, Tensor]] = []
    for episode in made.data[0].episodes:
        with learned(made.model, episode, inner_loop(made.recipe), made.accelerator):
            ends.append(copied(made.model))
    after = weights(tmp_path / "run")
    assert {name.split(".")[0] for name in after} == {"encoder"}
    for name, tensor in after.items():
        mean = torch.stack([end[name] for end in ends]).mean(0)
        torch.testing.assert_close(tensor, start[name] + 0.25 * (mean - start[name]), atol=1e-6, rtol=1e-5)
    assert not same(after, start)


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml"])
def test_a_meta_run_resumes_exactly(tmp_path: Path, algorithm: str) -> None:
    given = meta_values(
        tmp_path, {"algorithm": algorithm, "episodes": 2}, dropout=0.2, save_every=1, keep_last=9, eval_every=3,
        log_every=3, num_workers=1 if algorithm == "reptile" else 0,
    )  # fmt: skip
    assert_resumes_exactly(Recipe.from_dict(given), 2, tmp_path / "stopped")


@pytest.mark.parametrize("training", [{"mixed_precision": "bf16"}, {"layout": "padded"}, {"frozen_layers": 1}])
def test_other_keys_of_training_go_with_it(tmp_path: Path, training: dict[str, Any]) -> None:
    given = meta_values(tmp_path, **training)
    before = copied(Made(given).model)
    train(Recipe.from_dict(given))
    after = weights(tmp_path / "run")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(("layer.0." in name or "embeddings" in name) <= ("frozen_layers" not in training) for name in changed)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    given = meta_values(tmp_path, {"episodes": 4}, eval_every=2)
    for one, two in alone_and_in_two(tmp_path, given):
        assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    scores = [[line["scores"] for line in lines(tmp_path / name) if "scores" in line] for name in ("run", "two")]
    assert scores[0] == scores[1]


def test_learning_and_scoring_episodes_leave_the_model_as_it_was(tmp_path: Path) -> None:
    made = Made(meta_values(tmp_path, dropout=0.2))
    before, heads = copied(made.model), dict(made.model.heads.items())
    made.gradients(made.data[0])
    score = episode_scorer(made.recipe, made.prepared, made.accelerator, made.data.packed)
    found = score("validation", made.model)
    assert found == score("validation", made.model)
    assert same(before, copied(made.model))
    assert dict(made.model.heads.items()) == heads
    assert made.model.training
    # Two episodes of two labels with three rows each.
    assert found["sentiment"]["items"] == 2 * 2 * 3
    assert {"span_f1", "accuracy"} <= {*found["ner"]}


@pytest.mark.parametrize("name", ["pos", "sentiment"])
def test_scores_are_those_of_the_rows_that_episodes_did_not_learn_from(tmp_path: Path, name: str) -> None:
    made = Made(meta_values(tmp_path, learning_rate=0.01, head_learning_rate=0.05))
    (task,) = (one for one in made.prepared.tasks if one.name == name)
    split = made.prepared.split("train")["texts" if name == "sentiment" else "words"]
    data = EpisodeSteps(
        [split], [task], made.prepared.framing, shape=EpisodeShape(3, 4, 5), rates=[1.0], num_steps=4, episodes=1,
        inner_steps=5, batch_size=8, seed=0, max_tokens=64,
    )  # fmt: skip
    data.packed = made.data.packed
    right: list[Tensor] = []
    for number in range(4):
        (episode,) = data[number].episodes
        with learned(made.model, episode, inner_loop(made.recipe), made.accelerator), torch.no_grad():
            made.model.eval()
            for inputs, tasks in episode.query[0]:
                logits = made.model(**inputs, rows={name: tasks[name].rows})[name]
                given = tasks[name].labels
                right.append((logits.argmax(-1) == given)[given != MISSING])
        made.model.train()
    scores = few_shot_scores(made.model, task, [data], inner_loop(made.recipe), made.accelerator)
    assert scores["items"] == sum(map(len, right)) > 30
    assert scores["accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
    assert 0 < scores["accuracy"] < 1


def test_a_meta_run_leaves_an_encoder_that_a_new_task_starts_from(tmp_path: Path) -> None:
    given = meta_values(tmp_path / "first")
    del given["tasks"]["sentiment"], given["datasets"]["texts"]
    results = train(Recipe.from_dict(given))
    first = tmp_path / "first" / "run"
    assert results["episodes"]["shots"] == 3
    assert results["scores"]["validation"].keys() == {"ner", "pos"}
    with pytest.raises(ModelError, match=r"is an encoder without heads, .* give it as `encoder:` in a recipe"):
        load(first)
    card = (first / "model" / "README.md").read_text()
    assert "made by meta-learning with nlp_mtl (reptile)" in card
    assert "| ner | token-classification |" in card
    assert str(tmp_path) not in card
    recipe = tiny_recipe(tmp_path / "second", max_steps=1).model_copy(update={"encoder": str(first)})
    model = new_model(recipe, prepare(recipe))
    learned_before = weights(first)
    assert all(torch.equal(tensor, learned_before[name]) for name, tensor in copied(model).items()
               if name.startswith("encoder.") and "pooler" not in name)  # fmt: skip
    train(recipe)
    origin = json.loads((tmp_path / "second" / "run" / "model" / "config.json").read_text())["encoder_origin"]
    assert origin[-1]["algorithm"] == "reptile"
    assert [*origin[-1]["tasks"]] == ["ner", "pos"]
    told = "learned, before these tasks: `ner`, `pos` (by reptile, in `run`)."
    assert told in (tmp_path / "second" / "run" / "model" / "README.md").read_text()


def test_a_dataset_without_a_share_is_there_to_be_scored_on(tmp_path: Path) -> None:
    given = {**meta_values(tmp_path), "sampling": {"strategy": "fixed", "shares": {"words": 1, "texts": 0}}}
    results = train(Recipe.from_dict(given))
    assert all("sentiment" not in line["losses"] for line in loss_lines(tmp_path / "run"))
    assert "sentiment" in results["scores"]["test"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["reptile", "fomaml"])
def test_episodes_are_learned_better_and_better(tmp_path: Path, algorithm: str) -> None:
    rate = {"reptile": 1.0, "fomaml": 5e-3}[algorithm]
    given = meta_values(
        tmp_path, {"algorithm": algorithm, "outer_learning_rate": rate}, learning_rate=5e-3, head_learning_rate=5e-2,
        max_steps=40, warmup_fraction=0,
    )  # fmt: skip
    del given["tasks"]["ner"], given["tasks"]["sentiment"], given["datasets"]["texts"]
    train(Recipe.from_dict(given))
    losses = [line["losses"]["pos"] for line in loss_lines(tmp_path / "run")]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_check_tells_a_meta_run_and_what_it_lacks(tmp_path: Path) -> None:
    given = meta_values(tmp_path)
    assert check(Recipe.from_dict(given))["episodes"] == {"steps": 4, "algorithm": "reptile", "ways": 4, **FEW}
    given["meta"]["shots"] = 40
    with pytest.raises(DataError, match=r"\d of the kinds of spans of task `ner` have 40 rows or more"):
        check(Recipe.from_dict(given))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training": {"max_steps": None}}, r"training\.max_steps: needed with `meta`"),
        ({"training": {"num_epochs": 2}}, r"training\.num_epochs: a meta run \(`meta`\) does not read it"),
        ({"training": {"l2_penalty": 0.1}}, r"training\.l2_penalty: a meta run"),
        ({"training": {"compile": True}}, r"training\.compile: a meta run"),
        ({"training": {"frozen_layers": "encoder"}}, r"the encoder is all that a meta run learns"),
        ({"balancing": {"strategy": "famo"}}, r"balancing\.strategy: it is for tasks that learn together"),
        ({"gradients": {"strategy": "pcgrad"}}, r"gradients\.strategy: it is for tasks that learn together"),
        ({"sharing": {"strategy": "gate"}}, r"sharing\.strategy: it is for tasks that learn together"),
        ({"sampling": {"strategy": "unimax"}}, r"`meta` deals episodes by proportional, .* not by unimax"),
        ({"hub": {"repo_id": "me/x"}}, r"hub: it is for models that answer"),
        ({"distillation": {"teachers": {"ner": "./x"}}}, r"distillation: it is for models that answer"),
        ({"datasets": {"texts": {"oversample": "sentiment"}}}, r"datasets\.texts\.oversample: `meta` draws rows"),
        (
            {"datasets": {"words": {"augmentation": {"entity_swap": 0.1}}}},
            r"entity_swap: it would bring entities of rows",
        ),
        (
            {"tasks": {"pos": {"class_weights": "balanced"}}},
            r"pos\.class_weights: they are counted over all rows",
        ),
        ({"tasks": {"ner": {"decoder": "crf"}}}, r"tasks\.ner\.decoder: the head of a small task is new each time"),
        ({"tasks": {"sentiment": {"type": "regression"}}}, r"tasks\.sentiment\.type: small tasks of a regression"),
        ({"meta": {"ways": 1}}, r"meta\.ways"),
        ({"meta": {"algorithm": "maml"}}, r"meta\.algorithm: .*Did you mean `fomaml`"),
    ],
)
def test_what_a_meta_run_does_not_read_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    given = meta_values(tmp_path)
    for section, values_ in changes.items():
        if section in ("tasks", "datasets"):
            for name, one in values_.items():
                given[section][name] = {**given[section][name], **one}
        else:
            given[section] = {**given.get(section, {}), **values_}
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(given)


def test_a_resolved_recipe_of_a_meta_run_is_one(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(meta_values(tmp_path))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
