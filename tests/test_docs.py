"""The README's commands and programs work, and the docs name what exists."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_project import ROOT, blocks, commands, page, run_command, tiny_project
from writable_hub import writable_hub

from nlp_mtl import train
from nlp_mtl.recipe import (
    BalancingSpec,
    DatasetSpec,
    GradientsSpec,
    Recipe,
    SamplingSpec,
    SharingSpec,
    TaskSpec,
    TrainingSpec,
)
from nlp_mtl.recipe_cleaning import AugmentationSpec, CleaningSpec, DatasetCleaningSpec
from nlp_mtl.recipe_compression import CompressionSpec
from nlp_mtl.recipe_parts import ConsistencySpec, DistillationSpec, ExtensionSpec, HubSpec, MetaSpec, TuneSpec

README = page("README.md")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    ROOT / "recipes" / "demo" / "README.md",
    *(ROOT / "docs").glob("*.md"),
]


THE_HUB = README[README.index("## The Hub\n") : README.index("| page | about |")]
WITHOUT_HUB = README.replace(THE_HUB, "")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project, tiny, as the current directory."""
    monkeypatch.chdir(tiny_project(tmp_path))
    return tmp_path


def test_the_commands_of_the_readme_work_in_their_order(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlp_mtl.serving.server.serve", lambda *_, **__: None)  # docs/serving.md is tried elsewhere
    found = commands("nlp-mtl", WITHOUT_HUB)
    verbs = {
        "check", "train", "extend", "tune", "evaluate", "predict", "serve", "export", "compress", "label-errors",
        "compare", "copy",
    }  # fmt: skip
    assert {words[1] for words in found} == verbs
    for words in found:
        words += {"compare": ["--seeds", "1"], "label-errors": ["--folds", "2"]}.get(
            words[1], []
        )  # they take their time
        assert run_command(words, monkeypatch, capsys), words


@pytest.mark.slow
def test_the_hub_section_of_the_readme_works_against_a_hub(project: Path) -> None:
    train(Recipe.from_yaml("recipes/demo.yaml"))
    found = commands("nlp-mtl", THE_HUB)
    assert [words[1] for words in found] == ["push", "predict", "export"]
    (program,) = blocks("python", THE_HUB)
    with writable_hub(project / "hub") as hub:
        for arguments in [*[[sys.executable, "-m", *words] for words in found], [sys.executable, "-c", program]]:
            arguments = ["nlp_mtl" if word == "nlp-mtl" else word for word in arguments]
            done = subprocess.run(arguments, env=hub.environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (arguments, done.stderr)
    assert [one["commit"] for one in hub.commits if "commit" in one] == ["USER/demo", "USER/demo-topic"]


def test_the_shortest_program_gives_the_keys_that_the_readme_prints(project: Path) -> None:
    program, printed = blocks("python", WITHOUT_HUB)
    names: dict[str, Any] = {}
    exec(compile(program, "README", "exec"), names)
    exec(compile(program, "README", "exec"), names)  # as it is after scripts/quickstart: the run is there
    answer = eval(program.strip().splitlines()[-1], names)
    shown = eval(printed.replace(", ...", ""))
    assert list(answer) == list(shown)
    entry = {"text", "label", "start", "end", "score"}
    assert answer["pos"][0].keys() == shown["pos"][0].keys() == shown["ner"][0].keys() == entry
    assert answer["sentiment"].keys() == shown["sentiment"].keys() == {"label", "score"}


def test_the_commands_of_the_page_on_extending_work_in_their_order(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page("docs/extend.md")
    (more,) = blocks("yaml", text)
    Path("more.yaml").write_text(more, encoding="utf-8")
    found = commands("nlp-mtl", text)
    assert [words[1] for words in found] == ["train", "extend", "extend", "predict", "extend", "evaluate"]
    for words in found:
        words += ["training.max_steps=2"] * ("more.yaml" in words)  # of a page's epochs the first steps
        assert run_command(words, monkeypatch, capsys), words


def test_the_recipe_of_the_readme_is_valid() -> None:
    (text,) = blocks("yaml", WITHOUT_HUB)
    assert list(Recipe.from_dict(yaml.safe_load(text)).tasks) == ["pos", "topic"]


def test_scripts_that_the_docs_name_can_be_run() -> None:
    named = {name for file in PAGES for name in re.findall(r"\bscripts/(\w+)", file.read_text(encoding="utf-8"))}
    assert {"quickstart", "test"} <= named
    for name in named:
        assert (ROOT / "scripts" / name).stat().st_mode & 0o100, name


def test_files_that_the_docs_link_or_map_exist() -> None:
    for file in PAGES:
        for link in re.findall(r"\]\(((?!https?:)[^)#:]+)[^)]*\)", file.read_text(encoding="utf-8")):
            assert (file.parent / link).exists(), (file.name, link)
    mapped = [
        name for row in re.findall(r"^\| (`nlp_mtl/.*?) \|", README, flags=re.MULTILINE) for name in row.split(", ")
    ]
    folder = ROOT
    listed = set()
    for name in (name.strip("`") for name in mapped):
        path = ROOT / name if name.startswith("nlp_mtl/") else folder / name
        folder = path.parent
        assert path.exists(), name
        listed |= {path} if path.is_file() else set(path.glob("*.py"))
    modules = {path for path in (ROOT / "nlp_mtl").rglob("*.py") if not path.name.startswith("__")}
    assert listed - {path for path in listed if path.name.startswith("__")} == modules


def anchor(heading: str) -> str:
    """What a heading is linked by, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_parts_of_pages_that_the_docs_link_exist() -> None:
    found = 0
    for file in PAGES:
        for link, part in re.findall(r"\]\(((?!https?:)[^)#:]*)#([^)]+)\)", file.read_text(encoding="utf-8")):
            other = file.parent / link if link else file
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert part in map(anchor, headings), (file.name, link, part)
            found += 1
    assert found > 50


ROW_KEYS = {key: one for key, one in DatasetCleaningSpec.model_fields.items() if key not in CleaningSpec.model_fields}


@pytest.mark.parametrize(
    ("title", "section"),
    [
        ("Top level", Recipe),
        ("`datasets.NAME`", DatasetSpec),
        ("`tasks.NAME`", TaskSpec),
        ("`cleaning`", CleaningSpec),
        ("`datasets.NAME.cleaning`", ROW_KEYS),
        ("`datasets.NAME.augmentation`", AugmentationSpec),
        ("`sampling`", SamplingSpec),
        ("`balancing`", BalancingSpec),
        ("`gradients`", GradientsSpec),
        ("`sharing`", SharingSpec),
        ("`training`", TrainingSpec),
        ("`meta`", MetaSpec),
        ("`consistency`", ConsistencySpec),
        ("`distillation`", DistillationSpec),
        ("`extension`", ExtensionSpec),
        ("`hub`", HubSpec),
        ("`tune`", TuneSpec),
        ("`compression`", CompressionSpec),
    ],
)
def test_every_key_of_a_recipe_is_told_with_its_default(title: str, section: Any) -> None:
    part = page("docs/recipes.md").split(f"## {title}\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", part, flags=re.MULTILINE))
    fields = section if isinstance(section, dict) else section.model_fields
    assert list(told) == list(fields)
    for key, default in told.items():
        value = fields[key].default
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert float(default.split()[0]) == value, key
