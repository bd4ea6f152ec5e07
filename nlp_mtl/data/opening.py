"""The splits of a dataset as they are found: on the Hub, in a folder, in files; read, or opened as streams."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from nlp_mtl.data.files import FORMATS, check_utf8, find_files, format_of, load_local, read_files, reader_of
from nlp_mtl.data.stream_sources import LibrarySource, Source, TextSource, known_size
from nlp_mtl.data.text_files import TEXT_FORMATS
from nlp_mtl.errors import DataError, did_you_mean, first_line, listed
from nlp_mtl.retrying import retried

logger = logging.getLogger(__name__)

PARQUET_COPY = "refs/convert/parquet"
"""The revision of the Hub's own Parquet copies, which have a folder for each configuration."""

_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}


class Opened(NamedTuple):
    """The splits of a dataset."""

    own_names: dict[str, str]
    """``{split: the dataset's own name}``"""
    parts: dict[str, dict[str, datasets.Dataset]]
    """``{own name: {file: rows}}``; the file is empty for data from the Hub or a folder."""
    streams: dict[str, Source]
    """``{own name: source}`` of those that were not read."""


def open_splits(
    dataset: str,
    *,
    path: str | None,
    name: str | None,
    revision: str | None,
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    data_dir: str,
    columns: Sequence[str] | None,
    delimiter: str | None,
    splits: Mapping[str, str | None],
    streaming: bool,
) -> Opened:
    """Find a dataset; arguments as in :func:`nlp_mtl.data.loading.load_splits`.

    Raises:
        DataError: it cannot be read, or has no split of a usual name.
    """
    if data_files is None or not (path is None or path in FORMATS):
        assert path is not None, "path or data_files"
        for key, told in (("columns", columns), ("delimiter", delimiter)):
            if told:
                raise DataError(f"dataset `{dataset}`: `{key}` is for CSV, TSV and CoNLL files, named by `data_files`")
        source = load_source(dataset, path, name, revision, data_files, data_dir, streaming)
        own_names = _name_splits(dataset, source, splits)
        if not streaming:
            return Opened(own_names, {own: source[own] for own in own_names.values()}, {})
        streams: dict[str, Source] = {
            own: LibrarySource(f"dataset `{dataset}`, split {own}", source[own], num_rows=known_size(source[own], own))
            for own in own_names.values()
        }
        return Opened(own_names, {}, streams)
    for key, value in (("name", name), ("revision", revision)):
        if value is not None:
            raise DataError(f"dataset `{dataset}`: `{key}` is for datasets on the Hub; these are files")
    given = dict(data_files) if isinstance(data_files, Mapping) else {"train": data_files}
    own_names, streams = _name_splits(dataset, given, splits), {}
    if streaming and "train" in own_names:
        own = own_names["train"]
        streams[own] = _stream_files(dataset, own, path, given.pop(own), data_dir, columns, delimiter)
    parts = read_files(dataset, path, given, data_dir, columns, delimiter) if given else {}
    return Opened(own_names, parts, streams)


def is_on_hub(path: str | None, data_dir: str) -> bool:
    """Whether a dataset's path is an id on the Hub: neither a format nor a folder."""
    return path is not None and path not in FORMATS and not (Path(data_dir) / Path(path).expanduser()).is_dir()


def _stream_files(
    dataset: str,
    split: str,
    path: str | None,
    patterns: str | Sequence[str],
    data_dir: str,
    columns: Sequence[str] | None,
    delimiter: str | None,
) -> Source:
    """The files of a split as a stream."""
    place = f"dataset `{dataset}`, split {split}"
    files = find_files(dataset, patterns, data_dir)
    forms = {path or format_of(dataset, file): file for file in files}
    if len(forms) > 1:
        raise DataError(
            f"{place}: a streamed split has files of one format; these are {listed(forms)}: {listed(forms.values())}"
        )
    for file in files:
        if "://" not in file and not Path(file).stat().st_size:
            raise DataError(f"{place}: {file} is empty")
    form = next(iter(forms))
    reader_of(dataset, files[0], form, columns, delimiter)  # refuses what does not go with the format
    if form in TEXT_FORMATS:
        return TextSource(place, tuple(files), form, tuple(columns or ()), delimiter)
    rows = datasets.load_dataset(form, data_files={"train": files}, split="train", streaming=True)
    return LibrarySource(place, rows, tuple(file for file in files if "://" not in file))


def _name_splits(dataset: str, source: Mapping[str, Any], splits: Mapping[str, str | None]) -> dict[str, str]:
    """Our split names -> the source's."""
    named: dict[str, str] = {}
    for split, aliases in _ALIASES.items():
        if split in splits:
            own_name = splits[split]
            if own_name is None:
                continue
            if own_name not in source:
                raise DataError(
                    f"dataset `{dataset}` has no split `{own_name}`; it has {listed(source)}."
                    + did_you_mean(own_name, source)
                )
            named[split] = own_name
        else:
            found = [alias for alias in aliases if alias in source and alias not in splits.values()]
            named |= {split: found[0]} if found else {}
    if not named:
        raise DataError(
            f"dataset `{dataset}` has the splits {listed(source)}, none of which is a usual name; "
            "say which is which with `splits: {train: ...}`"
        )
    return named


def load_source(
    dataset: str, path: str, name: str | None, revision: str | None, data_files: Any, data_dir: str, streaming: bool
) -> dict[str, Any]:
    """The splits of a folder or of a dataset on the Hub: ``{split: {"": rows}}``, or streams, ``{split: rows}``."""
    folder = Path(data_dir) / Path(path).expanduser()
    if folder.is_file():
        raise DataError(f"dataset `{dataset}`: `{path}` is a file; say `data_files: {path}`")
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise DataError(f"dataset `{dataset}`: there is no folder {folder}. Is `data_dir` right?")
    if not folder.is_dir() and data_files is not None and "/" not in path:
        raise DataError(
            f"dataset `{dataset}`: `path: {path}` is neither a folder nor a known format; formats are "
            f"{listed(FORMATS)}, and a Hub id has the form owner/name.{did_you_mean(path, FORMATS)}"
        )
    source = str(folder) if folder.is_dir() else path
    if folder.is_dir() and revision is not None:
        raise DataError(f"dataset `{dataset}`: `revision` is for datasets on the Hub; {folder} is a folder")
    if source == path:
        logger.info("%s: looking for %s on the Hub", dataset, path)
    try:
        options = {"name": name, "data_files": data_files}
        if folder.is_dir() and not streaming:
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            loaded: Any = load_local(source, files, **options)
            json_files = [str(file) for file in files if {".json", ".jsonl"} & {*file.suffixes}]
            for split, rows in loaded.items() if json_files else ():
                check_utf8(f"dataset `{dataset}`, split {split}", rows, *json_files)
        else:
            if name is not None and revision == PARQUET_COPY:
                options = {"data_dir": name, "data_files": data_files}
            loaded = retried(
                lambda: datasets.load_dataset(source, revision=revision, **options, streaming=streaming)  # type: ignore[call-overload]
            )
    except DatasetGenerationError as error:
        raise DataError(f"dataset `{dataset}` cannot be read: {first_line(error.__cause__ or error)}") from error
    except DatasetNotFoundError as error:
        raise DataError(
            f"dataset `{dataset}`: `{path}` is neither a folder here nor a dataset on the Hub that you "
            f"can see ({first_line(error)}). Check the id; for a gated or private one run `hf auth login`"
        ) from error
    except (ConnectionError, HfHubHTTPError, OfflineModeIsEnabled, TimeoutError) as error:
        raise DataError(
            f"dataset `{dataset}`: `{path}` is no folder here and could not be fetched, the Hub cannot be reached "
            f"({first_line(error)}). Is the network up?"
        ) from error
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise DataError(
            f"dataset `{dataset}`: `{path}` needs a loading script, which `datasets` no longer runs. The Hub "
            f"keeps a Parquet copy of most of them: add `revision: {PARQUET_COPY}`"
        ) from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise DataError(f"dataset `{dataset}`: the metadata of its README.md are not valid YAML: {problem}") from error
    except (ValueError, OSError, EOFError, ImportError) as error:
        problem = first_line(error)
        if problem.startswith("Config name is missing"):  # the next line lists them
            problem = " ".join([*str(error).splitlines()[:2], "Say `name: ONE_OF_THEM`"])
        raise DataError(f"dataset `{dataset}` cannot be loaded: {problem}") from error
    return {str(split): rows if streaming else {"": rows} for split, rows in loaded.items()}
