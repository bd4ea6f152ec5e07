"""Pairs of texts: read as the tokenizer puts them together, cut as it cuts them, packed as padded."""

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_models import tiny_model
from tokenizers import processors
from transformers import pipeline

from nlp_mtl import DataError, ModelError, Recipe, RecipeError, load, train
from nlp_mtl.build import new_model, steps
from nlp_mtl.build_data import prepare
from nlp_mtl.cli import main
from nlp_mtl.data.batches import collate
from nlp_mtl.data.items import Item, frame, paired, windowed
from nlp_mtl.data.tokenization import encode_pairs, pair_framing, pair_lengths
from nlp_mtl.hub.export import export, stock
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.run import check, evaluate
from nlp_mtl.tasks import Task
from nlp_mtl.training.balancing import summed_loss

SAME = Task("same", "text-classification", ("no", "yes"), "accuracy", pairs=True)
CLOSE = Task("close", "regression", ("value",), "pearson", pairs=True)
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")
PAIRS = [("anna loves rome", "the film"), ("tea", "bob hates the new tram line in oslo ."), ("", "x")]


def pair_row(random_: random.Random) -> dict[str, Any]:
    one, other = tiny.text_row(random_), tiny.text_row(random_)
    both = len({*one["text"].split()} & {*other["text"].split()})
    return {
        "first": one["text"],
        "second": other["text"],
        "same": ["no", "yes"][one["label"] == other["label"]],
        "close": both / 2,
    }


def pair_values(folder: Path, **training: Any) -> dict[str, Any]:
    """A recipe's values: two tasks on pairs, and the usual ones on single texts and words."""
    given = tiny.recipe(folder, **training)
    random_ = random.Random(2)
    files = {}
    for split, count in {"train": 40, "validation": 12, "test": 12}.items():
        rows = [pair_row(random_) for _ in range(count)]
        tiny.write_jsonl(folder / "corpus" / "pairs" / f"{split}.jsonl", rows)
        files[split] = f"pairs/{split}.jsonl"
    given["datasets"]["pairs"] = {"data_files": files, "text": "first", "text_pair": "second"}
    given["tasks"]["same"] = {"type": "text-classification", "dataset": "pairs", "labels": "same"}
    given["tasks"]["close"] = {"type": "regression", "dataset": "pairs", "labels": "close"}
    del given["tasks"]["pos"]
    return given


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    train(Recipe.from_dict(pair_values(folder)))
    return folder / "run"


def items(pairs: list[tuple[str, str]], max_length: int = 32) -> list[Item]:
    made, around = tiny.tokenizer(), frame(tiny.tokenizer(), max_length, 4)
    pieces, _, second = encode_pairs(made, [one.split() for one, _ in pairs], [other.split() for _, other in pairs])
    return [paired(n, pieces[n], second[n][0], {}, around) for n in range(len(pairs))]


def single(text: str) -> Item:
    made, around = tiny.tokenizer(), frame(tiny.tokenizer(), 32, 4)
    pieces, starts, _ = encode_pairs(made, [text.split()], [[]])
    return windowed(0, pieces[0], starts[0], {}, around)[0]


# Tokens


@pytest.mark.parametrize("max_length", [32, 12, 9, 8])
def test_a_pair_is_what_the_tokenizer_makes_of_it_also_where_it_is_cut(max_length: int) -> None:
    around = frame(tiny.tokenizer(), max_length, 4)
    for pair, item in zip(PAIRS, items(PAIRS, max_length), strict=True):
        inputs = collate([item], (), around).inputs
        expected = tiny.tokenizer()(*pair, truncation="longest_first", max_length=max_length)
        assert inputs["input_ids"][0].tolist() == expected["input_ids"]
        assert inputs["token_type_ids"][0].tolist() == expected["token_type_ids"]
        assert item.share == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(4, 20))
def test_what_of_a_pair_fits_is_what_tokenizers_keep(first: int, second: int, max_length: int) -> None:
    found = tiny.tokenizer()(
        " ".join(["tea"] * first), " ".join(["film"] * second), truncation=True, max_length=max_length
    )
    kept = tuple(found["input_ids"].count(tiny.VOCABULARY[word]) for word in ("tea", "film"))
    assert pair_lengths(first, second, max_length - 3) == kept


def test_a_tokenizer_with_two_separators_and_one_segment_is_followed() -> None:
    made = tiny.byte_level_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]",
        special_tokens=[("[CLS]", tiny.CLS), ("[SEP]", tiny.SEP)],
    )  # fmt: skip
    pair = pair_framing(made)
    assert (pair.prefix, pair.middle, pair.suffix) == ([tiny.CLS], [tiny.SEP] * 2, [tiny.SEP])
    assert [*pair.prefix_types, pair.first_type, *pair.middle_types, pair.second_type, *pair.suffix_types] == [0] * 6


# Models


def pair_model(family: str) -> MultiTaskModel:
    return tiny_model(family, [SAME, CLOSE, MOOD], max_length=32)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_of_pairs_are_the_stock_models_padded_and_packed_among_single_texts(family: str) -> None:
    model, around = pair_model(family), frame(tiny.tokenizer(), 32, 4)
    chosen = [*items(PAIRS), single("bob sees oslo")]
    padded = collate(chosen, (), around).inputs
    with torch.no_grad():
        found = model(**padded)["same"]
        for n, (one, other) in enumerate(PAIRS):
            encoded = tiny.tokenizer()(one, other, return_tensors="pt")
            if family in ("roberta", "xlm-roberta", "bert", "electra", "albert"):
                alone = stock(model, "same")(**encoded).logits[0]
            else:  # these have no segments
                alone = stock(model, "same")(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0]
            torch.testing.assert_close(found[n], alone, atol=1e-4, rtol=1e-4)
        if family not in ("deberta-v2", "mpnet"):
            assert model.packs("packed")
            packed = model(**collate(chosen, (), around, packed=True).inputs)
            torch.testing.assert_close(packed["same"], found, atol=1e-4, rtol=1e-4)
    if family == "bert":
        ignored = {**padded, "token_type_ids": torch.zeros_like(padded["input_ids"])}
        assert not torch.allclose(model(**ignored)["same"][:2], found[:2], atol=1e-2)  # the test could tell


def test_losses_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**pair_values(tmp_path), "max_length": 24})
    prepared = prepare(recipe)
    assert {task.name: task.pairs for task in prepared.tasks} == {
        "ner": False, "sentiment": False, "same": True, "close": True,
    }  # fmt: skip
    torch.manual_seed(0)
    model = new_model(recipe, prepared).eval()
    model.packs("packed")
    found = []
    for packed, max_tokens in ((False, 128), (False, 24), (True, 64)):
        data = steps(recipe, prepared, packed=packed)
        data.max_tokens, data.num_threads = max_tokens, 1
        sums = dict.fromkeys((task.name for task in prepared.tasks), 0.0)
        with torch.no_grad():
            for batch in data[0].micro_batches:
                logits = model(**batch.inputs, rows={name: rows.rows for name, rows in batch.tasks.items()})
                for name, rows in batch.tasks.items():
                    sums[name] += float(summed_loss(logits[name], rows))
        found.append(sums)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


# A run


def test_a_model_of_pairs_and_single_texts_is_scored_and_says_which_task_reads_what(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert {*results["scores"]["test"]} == {"ner", "sentiment", "same", "close"}
    assert evaluate(run) == results["scores"]["test"]
    card = (run / "model" / "README.md").read_text()
    assert "Texts longer than 64 tokens are read in overlapping windows. Of pairs of more than 64 tokens the" in card
    config = json.loads((run / "model" / "config.json").read_text())
    assert {task["name"]: task["pairs"] for task in config["tasks"]} == {
        "ner": False, "sentiment": False, "same": True, "close": True,
    }  # fmt: skip


def test_pairs_are_answered_by_the_tasks_that_learned_from_pairs(run: Path, tmp_path: Path) -> None:
    nlp = load(run)
    assert {*nlp("a good film")} == {"ner", "sentiment"}
    answer = nlp("a good film", text_pair="a bad film")
    assert {*answer} == {"same", "close"}
    several = nlp(["a good film", "tea"], text_pair=["a bad film", "oslo"])
    assert several[0]["same"]["score"] == pytest.approx(answer["same"]["score"], abs=1e-5)
    assert nlp([["a", "good", "film"]], text_pair=[["a", "bad", "film"]], tasks=["same"])[0]["same"] == {
        "label": answer["same"]["label"], "score": pytest.approx(answer["same"]["score"], abs=1e-5),
    }  # fmt: skip
    assert nlp("", text_pair=" ") == {"same": {"label": None, "score": None}, "close": {"value": None}}
    assert nlp("", text_pair="tea")["same"]["label"] in ("no", "yes")
    for task in ("same", "close"):
        export(run, task, tmp_path / task)
        found = pipeline("text-classification", str(tmp_path / task))(
            {"text": "a good film", "text_pair": "a bad film"}
        )
        found = found[0] if isinstance(found, list) else found
        expected = answer[task].get("score", answer[task].get("value"))
        assert found["score"] == pytest.approx(expected, abs=1e-5)


def test_the_wrong_kind_of_text_is_refused_with_the_way_out(run: Path, tmp_path: Path) -> None:
    nlp = load(run)
    with pytest.raises(ModelError, match="`same` learned from pairs of texts: give the second text as text_pair"):
        nlp("a film", tasks=["ner", "same"])
    with pytest.raises(ModelError, match="`ner` learned from single texts: leave out text_pair"):
        nlp("a film", text_pair="tea", tasks=["ner"])
    with pytest.raises(ValueError, match="found 2 texts, but 1 in text_pair"):
        nlp(["a", "b"], text_pair=["c"])
    with pytest.raises(TypeError, match="should be a string"):
        nlp("a", text_pair=["c"])
    with pytest.raises(TypeError, match="found str"):
        nlp(["a"], text_pair="c")
    only = from_encoder(tiny.encoder(), [SAME], max_length=32)
    only.save_pretrained(tmp_path / "only")
    tiny.tokenizer().save_pretrained(tmp_path / "only")
    with pytest.raises(ModelError, match="`same` learned from pairs"):
        load(tmp_path / "only")("a film")


def test_cut_pairs_are_told_when_they_are_answered(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(run)(["tea " * 80, "tea"], text_pair=["film", "film"])
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 2 pairs of texts are longer than 64 tokens: the longer text of each was cut"
    ]


def test_the_command_line_answers_pairs(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def predicted(*arguments: str, lines: str = "") -> tuple[int, list[dict[str, Any]], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(run), *arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), [json.loads(line) for line in out.splitlines() if line.startswith("{")], err

    expected = load(run)("a good film", text_pair="a bad film")
    for arguments, lines in (
        (["a good film", "--text-pair", "a bad film"], ""),
        (["--json-lines"], '{"text": "a good film", "text_pair": "a bad film"}\n'),
    ):
        code, (line,), err = predicted(*arguments, lines=lines)
        assert (code, line) == (0, {"text": "a good film", "text_pair": "a bad film", "predictions": expected}), err
    code, (line,), _ = predicted("--json-lines", "--tasks", "ner", lines='{"text": "anna"}\n')
    assert line["predictions"] == load(run)("anna", tasks=["ner"])
    for lines, told in (
        ("tea\n", "line 1 of standard input is not JSON"),
        ('{"text": 1}\n', "line 1 of standard input should be an object with a `text`"),
        ('{"text": "a"}\n{"text": "a", "text_pair": "b"}\n', "some lines of standard input are pairs"),
    ):
        code, _, err = predicted("--json-lines", lines=lines)
        assert code == 2
        assert told in err
    assert predicted("a", "b", "--text-pair", "c")[0] == 2


def test_check_tells_cut_pairs_and_repeats_of_both_texts(tmp_path: Path) -> None:
    given = {**pair_values(tmp_path), "max_length": 16}
    file = tmp_path / "corpus" / "pairs" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["first"] = "tea " * 20
    rows[5] = {**rows[4], "second": "another film"}  # one of its texts alone is no repeat
    rows[7] = dict(rows[6])
    tiny.write_jsonl(file, rows)
    report = check(Recipe.from_dict(given))
    told = next(row for row in report["splits"] if (row["dataset"], row["split"]) == ("pairs", "train"))
    assert told["cut_pairs"] >= 1
    assert (told["windowed_share"], told["cut_words"]) == (0, 0)
    odd = [one for one in report["odd"] if "dataset `pairs`, split train" in one]
    assert any("row 3 " in one and "a pair of more than 16 tokens" in one for one in odd)
    repeats = [one for one in odd if one.startswith("the same text") and "row 7 " in one]
    assert len(repeats) == 1
    assert not any("row 5 " in one and one.startswith("the same text") for one in odd)


# What is refused


@pytest.mark.parametrize(
    ("change", "path", "told"),
    [
        ({"tasks": {"ner": {"dataset": "pairs"}}}, "tasks.ner.dataset", "pairs of texts, whose words have no labels"),
        ({"tasks": {"same": {"dataset": ["pairs", "texts"]}}}, "tasks.same.dataset", "some of its datasets hold pairs"),
        ({"datasets": {"words": {"text_pair": "x"}}}, "datasets.words.text_pair", "give `text`"),
        ({"datasets": {"pairs": {"text_pair": "first"}}}, "datasets.pairs.text_pair", "the same column as `text`"),
    ],
)
def test_a_recipe_that_mixes_up_pairs_is_refused(tmp_path: Path, change: dict[str, Any], path: str, told: str) -> None:
    given = pair_values(tmp_path)
    for section, keys in change.items():
        for key, value in keys.items():
            given[section][key] |= value
    with pytest.raises(RecipeError) as refused:
        Recipe.from_dict(given)
    assert any(one.path == path and told in one.message for one in refused.value.problems), refused.value


def test_a_second_column_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    given = pair_values(tmp_path)
    given["datasets"]["pairs"]["text_pair"] = "close"
    with pytest.raises(DataError, match="the column `close` should hold text"):
        prepare(Recipe.from_dict(given))
    given["datasets"]["pairs"]["text_pair"] = "secnd"
    with pytest.raises(DataError, match=r"no column `secnd`.*Did you mean `second`"):
        prepare(Recipe.from_dict(given))


def test_a_model_of_pairs_is_not_scored_on_single_texts(run: Path) -> None:
    given = Recipe.from_yaml(run / "recipe.yaml").to_dict()
    given["datasets"]["pairs"] |= {"text_pair": None}
    with pytest.raises(ModelError, match="`same` reads pairs of texts, but the recipe's datasets hold single texts"):
        evaluate(run, Recipe.from_dict(given))


def test_streamed_pairs_are_read_as_others(tmp_path: Path) -> None:
    given = pair_values(tmp_path, max_steps=3, eval_every=3)
    plain = prepare(Recipe.from_dict(given)).encoded["pairs"]["train"]
    given["datasets"]["pairs"] |= {"streaming": True, "buffer_size": 8}
    given["tasks"]["same"]["label_names"] = ["no", "yes"]
    given["sampling"] = {"strategy": "uniform"}
    prepared = prepare(Recipe.from_dict(given))
    batch = prepared.streams["pairs"].batch([*range(40)])
    rows = sorted(zip(batch["pieces"], batch["second"], strict=True))
    assert rows == sorted(zip(plain.rows["pieces"], plain.rows["second"], strict=True))
    assert np.isfinite(train(Recipe.from_dict(given))["scores"]["test"]["close"]["pearson"])


@pytest.mark.parametrize(
    "sharing",
    [
        {"strategy": "lora", "rank": 2, "alpha": 4},
        {"strategy": "towers", "num_layers": 1, "cross_stitch": False},
        {"strategy": "gate"},
        {"strategy": "layer_mix"},
    ],
    ids=lambda sharing: sharing["strategy"],
)
def test_pairs_and_chains_go_with_what_lies_between_encoder_and_heads(sharing: dict[str, Any]) -> None:
    ner = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1", decoder="crf")
    models = []
    for settings_ in (sharing, None):
        torch.manual_seed(0)
        models.append(from_encoder(tiny.encoder("bert"), [SAME, CLOSE, ner], max_length=32, sharing=settings_).eval())
    models[0].heads.load_state_dict(models[1].heads.state_dict())
    around = frame(tiny.tokenizer(), 32, 4)
    inputs = collate(items(PAIRS), (), around).inputs
    with torch.no_grad():
        found, plain = (model(**inputs) for model in models)
        ignored = models[0](**{**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])})
    assert {*found} == {"same", "close", "ner", "ner/transitions"}
    assert not torch.equal(found["same"], ignored["same"])  # segments were read
    if sharing["strategy"] in ("lora", "towers"):  # which change nothing at first
        for name, logits in plain.items():
            torch.testing.assert_close(found[name], logits, atol=1e-5, rtol=1e-5)
    if models[0].packs("auto"):
        with torch.no_grad():
            packed = models[0](**collate(items(PAIRS), (), around, packed=True).inputs)
        torch.testing.assert_close(packed["same"], found["same"], atol=1e-5, rtol=1e-5)
