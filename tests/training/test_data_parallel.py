"""What the trainer asks of DistributedDataParallel, as seen inside real processes."""

import json
from pathlib import Path

import pytest
from tiny_runs import finish, start, values, write_yaml

from nlp_mtl import Recipe
from nlp_mtl.build import steps
from nlp_mtl.build_data import prepare


@pytest.mark.slow
def test_gradients_are_reduced_once_a_step_by_its_last_micro_batch_without_flags_and_no_loader_is_prepared(
    tmp_path: Path,
) -> None:
    # 161 rows in steps of 40: in the last one a process has none.
    plain = values(tmp_path, layout="padded", max_tokens=64, batch_size=40, num_epochs=1.68)
    recipe = Recipe.from_dict(plain)
    script = Path(__file__).with_name("ddp_observer.py")
    code, _, errors = finish(start(write_yaml(tmp_path, plain), tmp_path, processes=2, script=script))
    assert code == 0, errors
    prepared = prepare(recipe)
    for process in range(2):
        data = steps(recipe, prepared, process=process, num_processes=2)
        micro_batches = [len(batches.micro_batches) for batches in data]
        assert max(micro_batches) > 2
        assert micro_batches[-1] == 1
        seen = json.loads((tmp_path / f"{process}.json").read_text())
        assert seen["events"] == [
            event for count in micro_batches for event in [*["forward"] * count, "reduced", "step"]
        ]
        assert (seen["find_unused_parameters"], seen["static_graph"]) == (False, False)
        assert seen["prepared"] == ["MultiTaskModel", "AdamW"]
        assert seen["loaders"] == 0
