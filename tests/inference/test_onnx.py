"""One graph with all heads answers as the model it was made of; in 8 bits almost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answers import assert_alike
from hub_runs import nlp_mtl
from mixed_steps import SENTIMENT, TASKS
from pair_values import SAME
from stock_models import rounded, saved, tiny_model
from tiny import tokenizer
from tiny_runs import tiny_recipe
from writable_hub import writable_hub

from nlp_mtl import MissingExtraError, ModelError, RunError, evaluate, load, train
from nlp_mtl.inference import onnx
from nlp_mtl.inference.onnx import GRAPH, OnnxModel, export_onnx
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task

TEXTS = ["anna loves rome .", "", "bob", "the good film of acme " * 9, " \t\n", "uning teas ! ?", "x" * 60]
EVERY = [
    Task("tags", "token-classification", ("O", "B-X", "I-X"), "span_f1", decoder="crf"),
    Task("several", "multi-label-classification", ("a", "b", "c"), "micro_f1"),
    Task("rating", "regression", ("value",), "pearson"),
    *TASKS,
]


def graph_of(model: MultiTaskModel, folder: Path, **options: Any) -> Predictor:
    export_onnx(model, tokenizer(), folder, **options)
    nlp = load(folder)
    assert isinstance(nlp.model, OnnxModel)
    return nlp


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("roberta", "electra", "deberta-v2")]


@pytest.mark.parametrize("family", ["bert", "modernbert", *LONG])
def test_a_graph_answers_as_its_model(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, tasks=EVERY)
    with torch.no_grad():
        model.head("tags").get_parameter("transitions").normal_()
    nlp = graph_of(model, tmp_path / "graph")
    expected = Predictor(tiny_model(family, tasks=EVERY), tokenizer(), layout="padded")
    expected.model.load_state_dict(model.state_dict())
    assert_alike(nlp(TEXTS), expected(TEXTS))
    assert_alike(nlp(TEXTS, tasks=["rating", "pos"]), expected(TEXTS, tasks=["rating", "pos"]))


@pytest.mark.parametrize(
    "sharing",
    [
        {"strategy": "gate"},
        {"strategy": "towers", "num_layers": 1, "cross_stitch": True},
        {"strategy": "layer_mix"},
        {"strategy": "lora", "rank": 2, "alpha": 4},
    ],
    ids=lambda sharing: sharing["strategy"],
)
def test_what_lies_between_encoder_and_heads_is_in_the_graph(sharing: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(sharing=sharing, tasks=[EVERY[0], SENTIMENT])
    untouched = rounded(Predictor(model, tokenizer())(TEXTS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("sharing.") or ".lora_B." in name or name.endswith(("transitions", ".stitch")):
                parameter.normal_()
    expected = rounded(Predictor(model, tokenizer())(TEXTS))
    assert expected != untouched
    assert rounded(graph_of(model, tmp_path / "graph")(TEXTS)) == expected


def test_pairs_keep_their_segments(tmp_path: Path) -> None:
    model = tiny_model(tasks=[SAME])
    nlp = graph_of(model, tmp_path / "graph")
    firsts, seconds = ["anna loves rome", "bob", ""], ["bob", "anna " * 40, "x"]
    expected = Predictor(model, tokenizer())(firsts, text_pair=seconds)
    assert_alike(nlp(firsts, text_pair=seconds), expected)


def test_a_graph_is_scored_as_its_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=4)
    train(recipe)
    graph = tmp_path / "graph"
    export_onnx(*load_model(recipe.output_dir), graph)
    assert evaluate(graph, recipe, split="validation") == evaluate(recipe.output_dir, split="validation")
    with pytest.raises(ModelError, match="leave it out"):
        evaluate(graph, recipe, revision="main")
    with pytest.raises(RunError, match="say which recipe's data to use, with --recipe"):
        evaluate(graph)


@pytest.mark.slow
def test_a_model_of_the_hub_becomes_a_graph_by_its_id(tmp_path: Path) -> None:
    model = saved(tmp_path / "hub" / "models" / "me" / "tiny")
    with writable_hub(tmp_path / "hub") as hub:
        done = nlp_mtl(hub, "export", "me/tiny", tmp_path / "graph", "--onnx")
    assert done.returncode == 0, done.stderr
    assert_alike(load(tmp_path / "graph")(TEXTS), load(model, device="cpu")(TEXTS))


def test_eight_bits_are_close_and_smaller(tmp_path: Path) -> None:
    whole, small = (graph_of(tiny_model(), tmp_path / name, int8=name == "int8") for name in ("float", "int8"))
    graph = __import__("onnx").load(tmp_path / "int8" / GRAPH).graph
    assert "MatMulIntegerToFloat" in {one.op_type for one in graph.node}
    read = {name for node in graph.node for name in node.input if node.op_type != "Gemm"}
    matrices = [one for one in graph.initializer if one.name in read and len(one.dims) == 2 and 1 not in one.dims]
    assert matrices
    assert {one.data_type for one in matrices} == {3}  # int8, those of embeddings as well
    scores = [
        np.array([word["score"] for answer in nlp(TEXTS, all_scores=True) for word in answer["pos"]])
        for nlp in (whole, small)
    ]
    assert 0 < np.abs(scores[0] - scores[1]).mean() < 0.1
    together = small(TEXTS, all_scores=True)
    alone = [small(text, all_scores=True) for text in TEXTS]
    assert_alike(together, alone)  # whatever else is in the batch
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("int8", "float")]
    assert files[0] == files[1]


def test_a_folder_holds_all_that_is_needed_and_nothing_else(tmp_path: Path) -> None:
    export_onnx(*load_model(saved(tmp_path / "model")), tmp_path / "graph")
    names = {path.name for path in (tmp_path / "graph").iterdir()}
    assert names == {GRAPH, "config.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((tmp_path / "graph" / "config.json").read_text())
    assert [task["name"] for task in config["tasks"]] == [task.name for task in TASKS]
    assert "auto_map" not in config  # that code is not there


@pytest.mark.slow
def test_weights_of_large_models_have_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, file: save(self, file, external_data=True))
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        other.head("pos").classifier.bias.add_(1)
    nlp = graph_of(model, tmp_path / "graph")
    assert {path.name for path in (tmp_path / "graph").glob(f"{GRAPH}*")} == {GRAPH, f"{GRAPH}.data"}
    assert_alike(nlp(TEXTS), Predictor(model, tokenizer())(TEXTS))
    assert nlp.digest() != graph_of(other, tmp_path / "other").digest()
    graph_of(model, tmp_path / "int8", int8=True)(TEXTS)
    assert [path.name for path in (tmp_path / "int8").glob(f"{GRAPH}*")] == [GRAPH]


def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "graph"
    export_onnx(tiny_model(), tokenizer(), folder)
    with pytest.raises(ModelError, match="holds something already"):
        export_onnx(tiny_model(), tokenizer(), folder)
    with pytest.raises(ModelError, match="leave out revision and device"):
        load(folder, device="cuda")
    with pytest.raises(ModelError, match="an ONNX graph reads padded texts"):
        load(folder, layout="packed")
    with pytest.raises(ModelError, match="an ONNX graph has the formats that it was written with"):
        load(folder, mixed_precision="bf16")
    with pytest.raises(ModelError, match=r"model\.onnx cannot answer: .*INVALID_ARGUMENT"):
        load(folder).model(torch.ones((1, 4)), torch.ones((1, 4)), ["pos"])
    (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.onnx cannot be read"):
        load(folder)
    monkeypatch.setattr(onnx, "TOLERANCE", -1)
    with pytest.raises(ModelError, match="answers otherwise than the model"):
        export_onnx(tiny_model(), tokenizer(), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlp_mtl\[onnx\]'"):
        load(folder)


def test_a_saved_model_and_its_graph_have_checksums_of_their_own(tmp_path: Path) -> None:
    nlp = graph_of(tiny_model(), tmp_path / "graph")
    other = load(saved(tmp_path / "model"), device="cpu")
    assert nlp.digest() == load(tmp_path / "graph").digest() != other.digest()
