"""Trained models to the Hub, each in one commit: a run's, or one in memory."""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from nlp_mtl.errors import ModelError
from nlp_mtl.hub.card import datasets_of, model_card
from nlp_mtl.hub.card_compression import report_of
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.card_text import as_yaml, merged
from nlp_mtl.hub.portable import portable_recipe, portable_results
from nlp_mtl.hub.repository import DatasetFacts, Repository
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.storage import cannot_write, save_tokenizer

_NOT_PUSHED = shutil.ignore_patterns(".*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.partial")
"""What may lie in a model folder and has no place in a repository: pickles, and other programs' own files."""


def push(
    run: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: str | Sequence[str] | None = None,
) -> str:
    """Push a run's model, with its card, recipe, results and plots, in one commit; returns its address.

    What is not given is as the run's recipe says under ``hub``. The token is the one that `hf auth login` or
    ``HF_TOKEN`` gave to huggingface_hub.

    Args:
        run: a run folder, or a model folder.
        repo_id: ``user/name``; made where there is none.
        private: of a new repository; default: as the account says.
        revision: the branch; made where there is none, but for a pull request.
        create_pr: as a pull request.
        commit_message: default: names the run.
        license: for the card, as the Hub calls it.
        language: for the card; default: those of the datasets, as far as the Hub tells them.
        tags: for the card.

    Raises:
        ModelError: there is no trained model in ``run``, it is not said where to push it, or the card in the
            repository cannot be kept.
        HubError: the Hub refused, or could not be reached. The run is intact.
        RunError: there is no room to put the files together.
    """
    run = Path(run).expanduser()
    given: dict[str, Any] = {
        "repo_id": repo_id, "private": private, "revision": revision, "create_pr": create_pr,
        "commit_message": commit_message, "license": license, "language": _several(language), "tags": _several(tags),
    }  # fmt: skip
    load_model(check_trained(run))  # what nobody could load is not pushed
    recipe, _ = run_of(run)
    wanted = {**((recipe or {}).get("hub") or {}), **{key: value for key, value in given.items() if value is not None}}
    if not wanted.get("repo_id"):
        raise ModelError(f"where to? Say USER/NAME on the Hub; the recipe of {run} has no `hub` that does")
    repository = Repository(
        wanted["repo_id"],
        again=f"push it again: {shlex.join(['nlp-mtl', 'push', str(run), *_as_options(given)])}",
        private=wanted.get("private"),
        revision=wanted.get("revision"),
        create_pr=bool(wanted.get("create_pr")),
    )
    about = About(wanted.get("license"), tuple(wanted.get("language") or ()), tuple(wanted.get("tags") or ()))
    return push_to(repository, run, wanted.get("commit_message"), about)


def push_to(repository: Repository, run: Path, commit_message: str | None, about: About) -> str:
    """Push a run's model to a repository that there is; returns the address of the commit.

    Raises:
        ModelError: there is no trained model, or the card in the repository cannot be kept.
        HubError: the Hub refused, or could not be reached.
        RunError: there is no room to put the files together.
    """
    head = repository.head()
    facts = repository.dataset_facts(datasets_of(run_of(run)[1]))
    with _aside() as folder:
        assemble(run, folder, repository.repo_id, head.card, about, facts)
        return repository.upload(folder, commit_message or f"Model of nlp_mtl ({run.absolute().name})", head)


def push_model(
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase | None,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | None = None,
) -> str:
    """Push a model that is in memory, with a card that tells its tasks; returns the address of the commit.

    Arguments are those of transformers' ``push_to_hub``.

    Raises:
        ModelError: the card in the repository cannot be kept.
        HubError: the Hub refused, or could not be reached.
        RunError: there is no room to put the files together.
    """
    repository = Repository(
        repo_id, again="push it again", private=private, revision=revision, create_pr=create_pr, token=token
    )
    head = repository.head()
    with _aside() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        about = About(tags=tuple(_several(tags) or ()))
        card = model_card(config, repository.repo_id, about=about)
        text = merged(head.card, *card, where=f"of {repository.repo_id}", said=about.said())
        (folder / "README.md").write_text(text, encoding="utf-8")
        return repository.upload(folder, commit_message or "Model of nlp_mtl", head, commit_description)


def check_trained(run: Path) -> Path:
    """Where the model of a run or a compressed one lies, or of a folder of the model alone or a copy of a repository.

    Raises:
        ModelError: there is no trained model.
    """
    if not run.is_dir():
        raise ModelError(f"there is no folder {run}")
    is_model = (run / "config.json").is_file()
    kinds = {"compression.json": "its compressing", "recipe.yaml": "its training"}
    unfinished = [f"{what} has not finished" for name, what in kinds.items() if (run / name).is_file() and not is_model]
    model = run / "model" if unfinished else run
    weights = ("model.safetensors", "model.safetensors.index.json")
    complete = (model / "config.json").is_file() and any((model / name).is_file() for name in weights)
    finished = not unfinished or (run / "results.json").is_file() or report_of(run) is not None
    if not complete or not finished:
        what = unfinished[0] if unfinished else "it has no config.json and model.safetensors"
        raise ModelError(f"there is no trained model in {run}: {what}")
    return model


def assemble(
    run: Path,
    folder: Path,
    repo_id: str,
    card: str | None,
    about: About,
    facts: Mapping[str, DatasetFacts] | None = None,
) -> None:
    """Fill an empty folder with what a repository of a run's model holds.

    Args:
        card: the one that is in the repository; without one the model's own is taken up.
        about: for the card.
        facts: what the Hub tells of datasets.

    Raises:
        ModelError: there is no trained model, or the card cannot be kept.
    """
    shutil.copytree(check_trained(run), folder, dirs_exist_ok=True, ignore=_NOT_PUSHED)
    readme = folder / "README.md"
    if card is None and readme.is_file():
        card = readme.read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    recipe, results = run_of(run)
    plots = []
    if recipe is not None and results is not None:
        plots = [f"plots/{plot.name}" for plot in sorted(run.glob("plots/*.png"))]
        for plot in plots:
            (folder / "plots").mkdir(exist_ok=True)
            shutil.copyfile(run / plot, folder / plot)
        recipe, results = portable_recipe(recipe, run.absolute().name), portable_results(results)
        (folder / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told: dict[str, Any] = {"recipe": recipe, "results": results, "facts": facts, "plots": plots}
    made = model_card(config, repo_id, about=about, compression=report_of(run), **told)
    text = merged(card, *made, where=f"of {repo_id}", said=about.said())
    readme.write_text(text, encoding="utf-8")


def run_of(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Recipe and results of a run folder or a copy of a repository; of anything else, nothing.

    Raises:
        ModelError: they cannot be read.
    """
    recipe, results = folder / "recipe.yaml", folder / "results.json"
    if not recipe.is_file() or not results.is_file():
        return None, None
    try:
        return yaml.safe_load(recipe.read_text(encoding="utf-8")), json.loads(results.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ModelError(f"{folder}: recipe.yaml or results.json cannot be read: {error}") from error


@contextmanager
def _aside() -> Iterator[Path]:
    """A folder to put files together in.

    Raises:
        RunError: there is no room for them.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            yield Path(name)
        except OSError as error:
            raise cannot_write(Path(name), error) from error


def _several(given: str | Sequence[str] | None) -> list[str] | None:
    return [given] if isinstance(given, str) else None if given is None else [*given]


def _as_options(given: Mapping[str, Any]) -> list[str]:
    """Arguments of :func:`push` as the command line has them."""
    words = [given["repo_id"]] if given["repo_id"] else []
    if given["private"] is not None:
        words.append("--private" if given["private"] else "--public")
    if given["create_pr"]:
        words.append("--create-pr")
    for key, option in (("revision", "--revision"), ("commit_message", "--message"), ("license", "--license")):
        if given[key] is not None:
            words += [option, given[key]]
    for key in ("language", "tags"):
        if given[key]:
            words += [f"--{key}", ",".join(given[key])]
    return words
