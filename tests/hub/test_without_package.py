"""The code that goes with a model gives the package's logits, in a process that does not have the package."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import spawned
import tiny
import torch
from hub_runs import ABSENT, nlp_mtl, python
from writable_hub import Hub

from nlp_mtl import load
from nlp_mtl.compression.heads import take_out_heads
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.tasks import Task

TASKS = [
    Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1"),
    Task("mood", "text-classification", ("bad", "good"), "accuracy"),
]
EXPERTS = {"num_experts": 2, "expert_size": 4}
SHARINGS: list[dict[str, Any]] = [
    {"strategy": "layer_mix"},
    {"strategy": "task_embedding"},
    {"strategy": "gate"},
    {"strategy": "mmoe", **EXPERTS},
    {"strategy": "ple", **EXPERTS, "num_task_experts": 1, "num_levels": 2},
    {"strategy": "towers", "num_layers": 1, "cross_stitch": True},
    {"strategy": "lora", "rank": 2, "alpha": 4},
]
PROGRAM = f"""{ABSENT}
import json, torch
from transformers import AutoModel
found = {{}}
for folder in sys.argv[1:]:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(torch.arange(5, 29).view(2, 12), torch.tensor([[1] * 12, [1] * 7 + [0] * 5]))
    found[folder] = {{task: one.tolist() for task, one in logits.items()}}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_all_families_give_the_same_logits_by_the_code_in_the_repository(tmp_path: Path) -> None:
    expected = {}
    for family in tiny.FAMILIES:
        for name, tasks in {"all": TASKS, "tokens": TASKS[:1], "texts": TASKS[1:]}.items():
            model = from_encoder(tiny.encoder(family), tasks, max_length=32).eval()
            folder = tmp_path / f"{family}-{name}"
            model.save_pretrained(folder)
            with torch.no_grad():
                logits = model(torch.arange(5, 29).view(2, 12), torch.tensor([[1] * 12, [1] * 7 + [0] * 5]))
            expected[str(folder)] = {task: one.tolist() for task, one in logits.items()}
    for number, sharing in enumerate(SHARINGS):
        for family in ("bert", "albert" if sharing["strategy"] != "towers" else "modernbert"):
            model = from_encoder(tiny.encoder(family), TASKS, max_length=32, sharing=sharing).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
                folder = tmp_path / f"{family}-sharing-{number}"
                model.save_pretrained(folder)
                logits = model(torch.arange(5, 29).view(2, 12), torch.tensor([[1] * 12, [1] * 7 + [0] * 5]))
            expected[str(folder)] = {task: one.tolist() for task, one in logits.items()}
    for family in ("bert", "modernbert", "deberta-v2"):
        model = take_out_heads(from_encoder(tiny.encoder(family), TASKS, max_length=32).eval(), [[1], [0, 1]])
        folder = tmp_path / f"{family}-sharing-none-heads"
        model.save_pretrained(folder)
        with torch.no_grad():
            logits = model(torch.arange(5, 29).view(2, 12), torch.tensor([[1] * 12, [1] * 7 + [0] * 5]))
        expected[str(folder)] = {task: one.tolist() for task, one in logits.items()}
    found = spawned.python("-c", PROGRAM, *expected, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    given = json.loads(found.stdout.splitlines()[-1])
    assert given.keys() == expected.keys()
    for folder, logits in expected.items():
        if "-sharing-" not in folder:  # else products round in another way
            assert given[folder] == logits
        for task, one in logits.items():  # experts see fewer tokens at once here, and products round by their sizes
            torch.testing.assert_close(torch.tensor(given[folder][task]), torch.tensor(one), rtol=1e-5, atol=1e-6)


def test_token_types_of_single_texts_are_taken_and_those_of_pairs_refused() -> None:
    model = from_encoder(tiny.encoder("bert"), TASKS, max_length=32).eval()
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        plain, typed = model(ids), model(ids, token_type_ids=torch.zeros_like(ids))
    assert all(torch.equal(plain[task], typed[task]) for task in plain)
    with pytest.raises(ValueError, match="tell of pairs"):
        model(ids, token_type_ids=torch.ones_like(ids))


@pytest.mark.slow
def test_the_repository_loads_without_the_package_by_its_own_code(run: Path, hub: Hub, tmp_path: Path) -> None:
    assert nlp_mtl(hub, "push", run, "me/tiny").returncode == 0
    program = f"""{ABSENT}
import json, torch
from transformers import AutoModel
model = AutoModel.from_pretrained("me/tiny", trust_remote_code=True).eval()
with torch.no_grad():
    print(json.dumps({{task: logits.tolist() for task, logits in model(torch.arange(5, 15)[None]).items()}}))
"""
    found = python(hub, program)
    with torch.no_grad():
        ours = load(run).model(torch.arange(5, 15)[None])
    assert found == {task: logits.tolist() for task, logits in ours.items()}


@pytest.mark.slow
def test_the_program_that_the_card_shows_runs_without_the_package_and_asks_nothing(run: Path, hub: Hub) -> None:
    assert nlp_mtl(hub, "push", run, "me/tiny").returncode == 0
    card = (hub.root / "models" / "me" / "tiny" / "README.md").read_text()
    (shown,) = (block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "trust_remote_code" in block)
    ending = "import json; print(json.dumps({task: [*one.shape] for task, one in logits.items()}))"
    found = python(hub, ABSENT + shown + ending)
    assert {*found} == {"ner", "pos", "sentiment"}
