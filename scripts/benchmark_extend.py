"""What a model of NER, POS and sentiment forgets when it learns topics, and what is done against that.

  scripts/benchmark_extend --data PATH --folder runs/extend-variants

The model is that of recipes/ewt_sst2.yaml; recipes/extend_topic.yaml extends it, in variants: a name and overrides of
keys. The joint model learns all four tasks from the start, as recipes/ewt_sst2_agnews.yaml has it, from the same rows.
So that all of it takes about a quarter of an hour on two cores, datasets are cut (`--rows`), and models are those of
the last step. Each run is a folder of its own; one that is finished is not trained again, and one that was stopped goes
on.

- a task's column: the mean over seeds of its main metric on the test split, in percent, and in brackets the standard
  deviation
- old tasks: the mean over seeds and old tasks of what the extended model scores more than the model before, in points
"""

import argparse
import json
import shlex
from pathlib import Path

from score_variants import Scores, finished, run_folder, table

from nlp_mtl.shipped import recipes_folder

VARIANTS = (
    "fine-tuned, nothing done: extension.freeze=nothing",
    "frozen: extension.freeze=model",
    "old heads frozen: extension.freeze=heads",
    "replay, a tenth: extension.replay=0.1",
    "L2-SP, 0.1: extension.l2_to_start=0.1",
    "EWC, 100: extension.l2_to_start=100 extension.importance=fisher extension.fisher_rows=500",
    "EWC, 1000: extension.l2_to_start=1000 extension.importance=fisher extension.fisher_rows=500",
    "distillation: extension.distillation=true",
    "replay and distillation: extension.replay=0.1 extension.distillation=true",
)
SAME = ("training.ema_decay=0", "training.eval_every=100000", "training.selection_weights=null")
"""Of all runs: the model of the last step, not one that was chosen for remembering."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the PATH of recipes/ewt_sst2_agnews.yaml")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go")
    parser.add_argument(
        "--variant", action="append", help="'NAME: key=value key=value', in place of those that are tried"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=5000, help="training rows of each dataset at most")
    parser.add_argument("--test-rows", type=int, default=1500, help="test rows of each dataset at most")
    parser.add_argument("--epochs", type=float, default=2, help="of each run, over what it learns from")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    given = parser.parse_args()
    limits = {"train": given.rows, "validation": 500, "test": given.test_rows}
    scores: dict[str, Scores] = {"before": []}
    for seed in given.seeds:
        same = [*SAME, *given.set, f"data_dir={given.data}", f"training.num_epochs={given.epochs}", "split_seed=0"]
        same.append(f"seed={seed}")
        cut = {name: f"datasets.{name}.max_rows={json.dumps(limits)}" for name in ("ewt", "sst2", "agnews")}
        old, new = [cut["ewt"], cut["sst2"]], [cut["agnews"]]
        shares = "sampling=null"  # by rows, as the extended ones have them
        base = given.folder / f"before-seed{seed}"
        recipe = str(recipes_folder() / "ewt_sst2.yaml")
        scores["before"].append(finished(["train", recipe, *same, shares, *old], base))
        for text in given.variant or VARIANTS:
            name, _, keys = text.partition(":")
            verb = ["extend", str(base), str(recipes_folder() / "extend_topic.yaml"), "extension.replay=null"]
            command = [*verb, *same, *new, *shlex.split(keys)]
            scores.setdefault(name, []).append(finished(command, run_folder(given.folder, name, seed)))
        recipe = str(recipes_folder() / "ewt_sst2_agnews.yaml")
        joint = finished(["train", recipe, *same, shares, *old, *new], given.folder / f"joint-seed{seed}")
        scores.setdefault("all four from the start", []).append(joint)
    print(table(scores, "old tasks"))


if __name__ == "__main__":
    main()
