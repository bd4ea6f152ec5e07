"""A trained model to the Hub, in one commit."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nlp_mtl.errors import HubError, ModelError, first_line
from nlp_mtl.hub.card import as_yaml, card_body, card_data, merged
from nlp_mtl.retrying import UNANSWERED, retried

_asked = partial(retried, also_unreachable=True)
_REMOTE_CODE = Path(__file__).with_name("modeling_nlp_mtl.py")
_AUTO_MAP = {"AutoConfig": "modeling_nlp_mtl.MultiTaskConfig", "AutoModel": "modeling_nlp_mtl.MultiTaskModel"}


def push(
    run: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Push a run's model, with its card, recipe, results and plots, in one commit; returns its address.

    The token is the one that `hf auth login` or ``HF_TOKEN`` gave to huggingface_hub.

    Args:
        run: a run folder, or a model folder.
        repo_id: ``user/name``; made where there is none.
        private: of a new repository; default: as the account says.
        revision: the branch; made where there is none.
        create_pr: as a pull request.
        about: what only the user knows, for the card: ``license``, ``language``, ``tags``.

    Raises:
        ModelError: there is no trained model in ``run``, or the card in the repository cannot be kept.
        HubError: the Hub refused, or could not be reached. The run is intact.
    """
    run = Path(run).expanduser()
    again = f"push it again: nlp-mtl push {run} {repo_id}"
    api = HfApi()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _asked(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
            if revision is not None:
                _asked(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
            assemble(run, folder, repo_id, _card_there(api, repo_id, revision), about or {})
            operations = [
                CommitOperationAdd(path.relative_to(folder).as_posix(), path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            message = commit_message or f"Model of nlp_mtl ({run.absolute().name})"
            commit = _asked(
                lambda: api.create_commit(
                    repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr
                )
            )
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no id of a repository (user/name): {first_line(error)}") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"there is no token to push with: run `hf auth login`, or set HF_TOKEN; then {again}") from error
    except HfHubHTTPError as error:
        raise HubError(f"{_refused(error, repo_id)}. Nothing of the run was changed; {again}") from error
    except (*UNANSWERED, ValueError) as error:  # no answer, or one that is none of the Hub's
        raise HubError(
            f"the Hub could not be reached ({first_line(error)}). Nothing of the run was changed; {again}"
        ) from error
    return str(commit.pr_url or commit.commit_url)


def assemble(run: Path, folder: Path, repo_id: str, card: str | None, about: Mapping[str, Any]) -> None:
    """Fill an empty folder with what a repository of the model holds.

    Args:
        card: the one that is in the repository.

    Raises:
        ModelError: there is no trained model, or the card cannot be kept.
    """
    model = run / "model" if (run / "recipe.yaml").is_file() else run
    if not (model / "config.json").is_file() or not (model / "model.safetensors").is_file():
        what = "its training has not finished" if model != run else "it has no config.json and model.safetensors"
        raise ModelError(f"there is no trained model in {run}: {what}")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": _AUTO_MAP}, indent=2) + "\n", encoding="utf-8"
    )
    shutil.copyfile(_REMOTE_CODE, folder / _REMOTE_CODE.name)
    if model == run:
        if card is None:
            (folder / "README.md").write_text(f"---\nlibrary_name: nlp_mtl\n---\n\n# {repo_id}\n", encoding="utf-8")
        return
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    plots = sorted(run.glob("plots/*.png"))
    for plot in plots:
        (folder / "plots").mkdir(exist_ok=True)
        shutil.copyfile(plot, folder / "plots" / plot.name)
    # Without the folders of the machine that it ran on.
    recipe |= {"data_dir": ".", "output_dir": f"runs/{run.absolute().name}"}
    (folder / "recipe.yaml").write_text(as_yaml(recipe), encoding="utf-8")
    del results["command"]
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    body = card_body(recipe, results, config, repo_id, [f"plots/{plot.name}" for plot in plots])
    text = merged(card, card_data(recipe, results, about, repo_id), body)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _card_there(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    try:
        path = _asked(lambda: api.hf_hub_download(repo_id, "README.md", revision=revision))
    except EntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8")


def _refused(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code if error.response is not None else 0
    if isinstance(error, GatedRepoError):
        return f"`{repo_id}` is gated: ask for access on its page"
    if isinstance(error, RevisionNotFoundError):
        return f"`{repo_id}` has no such revision"
    if status == 401:
        return "the Hub does not accept the token, or there is none: run `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"the token may not write to `{repo_id}`: it needs the role `write`, and the name has to be your own"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"there is no repository `{repo_id}` that you can see"
    return f"the Hub answered {status}: {first_line(error)}"
