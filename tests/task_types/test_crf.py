"""The chain of labels against all sequences there are; its place in steps, scores, answers and saved models."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hub_runs import ABSENT
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import assert_close, finish, start, write_yaml
from transformers import AutoModelForTokenClassification

from nlp_mtl import ModelError, Recipe, RecipeError, evaluate, load, train
from nlp_mtl.build import new_model, steps
from nlp_mtl.build_data import prepare
from nlp_mtl.hub.card import model_card
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.export import export_task
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.models.taken_heads import take_head
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.crf import Chains, decide, links_of, summed_loss
from nlp_mtl.tasks import MISSING, Task, transitions_key
from nlp_mtl.training.balancing import guess_loss
from nlp_mtl.training.balancing import summed_loss as task_loss

LABELS = 3
TAGS = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1", decoder="crf")
LETTERS = replace(TAGS, labels=("a", "b", "c"))
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")


def score(sequence: Any, logits: Any, transitions: Any, links: Any, end: float) -> Any:
    """By the definition, a term at a time."""
    total = sum(logits[word, label] for word, label in enumerate(sequence))
    total = total + links[0] * transitions[LABELS, sequence[0]] + end * transitions[LABELS + 1, sequence[-1]]
    for word in range(1, len(sequence)):
        total = total + links[word] * transitions[sequence[word - 1], sequence[word]]
    return total


def all_sequences(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(LABELS), repeat=length))


@st.composite
def rows(draw: Any) -> list[tuple[list[int], int, int]]:
    """For some rows: labels of a stretch, some missing, where it begins in its text, and the text's words."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        ids = draw(
            st.lists(st.sampled_from([0, 1, 2, 2, 1, MISSING]), min_size=1, max_size=5).filter(
                lambda ids: {*ids} != {MISSING}
            )
        )
        first = draw(st.integers(0, 1))
        found.append((ids, first, first + len(ids) + draw(st.integers(0, 1))))
    return found


def laid_out(chosen: list[tuple[list[int], int, int]]) -> tuple[torch.Tensor, Chains]:
    """Targets and chains of rows that are padded to one length, as batches has them."""
    width = max(len(ids) for ids, _, _ in chosen)
    targets = torch.tensor([[*ids, *[MISSING] * (width - len(ids))] for ids, _, _ in chosen])
    places = [
        [row * width + word for word, one in enumerate(ids) if one != MISSING] for row, (ids, _, _) in enumerate(chosen)
    ]
    longest = max(map(len, places))
    links, ends = zip(*(links_of(np.array(ids), first, words) for ids, first, words in chosen), strict=True)
    return targets, Chains(
        torch.tensor([[*one, *[-1] * (longest - len(one))] for one in places]),
        torch.tensor([[*one, *[0.0] * (longest - len(one))] for one in links]),
        torch.tensor(ends),
    )


@settings(deadline=None, max_examples=60)
@given(rows(), st.integers(0, 10_000))
def test_the_loss_is_that_of_all_sequences_counted_one_by_one(
    chosen: list[tuple[list[int], int, int]], seed: int
) -> None:
    targets, chains = laid_out(chosen)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*targets.shape, LABELS, generator=generator) * 3
    transitions = torch.randn(LABELS + 2, LABELS, generator=generator) * 3
    expected = torch.zeros(())
    for row, (ids, first, num_words) in enumerate(chosen):
        kept = [word for word, one in enumerate(ids) if one != MISSING]
        links = [float(first + word == 0 if n == 0 else kept[n - 1] == word - 1) for n, word in enumerate(kept)]
        end = float(first + kept[-1] == num_words - 1)
        given_ = [ids[word] for word in kept]
        every = [score(one, logits[row][kept], transitions, links, end) for one in all_sequences(len(kept))]
        expected += torch.logsumexp(torch.stack(every), 0) - score(given_, logits[row][kept], transitions, links, end)
    torch.testing.assert_close(summed_loss(logits, transitions, targets, chains), expected, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(0, 10_000))
def test_the_answer_is_the_best_of_all_sequences_and_its_marginals_are_theirs(length: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    logits, transitions = (draw.normal(0, 2, (size, LABELS)).astype(np.float32) for size in (length, LABELS + 2))
    links = [1.0] * length
    sequences = all_sequences(length)
    scores = np.array([score(one, logits, transitions, links, 1.0) for one in sequences], dtype=np.float64)
    path = decide(LETTERS, [logits], transitions)[0]
    assert tuple(path.chosen) == sequences[int(scores.argmax())]
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    marginals = [
        [sum(shares[n] for n, one in enumerate(sequences) if one[w] == label) for label in range(LABELS)]
        for w in range(length)
    ]
    np.testing.assert_allclose(path.scores, marginals, atol=1e-5)


def test_a_process_without_rows_decides_nothing() -> None:
    assert decide(LETTERS, [], None) == []


def test_gradients_are_those_of_finite_differences() -> None:
    chosen = [([1, MISSING, 2, 0], 0, 4), ([2], 1, 2), ([0, 1, 1], 0, 4)]
    targets, chains = laid_out(chosen)
    generator = torch.Generator().manual_seed(0)
    given_ = [
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((3, 4, LABELS), (LABELS + 2, LABELS))
    ]
    doubles = Chains(chains.steps, chains.links.double(), chains.ends.double())

    class Doubles(torch.Tensor):  # the loss is in float32, too coarse for finite differences
        def float(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    def loss(logits: torch.Tensor, transitions: torch.Tensor) -> torch.Tensor:
        return summed_loss(logits.as_subclass(Doubles), transitions.as_subclass(Doubles), targets, doubles).as_subclass(
            torch.Tensor
        )

    assert torch.autograd.gradcheck(loss, given_)


def test_without_transitions_the_loss_is_cross_entropy_and_guessing_loses_as_much() -> None:
    targets, chains = laid_out([([1, 2, 0], 0, 3), ([0], 0, 1)])
    logits = torch.randn(2, 3, LABELS)
    zeros = torch.zeros(LABELS + 2, LABELS)
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=MISSING, reduction="sum"
    )
    torch.testing.assert_close(summed_loss(logits, zeros, targets, chains), expected)
    assert float(summed_loss(torch.zeros_like(logits), zeros, targets, chains)) == pytest.approx(4 * guess_loss(TAGS))


def test_the_loss_of_no_row_is_0_and_gives_transitions_a_gradient() -> None:
    logits, transitions = (
        torch.zeros(0, 5, LABELS, requires_grad=True),
        torch.randn(LABELS + 2, LABELS, requires_grad=True),
    )
    chains = Chains(torch.full((0, 1), -1), torch.zeros(0, 1), torch.zeros(0))
    loss = summed_loss(logits, transitions, torch.zeros(0, 5, dtype=torch.long), chains)
    loss.backward()
    assert loss.item() == 0
    assert transitions.grad is not None
    assert not transitions.grad.any()


def test_half_precision_logits_are_summed_in_float32() -> None:
    targets, chains = laid_out([([1, 2, 0], 0, 3)])
    logits = torch.randn(1, 3, LABELS).bfloat16()
    assert summed_loss(logits, torch.zeros(LABELS + 2, LABELS), targets, chains).dtype == torch.float32


# Steps and runs


def values(folder: Path, **training: Any) -> dict[str, Any]:
    given = tiny.recipe(folder, **{"learning_rate": 2e-3, "head_learning_rate": 1e-2, **training})
    given["tasks"]["ner"]["decoder"] = "crf"
    return given


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crf")
    train(Recipe.from_dict(values(folder)))
    return folder / "run"


def test_losses_do_not_depend_on_the_layout_also_of_rows_with_gaps_and_several_windows(tmp_path: Path) -> None:
    given = {**values(tmp_path, batch_size=48), "max_length": 16, "window_overlap": 4}
    file = tmp_path / "corpus" / "words" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["ner"] = [None, *rows[0]["ner"][1:]]
    rows[1] = {key: [one for row in rows[1:5] for one in row[key]] for key in rows[1]}
    rows[2]["ner"][1] = None
    tiny.write_jsonl(file, rows)
    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe)
    torch.manual_seed(0)
    model = new_model(recipe, prepared).eval()
    model.packs("packed")
    with torch.no_grad():
        model.head("ner").get_parameter("transitions").normal_()
    found = []
    for packed, max_tokens in ((False, 512), (False, 16), (True, 64)):
        data = steps(recipe, prepared, packed=packed)
        data.max_tokens, data.num_threads = max_tokens, 1
        sums = 0.0
        with torch.no_grad():
            for batch in data[0].micro_batches:
                logits = model(**batch.inputs, rows={name: rows.rows for name, rows in batch.tasks.items()})
                sums += float(task_loss(logits["ner"], batch.tasks["ner"], logits[transitions_key("ner")]))
        found.append(sums)
    assert found == [pytest.approx(found[0], rel=1e-4)] * 3


def test_a_run_learns_transitions_and_answers_are_the_best_sequence(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert evaluate(run) == results["scores"]["test"]
    nlp = load(run)
    transitions = nlp.model.head("ner").get_parameter("transitions")
    assert transitions.abs().max() > 0
    words = ["anna", "loves", "new", "paris", "."]
    with torch.no_grad():
        ids = torch.tensor([[tiny.CLS, *(tiny.VOCABULARY[word] for word in words), tiny.SEP]])
        logits = nlp.model(ids)["ner"][0, 1:-1].numpy()
    task = next(task for task in nlp.tasks if task.name == "ner")
    (path,) = decide(task, [logits], transitions.detach().numpy())
    joined = [
        (sum(len(word) + 1 for word in words[:n]), sum(len(word) + 1 for word in words[: n + 1]) - 1) for n in range(5)
    ]
    expected = kind_of(task).answer(task, path, " ".join(words), joined, False)
    answer = nlp([words], tasks=["ner"])[0]["ner"]
    assert [one["label"] for one in answer] == [one["label"] for one in expected]
    assert [one["score"] for one in answer] == pytest.approx([one["score"] for one in expected], abs=1e-4)
    assert nlp("", tasks=["ner"]) == {"ner": []}


def test_a_recipe_of_softmax_does_not_change_how_a_model_decides(run: Path) -> None:
    given = Recipe.from_yaml(run / "recipe.yaml").to_dict()
    given["tasks"]["ner"]["decoder"] = "softmax"
    assert evaluate(run, Recipe.from_dict(given)) == evaluate(run)


@pytest.mark.long
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    # One row a step, and single words: in some steps a process has no chain, or none with a transition.
    plain = values(tmp_path, batch_size=2, max_steps=6, eval_every=6)
    train(Recipe.from_dict({**plain, "output_dir": str(tmp_path / "one")}))
    file = write_yaml(tmp_path, {**plain, "output_dir": str(tmp_path / "two")})
    code, _, errors = finish(start("train", file, processes=2))
    assert code == 0, errors
    assert_close(tmp_path / "one", tmp_path / "two")


# Saved models, exports, checkpoints


PROGRAM = f"""{ABSENT}
import json, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    print(json.dumps({{name: one.tolist() for name, one in model(torch.arange(5, 15)[None]).items()}}))
"""


@pytest.mark.slow
def test_the_code_in_the_repository_gives_logits_and_transitions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = from_encoder(tiny.encoder(), [TAGS, MOOD], max_length=32).eval()
    with torch.no_grad():
        model.head("ner").get_parameter("transitions").normal_()
        expected = {name: one.tolist() for name, one in model(torch.arange(5, 15)[None]).items()}
    assert {*expected} == {"ner", "mood", "ner/transitions"}
    model.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "model"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert "newly initialized" not in done.stderr


def test_an_export_is_refused_with_the_reason_and_cards_do_not_advise_it(tmp_path: Path) -> None:
    model = from_encoder(tiny.encoder(), [TAGS, MOOD], max_length=32)
    with pytest.raises(ModelError, match="`ner` has the decoder crf, and a stock model has no place"):
        export_task(model, tiny.tokenizer(), "ner", tmp_path / "ner")
    assert not (tmp_path / "ner").exists()
    export_task(model, tiny.tokenizer(), "mood", tmp_path / "mood")
    config = model.config.to_dict()
    assert "--task mood" in model_card(config, "me/it", about=About()).text
    config["tasks"] = config["tasks"][:1]
    assert "nlp-mtl export" not in model_card(config, "me/it", about=About()).text


def test_a_head_starts_from_a_stock_checkpoint_and_its_transitions_from_nothing(tmp_path: Path) -> None:
    config = tiny.encoder_config()
    config.id2label, config.label2id = dict(enumerate(TAGS.labels)), {label: n for n, label in enumerate(TAGS.labels)}
    stock = AutoModelForTokenClassification.from_config(config)
    stock.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = from_encoder(tiny.encoder(), [TAGS], max_length=32)
    take_head(model, TAGS, str(tmp_path))
    state = model.head("ner").state_dict()
    assert torch.equal(state["classifier.weight"], stock.classifier.weight)
    assert not state["transitions"].any()


def test_a_text_task_has_no_chain(tmp_path: Path) -> None:
    given = values(tmp_path)
    given["tasks"]["sentiment"]["decoder"] = "crf"
    with pytest.raises(RecipeError, match=r"tasks\.sentiment\.decoder: a text-classification task has no words"):
        Recipe.from_dict(given)
