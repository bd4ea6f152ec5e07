"""Files of models, from a folder or the Hub: asked for again where that helps, refused where they are hostile."""

import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from nlp_mtl.errors import ModelError, first_line
from nlp_mtl.retrying import Answer, retried

logger = logging.getLogger(__name__)

UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
    SafetensorError, pickle.UnpicklingError, HfHubHTTPError, HFValidationError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for files that are missing, cut, of another model, or out of reach."""

_PATIENCE = 10
"""Seconds for an answer of the Hub, whatever it is."""
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def weights_from(load: Callable[[], Answer]) -> Answer:
    """What transformers loads; asked again where the Hub is busy.

    For a model that has only pickles, transformers would ask a service to convert them, and give it the token.
    """
    before = os.environ.get(_NO_CONVERSION)
    os.environ[_NO_CONVERSION] = "true"
    try:
        return retried(load)
    finally:
        if before is None:
            del os.environ[_NO_CONVERSION]
        else:
            os.environ[_NO_CONVERSION] = before


def only_cached(name: str, revision: str | None = None) -> bool:
    """Whether a model of the Hub is in the cache, and the Hub cannot be reached.

    Its client asks for each file anew, and waits half a minute for each answer that does not come.
    """
    if is_offline_mode() or not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except HTTPError:
        logger.warning("The Hub cannot be reached: the copy of `%s` in the cache is taken", name)
        return True
    return False


def file_of(name: str, file: str, revision: str | None = None, local_files_only: bool = False) -> Path | None:
    """A file of a model, which is a folder or on the Hub; None: it has none of that name."""
    found = retried(
        lambda: cached_file(
            name, file, revision=revision or "main", local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )
    )  # fmt: skip
    return None if found is None else Path(found)


def check_shards(
    name: str, config: PreTrainedConfig, revision: str | None = None, local_files_only: bool = False
) -> None:
    """Refuse weights in several files of which one lies outside the model: its index is not to be trusted.

    Raises:
        ModelError: it names one, or its config.json names the weights' files itself.
    """
    if getattr(config, "transformers_weights", None):
        raise ModelError(f"`{name}` is refused: its config.json names other weights, {config.transformers_weights}")
    for index in _INDICES:
        found = file_of(name, index, revision, local_files_only)
        if found is None:
            continue
        try:
            files = {str(file) for file in json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"`{name}` cannot be loaded: its {index} cannot be read: {first_line(error)}") from error
        for file in sorted(files):
            path = PurePosixPath(file.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in file:
                raise ModelError(f"`{name}` is refused: its {index} names a file outside the model: {file}")


def cannot_load(what: str, name: str, error: Exception) -> ModelError:
    """The error for a model or a part of one that cannot be loaded, with what may help."""
    reasons = list(_reasons(error))
    told = _told_by_the_hub(name, reasons)
    if told:
        return ModelError(f"{what} `{name}` cannot be loaded: {told}")
    if isinstance(error.__cause__, LocalEntryNotFoundError) or "connect" in str(error):
        return ModelError(
            f"{what} `{name}` cannot be loaded: there is no such folder here, it is not in the cache, and the Hub "
            "cannot be reached (a folder's path starts with ./ ../ or /; HF_HUB_OFFLINE=1 uses the cache at once)"
        )
    if isinstance(error, SafetensorError):
        return ModelError(
            f"{what} `{name}` cannot be loaded: its weights are damaged ({first_line(error)}). Copy or save them anew"
        )
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        return ModelError(f"{what} `{name}` cannot be loaded: the folder has no config.json")
    if "safetensors" in str(error) and ("named" in str(error) or "not found" in str(error)):
        return ModelError(
            f"{what} `{name}` cannot be loaded: it has no model.safetensors, and other formats (pytorch_model.bin) are "
            "pickles, which can run code and are not read. For many models the Hub's own conversion waits as a pull "
            "request: its revision is refs/pr/N, as the Community tab of the model's page shows"
        )
    if Path(name).is_dir() or name.startswith("package:"):
        return ModelError(f"{what} `{name}` cannot be loaded: {first_line(error)}")
    return ModelError(
        f"{what} `{name}` cannot be loaded: {first_line(error)} (there is no folder `{name}` here, so it was looked "
        "for on the Hub)"
    )


def _told_by_the_hub(name: str, reasons: list[BaseException]) -> str | None:
    for reason in reasons:
        if isinstance(reason, GatedRepoError):
            return "it is gated. Ask for access on its page on the Hub, then run `hf auth login` or set HF_TOKEN"
        if isinstance(reason, RevisionNotFoundError):
            return f"it has no such revision on the Hub ({first_line(reason.__context__ or reason)})"
        if isinstance(reason, RepositoryNotFoundError):
            return (
                f"there is no folder `{name}` here, and no such model on the Hub that you can see. Check the id; for a "
                "private one run `hf auth login` or set HF_TOKEN"
            )
    return None


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
