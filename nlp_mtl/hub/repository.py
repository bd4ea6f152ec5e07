"""Repositories on the Hub: made, read, and written in one commit each, with errors that say what to do."""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from nlp_mtl.errors import HubError, ModelError, first_line
from nlp_mtl.hub.card_text import texts
from nlp_mtl.retrying import UNANSWERED, retried

_asked = partial(retried, also_unreachable=True)
_OURS = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|plots/[^/]+\.png|re(cipe\.yaml|sults\.json)"
)
"""Files that a push makes, and that go where a later one does not bring them: they would be of another model."""


class DatasetFacts(NamedTuple):
    """What a dataset's page on the Hub tells."""

    license: str | None = None
    languages: tuple[str, ...] = ()


class Head(NamedTuple):
    """A repository as it is before it is written to."""

    commit: str
    files: frozenset[str]
    card: str | None


def check_repo_id(repo_id: str) -> None:
    """
    Raises:
        HubError: it is no id of a repository.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise _no_id(repo_id, error) from error


def _no_id(repo_id: str, error: HFValidationError) -> HubError:
    return HubError(f"{repo_id!r} is no id of a repository (user/name): {first_line(error)}")


class Repository:
    """A model repository that is written to.

    The token is the one that `hf auth login` or ``HF_TOKEN`` gave to huggingface_hub.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        again: str,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: bool | str | None = None,
    ) -> None:
        """Make the repository where there is none, and the branch, if nothing is to be a pull request.

        Args:
            repo_id: ``user/name``; ``name`` alone is of the token's user.
            again: what an error advises to do after all.
            private: of a new repository; default: as the account says.
            revision: the branch; default: the main one.
            create_pr: what is written becomes a pull request.
            token: another one than huggingface_hub finds; False: none.

        Raises:
            HubError: the Hub refused, or could not be reached.
        """
        self.revision, self.create_pr, self.again, self.repo_id = revision, create_pr, again, repo_id
        self._api = HfApi(token=token)
        with self._told():
            made = _asked(lambda: self._api.create_repo(repo_id, private=private, exist_ok=True))
            self.repo_id = made.repo_id
            if revision is not None and not create_pr:
                _asked(lambda: self._api.create_branch(self.repo_id, branch=revision, exist_ok=True))

    def head(self) -> Head:
        """What is there now.

        Raises:
            HubError: the Hub refused, or could not be reached.
            ModelError: its card cannot be read.
        """
        with self._told(), tempfile.TemporaryDirectory() as empty:  # no cache: it may hold what was there before
            info = _asked(lambda: self._api.model_info(self.repo_id, revision=self.revision))
            files = frozenset(file.rfilename for file in info.siblings or ())
            card = None
            if "README.md" in files:
                download = partial(self._api.hf_hub_download, self.repo_id, "README.md", cache_dir=empty)
                written = Path(_asked(lambda: download(revision=info.sha))).read_bytes()
                try:
                    card = written.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ModelError(f"the card of {self.repo_id} is not text in UTF-8: mend it first") from error
            return Head(str(info.sha), files, card)

    def dataset_facts(self, ids: Iterable[str]) -> dict[str, DatasetFacts]:
        """What the pages of datasets tell; of one that cannot be seen, nothing: no push fails for that."""
        found = {}
        for name in ids:
            try:
                card = _asked(lambda name=name: self._api.dataset_info(name)).card_data  # type: ignore[misc]
            except (*UNANSWERED, HFValidationError):
                continue
            if card is not None:
                found[name] = DatasetFacts(
                    ", ".join(texts(card.get("license"))) or None, tuple(texts(card.get("language")))
                )
        return found

    def check_card(self, card: str) -> None:
        """Ask the Hub whether a card's metadata are valid.

        Raises:
            HubError: they are not, or it could not be reached.
        """
        with self._told():
            _asked(lambda: ModelCard(card).validate(repo_type="model"))

    def upload(self, folder: Path, commit_message: str, head: Head, description: str | None = None) -> str:
        """Write all files of a folder in one commit; files of an earlier push that it does not hold go.

        Args:
            head: what is there; if anything else is by now, nothing is written.

        Returns:
            the address of the commit, or of the pull request.

        Raises:
            HubError: the Hub refused, or could not be reached.
        """
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        gone = sorted(name for name in head.files if _OURS.fullmatch(name) and name not in files)
        operations += [CommitOperationDelete(name) for name in gone]
        with self._told():
            try:
                commit = _asked(
                    lambda: self._api.create_commit(
                        self.repo_id, operations, commit_message=commit_message, commit_description=description,
                        revision=self.revision, create_pr=self.create_pr, parent_commit=head.commit,
                    )
                )  # fmt: skip
            except HfHubHTTPError as error:
                made = self._newest(commit_message, head) if _status(error) == 412 else None
                if made is None:
                    raise
                return made
        return str(commit.pr_url or commit.commit_url)

    def _newest(self, commit_message: str, head: Head) -> str | None:
        """The address of the newest commit, if it is ours, whose answer was lost; None: it is somebody else's."""
        history = _asked(lambda: self._api.list_repo_commits(self.repo_id, revision=self.revision))
        newest = history[0] if history else None
        if newest is None or newest.title != commit_message.splitlines()[0] or newest.commit_id == head.commit:
            return None
        return f"{self._api.endpoint}/{self.repo_id}/commit/{newest.commit_id}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the client raises, in our words."""
        nothing = f"Nothing was pushed; {self.again}"
        try:
            yield
        except HFValidationError as error:
            raise _no_id(self.repo_id, error) from error
        except LocalTokenNotFoundError as error:
            raise HubError(
                f"there is no token to push with: run `hf auth login`, or set HF_TOKEN; then {self.again}"
            ) from error
        except OfflineModeIsEnabled as error:
            raise HubError(f"HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it, then {self.again}") from error
        except HfHubHTTPError as error:
            raise HubError(f"{_refused(error, self.repo_id)}. {nothing}") from error
        except UNANSWERED as error:
            raise HubError(f"the Hub could not be reached ({first_line(error)}). {nothing}") from error
        except ValueError as error:  # what the client makes of metadata that the Hub refuses
            raise HubError(f"the Hub refuses the model card: {_reasons(str(error))}. {nothing}") from error


def _reasons(told: str) -> str:
    """Why metadata are refused: what the Hub answered, or what its client made of that."""
    try:
        lines = [one["message"] for one in json.loads(told)["errors"]]
    except (ValueError, KeyError, TypeError):
        lines = [line.strip(" -") for line in told.splitlines() if line.strip()]
    return "; ".join(lines)


def _status(error: HfHubHTTPError) -> int:
    return error.response.status_code if error.response is not None else 0


def _refused(error: HfHubHTTPError, repo_id: str) -> str:
    status = _status(error)
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
    if status == 412:
        return f"`{repo_id}` was changed by somebody else meanwhile"
    return f"the Hub answered {status}: {first_line(error)}"
