"""Models are pushed by the command line to a Hub, with a card, and loaded by id in another process."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import spawned
import yaml
from hub_runs import ANSWER, commits, nlp_mtl, python
from huggingface_hub import ModelCard
from transformers import AutoModel
from writable_hub import TOKEN, Fault, Hub

from nlp_mtl import ModelError, MultiTaskModel, load
from nlp_mtl.hub import push as push_run
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.card_text import BEGIN, END
from nlp_mtl.hub.pushing import assemble

FILES = [
    "README.md", "config.json", "model.safetensors", "modeling_nlp_mtl.py", "sharing.py", "adapters.py",
    "attention_heads.py", "plots/losses.png", "plots/scores.png", "recipe.yaml", "results.json",
]  # fmt: skip


def push(hub: Hub, *arguments: str | Path, token: str = TOKEN) -> "subprocess.CompletedProcess[str]":
    return nlp_mtl(hub, "push", *arguments, HF_TOKEN=token)


@pytest.mark.slow
def test_a_run_is_pushed_in_one_commit_and_loaded_by_id_in_another_process(run: Path, hub: Hub, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = push(hub, run, "me/tiny", "--private", "--license", "mit", "--language", "en")
    assert done.returncode == 0, done.stderr
    assert "/me/tiny/commit/" in done.stdout
    (commit,) = commits(hub)
    assert set(FILES) <= {*commit["files"]}
    assert not any(file.endswith((".bin", ".pt", ".pkl")) for file in commit["files"])
    assert hub.commits[0]["visibility"] == "private"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    answer = load(run)("anna loves paris .")
    expected = json.loads(json.dumps(answer))
    assert python(hub, ANSWER, "me/tiny") == expected
    assert python(hub, ANSWER, "me/tiny", HF_HUB_OFFLINE="1") == expected  # from the cache
    # Where nobody answers, too, and at once: the client would ask for each file, and wait.
    alone = nlp_mtl(hub, "predict", "me/tiny", "anna", HF_ENDPOINT="http://127.0.0.1:9")
    assert alone.returncode == 0, alone.stderr
    assert "The Hub cannot be reached: the copy of `me/tiny` in the cache is taken" in alone.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("POST /api/repos/create", 401), "does not accept the token"),
        (Fault("POST .*/commit/main", 403, times=9), "may not write to `me/tiny`"),
        (Fault("POST .*/preupload", 404, times=9), "no repository `me/tiny`"),
        (Fault("GET /api/models/me/tiny", 403, times=9), "may not write to `me/tiny`"),
        (Fault("POST .*/commit/main", 412, times=9), "was changed by somebody else meanwhile"),
    ],
    ids=["401", "403", "404", "unreadable", "412"],
)
def test_what_the_hub_refuses_is_told_and_the_run_is_intact(run: Path, hub: Hub, fault: Fault, told: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    hub.faults.append(fault)
    done = push(hub, run, "me/tiny")
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert f"push it again: nlp-mtl push {run} me/tiny" in done.stderr
    assert not commits(hub)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        [
            Fault("POST .*/commit/main", 500),
            Fault("POST .*/commit/main", 429, headers={"Retry-After": "1"}),
            Fault("POST .*/commit/main", 409),
            Fault("POST .*/commit/main", 200, delay=2.0),
        ],
        [Fault("PUT /lfs/", 0)],
        [
            Fault("POST /api/repos/create", 503),
            Fault("POST .*/preupload", 500),
            Fault("POST .*/objects/batch", 500),
            Fault("POST /api/validate-yaml", 503),
            Fault("GET /api/models/me/tiny", 500),
        ],
        [Fault("POST .*/commit/main", -1)],
    ],
    ids=["committing", "cut in mid-upload", "before", "answer lost"],
)
def test_what_fails_for_the_moment_is_tried_again(run: Path, hub: Hub, faults: list[Fault]) -> None:
    hub.faults += [Fault(**vars(fault)) for fault in faults]
    done = push(hub, run, "me/tiny")
    assert done.returncode == 0, done.stderr
    assert "/me/tiny/commit/" in done.stdout
    assert len(commits(hub)) == 1
    assert not any(fault.times for fault in hub.faults)


@pytest.mark.slow
def test_without_a_hub_the_push_is_tried_again_and_then_told(run: Path, hub: Hub) -> None:
    program = "import nlp_mtl.retrying as r, nlp_mtl.cli as c, sys; r.FIRST_WAIT = 0.01; c.main(sys.argv[1:])"
    environment = {**hub.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = spawned.python("-c", program, "push", run, "me/tiny", environment=environment)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("it is asked again") == 4
    assert "the Hub could not be reached" in done.stderr
    assert f"push it again: nlp-mtl push {run} me/tiny" in done.stderr
    assert TOKEN not in done.stderr


@pytest.mark.slow
def test_a_second_push_writes_its_part_of_the_card_anew_and_keeps_the_owners(run: Path, hub: Hub) -> None:
    assert push(hub, run, "me/tiny").returncode == 0
    card = hub.root / "models" / "me" / "tiny" / "README.md"
    text = card.read_text().replace("library_name: nlp_mtl", "library_name: nlp_mtl\nlicense: mit")
    card.write_text(
        text.replace(BEGIN, f"Mine, above.\n\n{BEGIN}").replace("## Limits", "## Lies") + "\nMine, below.\n"
    )
    assert push(hub, run, "me/tiny", "--message", "Again").returncode == 0
    again = card.read_text()
    assert "Mine, above." in again
    assert "Mine, below." in again
    assert "## Limits" in again
    assert "## Lies" not in again
    assert (again.count(BEGIN), again.count(END)) == (1, 1)
    assert ModelCard(again).data.license == "mit"
    assert commits(hub)[-1]["message"] == "Again"


@pytest.mark.long
def test_the_owners_text_stays_though_the_card_is_hard_to_read(run: Path, hub: Hub) -> None:
    assert push(hub, run, "me/tiny").returncode == 0
    assert push(hub, run, "me/tiny").returncode == 0  # so that a cache could hold it
    card = hub.root / "models" / "me" / "tiny" / "README.md"
    card.write_text(card.read_text() + "\nMine, below.\n")
    hub.faults += [
        Fault("HEAD .*/README.md", 503),
        Fault("HEAD .*/README.md", 200, delay=11),  # longer than the client waits
        Fault("GET .*/README.md", 503),
        Fault("(HEAD|GET) .*/README.md", 0),
    ]
    done = push(hub, run, "me/tiny")
    assert done.returncode == 0, done.stderr
    assert not any(fault.times for fault in hub.faults)
    assert "Mine, below." in card.read_text()


@pytest.mark.long
def test_a_card_that_cannot_be_read_at_all_is_not_written_over(run: Path, hub: Hub) -> None:
    assert push(hub, run, "me/tiny").returncode == 0
    card = hub.root / "models" / "me" / "tiny" / "README.md"
    card.write_text(card.read_text() + "\nMine, below.\n")
    hub.faults.append(Fault("(HEAD|GET) .*/README.md", 404, times=99, headers={"X-Error-Code": "GatedRepo"}))
    assert push(hub, run, "me/tiny").returncode == 2
    assert "Mine, below." in card.read_text()


def test_what_nobody_could_load_is_not_pushed(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / "model", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["tasks"][0]["labels"].append("one too many")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its weights do not fit its config\.json"):
        push_run(copy, "me/tiny")
    with pytest.raises(ModelError, match=f"there is no folder {tmp_path / 'nowhere'}"):
        push_run(tmp_path / "nowhere", "me/tiny")


@pytest.mark.long
def test_a_card_that_is_no_text_is_told_and_stays(run: Path, hub: Hub) -> None:
    card = hub.root / "models" / "me" / "tiny" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_bytes(b"caf\xe9")
    done = push(hub, run, "me/tiny")
    assert done.returncode == 2
    assert "the card of me/tiny is not text in UTF-8" in done.stderr
    assert card.read_bytes() == b"caf\xe9"


@pytest.mark.long
def test_a_push_leaves_what_was_loaded_before_in_the_cache(run: Path, hub: Hub) -> None:
    assert push(hub, run, "me/tiny").returncode == 0
    assert nlp_mtl(hub, "predict", "me/tiny", "anna").returncode == 0
    assert push(hub, run, "me/tiny", "--message", "Again").returncode == 0
    assert nlp_mtl(hub, "predict", "me/tiny", "anna", HF_HUB_OFFLINE="1").returncode == 0


@pytest.mark.slow
def test_metadata_that_the_hub_refuses_are_told_with_its_reasons(run: Path, hub: Hub) -> None:
    done = push(hub, run, "me/tiny", "--license", "my-own", "--language", "english")
    assert done.returncode == 2
    assert "the Hub refuses the model card: " in done.stderr
    assert '"license" must be one of' in done.stderr
    assert "\"language\" 'english' must be a code" in done.stderr
    assert not commits(hub)


@pytest.mark.slow
def test_branches_and_pull_requests(run: Path, hub: Hub) -> None:
    assert push(hub, run, "me/tiny").returncode == 0
    assert push(hub, run, "me/tiny", "--revision", "v2").returncode == 0
    assert (hub.root / "models" / "me" / "tiny@v2" / "model.safetensors").is_file()
    done = push(hub, run, "me/tiny", "--create-pr")
    assert "/discussions/1" in done.stdout
    assert commits(hub)[-1]["pull"]


@pytest.mark.slow
def test_where_to_may_be_said_by_the_recipe_and_what_fails_is_repeated_with_all_options(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    done = push(hub, run)
    assert done.returncode == 2
    assert f"where to? Say USER/NAME on the Hub; the recipe of {run} has no `hub` that does" in done.stderr
    told = shutil.copytree(run, tmp_path / "told")
    recipe = yaml.safe_load((told / "recipe.yaml").read_text())
    recipe["hub"] = {"repo_id": "named", "private": True, "license": "mit", "language": ["no"], "revision": "v3"}
    (told / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = push(hub, told)
    assert done.returncode == 0, done.stderr
    created, commit = hub.commits
    assert (created["created"], created["visibility"], commit["commit"]) == ("me/named", "private", "me/named")
    header = ModelCard((hub.root / "models" / "me" / "named@v3" / "README.md").read_text()).data.to_dict()
    assert (header["license"], header["language"]) == ("mit", ["no"])
    assert "hub: null" in (hub.root / "models" / "me" / "named@v3" / "recipe.yaml").read_text()
    hub.faults.append(Fault("POST .*/commit/v4", 403, times=9))
    done = push(hub, told, "--revision", "v4", "--message", "Two words", "--language", "en, de")
    assert done.returncode == 2
    again = f"push it again: nlp-mtl push {told} --revision v4 --message 'Two words' --language en,de"
    assert again in done.stderr


@pytest.mark.slow
def test_a_wrong_token_and_a_wrong_name_are_told_without_the_token(run: Path, hub: Hub) -> None:
    done = push(hub, run, "me/tiny", token="hf_wrong_secret")
    assert done.returncode == 2
    assert "run `hf auth login`, or set HF_TOKEN" in done.stderr
    assert "hf_wrong_secret" not in done.stderr + done.stdout
    done = push(hub, run, "me/ti ny")
    assert done.returncode == 2
    assert "'me/ti ny' is no id of a repository" in done.stderr


def test_with_the_package_auto_classes_need_no_trust_and_run_no_code_of_the_repository(
    run: Path, tmp_path: Path
) -> None:
    assemble(run, tmp_path / "out", "me/tiny", None, About())
    (tmp_path / "out" / "modeling_nlp_mtl.py").write_text("raise RuntimeError('it ran')\n")
    assert type(AutoModel.from_pretrained(tmp_path / "out")) is MultiTaskModel


def test_no_folder_of_this_machine_is_in_what_is_pushed(run: Path, tmp_path: Path) -> None:
    assemble(run, tmp_path / "out", "me/tiny", None, About())
    assert str(run.parent) in (run / "recipe.yaml").read_text()
    texts = [file for file in (tmp_path / "out").iterdir() if file.suffix in (".json", ".yaml", ".md")]
    assert {"README.md", "recipe.yaml", "results.json", "config.json"} <= {file.name for file in texts}
    for file in [*texts, run / "model" / "README.md", run / "model" / "config.json"]:
        assert str(run.parent) not in file.read_text(), file.name


def test_a_run_that_has_no_model_yet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("encoder: x\n")
    with pytest.raises(ModelError, match="its training has not finished"):
        assemble(tmp_path, tmp_path / "out", "me/tiny", None, About())


@pytest.mark.parametrize("name", ["my run", *(pytest.param(name, marks=pytest.mark.long) for name in ("a--b", "x..y"))])
def test_what_cannot_be_a_models_name_is_told_without_a_traceback(hub: Hub, name: str) -> None:
    done = nlp_mtl(hub, "predict", name, "anna")
    assert done.returncode == 2
    assert f"model `{name}` cannot be loaded" in done.stderr
