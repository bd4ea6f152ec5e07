"""Repositories on the Hub: made, read, and written in one commit each, with errors that say what to do."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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

from nlp_mtl.errors import HubError, first_line
from nlp_mtl.retrying import UNANSWERED, retried

logger = logging.getLogger(__name__)
_asked = partial(retried, also_unreachable=True)


class DatasetFacts(NamedTuple):
    """What a dataset's page on the Hub tells."""

    license: str | None = None
    languages: tuple[str, ...] = ()


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
        """Make the repository, and the branch, where there is none.

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

    def card(self) -> str | None:
        """The model card that is there.

        Raises:
            HubError: the Hub refused, or could not be reached.
        """
        with self._told():
            try:
                path = _asked(lambda: self._api.hf_hub_download(self.repo_id, "README.md", revision=self.revision))
            except EntryNotFoundError:
                return None
            return Path(path).read_text(encoding="utf-8")

    def dataset_facts(self, ids: Iterable[str]) -> dict[str, DatasetFacts]:
        """What the pages of datasets tell; of one that cannot be seen, nothing.

        Raises:
            HubError: the Hub could not be reached.
        """
        found = {}
        for name in ids:
            try:
                with self._told():
                    card = _asked(lambda name=name: self._api.dataset_info(name)).card_data  # type: ignore[misc]
            except HubError as error:
                if isinstance(error.__cause__, RepositoryNotFoundError):  # gated ones as well
                    continue
                raise
            if card is not None:
                found[name] = DatasetFacts(", ".join(_texts(card.get("license"))) or None, _texts(card.get("language")))
        return found

    def upload(self, folder: Path, commit_message: str) -> str:
        """Write all files of a folder in one commit; returns the address of the commit, or of the pull request.

        Raises:
            HubError: the Hub refused, or could not be reached. Nothing was written.
        """
        operations = [
            CommitOperationAdd(path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        with self._told():
            commit = _asked(
                lambda: self._api.create_commit(
                    self.repo_id, operations, commit_message=commit_message,
                    revision=self.revision, create_pr=self.create_pr,
                )
            )  # fmt: skip
        return str(commit.pr_url or commit.commit_url)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the client raises, in our words."""
        again = self.again
        try:
            yield
        except HFValidationError as error:
            raise HubError(f"{self.repo_id!r} is no id of a repository (user/name): {first_line(error)}") from error
        except LocalTokenNotFoundError as error:
            raise HubError(
                f"there is no token to push with: run `hf auth login`, or set HF_TOKEN; then {again}"
            ) from error
        except HfHubHTTPError as error:
            raise HubError(f"{_refused(error, self.repo_id)}. Nothing was pushed; {again}") from error
        except (*UNANSWERED, ValueError) as error:  # no answer, or one that is none of the Hub's
            raise HubError(
                f"the Hub could not be reached ({first_line(error)}). Nothing was pushed; {again}"
            ) from error


def _texts(value: Any) -> tuple[str, ...]:
    """A value of a card's header that may be a text or a list of them."""
    return tuple(str(one) for one in (value if isinstance(value, list) else [value]) if one is not None)


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
