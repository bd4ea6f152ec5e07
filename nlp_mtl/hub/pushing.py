"""Trained models to the Hub, each in one commit: a run's, one in memory, or one task as a stock checkpoint."""

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerBase

from nlp_mtl.errors import ModelError
from nlp_mtl.hub.card import About, as_yaml, datasets_of, merged, model_card
from nlp_mtl.hub.portable import portable_recipe, portable_results
from nlp_mtl.hub.repository import DatasetFacts, Repository
from nlp_mtl.models.multitask import MultiTaskModel


def push(
    run: str | Path,
    repo_id: str | None = None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    language: Sequence[str] | None = None,
    tags: Sequence[str] | None = None,
) -> str:
    """Push a run's model, with its card, recipe, results and plots, in one commit; returns its address.

    What is not given is as the run's recipe says under ``hub``. The token is the one that `hf auth login` or
    ``HF_TOKEN`` gave to huggingface_hub.

    Args:
        run: a run folder, or a model folder.
        repo_id: ``user/name``; made where there is none.
        private: of a new repository; default: as the account says.
        revision: the branch; made where there is none.
        create_pr: as a pull request.
        license: for the card, as the Hub calls it.
        language: for the card; default: those of the datasets, as far as the Hub tells them.
        tags: for the card.

    Raises:
        ModelError: there is no trained model in ``run``, it is not said where to push it, or the card in the
            repository cannot be kept.
        HubError: the Hub refused, or could not be reached. The run is intact.
    """
    run = Path(run).expanduser()
    given = {
        "repo_id": repo_id, "private": private, "revision": revision, "create_pr": create_pr,
        "commit_message": commit_message, "license": license, "language": language, "tags": tags,
    }  # fmt: skip
    check_trained(run)
    wanted = {**_hub_of(run), **{key: value for key, value in given.items() if value is not None}}
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
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts = repository.dataset_facts(datasets_of(_recipe_of(run)))
        assemble(run, folder, repository.repo_id, repository.card(), about, facts)
        return repository.upload(folder, commit_message or f"Model of nlp_mtl ({run.absolute().name})")


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
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | None = None,
) -> str:
    """Push a model that is in memory, with a card that tells its tasks; returns the address of the commit.

    Arguments are those of transformers' ``push_to_hub``.

    Raises:
        ModelError: the card in the repository cannot be kept.
        HubError: the Hub refused, or could not be reached.
    """
    repository = Repository(
        repo_id, again="push it again", private=private, revision=revision, create_pr=create_pr, token=token
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        data, body = model_card(config, repository.repo_id, about=About(tags=tuple(tags or ())))
        (folder / "README.md").write_text(merged(repository.card(), data, body), encoding="utf-8")
        return repository.upload(folder, commit_message or "Model of nlp_mtl")


def check_trained(run: Path) -> Path:
    """Where the model of a run lies, or of a model folder or a copy of a repository that is given itself.

    Raises:
        ModelError: there is no trained model.
    """
    model = run if (run / "config.json").is_file() or not (run / "recipe.yaml").is_file() else run / "model"
    weights = ("model.safetensors", "model.safetensors.index.json")
    if not (model / "config.json").is_file() or not any((model / name).is_file() for name in weights):
        what = "its training has not finished" if model != run else "it has no config.json and model.safetensors"
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
        facts: what the Hub tells of datasets.

    Raises:
        ModelError: there is no trained model, or the card cannot be kept.
    """
    model = check_trained(run)
    shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    readme = folder / "README.md"
    if card is None and readme.is_file():
        card = readme.read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    recipe = _recipe_of(run)
    if recipe is None:
        readme.write_text(merged(card, *model_card(config, repo_id, about=about)), encoding="utf-8")
        return
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    plots = sorted(run.glob("plots/*.png"))
    for plot in plots:
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(plot, folder / "plots" / plot.name)
    recipe, results = portable_recipe(recipe, run.absolute().name), portable_results(results)
    (folder / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    data, body = model_card(
        config, repo_id, about=about, recipe=recipe, results=results, facts=facts or {},
        plots=[f"plots/{plot.name}" for plot in plots],
    )  # fmt: skip
    readme.write_text(merged(card, data, body), encoding="utf-8")


def run_card(run: Path, recipe: Mapping[str, Any], results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The model card that a run folder keeps; what its owner wrote into one that is there stays.

    Raises:
        ModelError: the card that is there cannot be kept.
    """
    file = run / "model" / "README.md"
    old = file.read_text(encoding="utf-8") if file.is_file() else None
    plain = json.loads(json.dumps(config, default=str))
    recipe, results = portable_recipe(recipe, run.name), portable_results(results)
    return merged(old, *model_card(plain, f"USER/{run.name}", about=About(), recipe=recipe, results=results))


def _recipe_of(run: Path) -> dict[str, Any] | None:
    """The recipe of a run folder; None: it is a model folder."""
    file = run / "recipe.yaml"
    found: dict[str, Any] | None = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found


def _hub_of(run: Path) -> dict[str, Any]:
    return {**((_recipe_of(run) or {}).get("hub") or {})}


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
    if given["language"]:
        words += ["--language", ",".join(given["language"])]
    return words
