"""What a run logs, sent to experiment trackers as well: by name, through Accelerate."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from nlp_mtl.errors import MissingExtraError, RunError, first_line, listed

Track = Callable[[Mapping[str, Any], int], None]
"""Takes what is logged (possibly nested) and the step."""

_IN_EXTRA = ("tensorboard", "trackio")


def tracking_arguments(names: Sequence[str], output_dir: Path) -> dict[str, Any]:
    """Arguments for ``Accelerator``. Trackers that write files write them to the run's folder ``trackers``.

    Raises:
        MissingExtraError: a tracker is not installed; Accelerate would leave it out and say nothing.
    """
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in available:
            how = "nlp_mtl[trackers]" if name in _IN_EXTRA else name
            raise MissingExtraError(f"training.trackers names `{name}`, which is not installed: pip install '{how}'")
    if not names:
        return {}
    folders = ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "trackers"))
    return {"log_with": list(names), "project_config": folders}


@contextmanager
def tracked(
    accelerator: Accelerator, output_dir: Path, settings: Mapping[str, Any], *, resume: bool
) -> Iterator[Track]:
    """Trackers that run as long as the context; the main process sends, the others do nothing.

    Args:
        output_dir: the run folder; its name is the project's at the trackers.
        settings: the run's recipe, to be shown with it.
        resume: keep the files of trackers that are there.

    Raises:
        RunError: one cannot be started.
    """
    if not accelerator.log_with:
        yield lambda values, step: None
        return
    if accelerator.is_main_process and not resume:
        shutil.rmtree(output_dir / "trackers", ignore_errors=True)
    try:
        accelerator.init_trackers(output_dir.name, {key: _plain(value) for key, value in flat(settings).items()})
    except Exception as error:  # of a library that may be any
        names = listed(accelerator.log_with)
        raise RunError(f"training.trackers: {names} cannot be started: {first_line(error)}") from error
    try:
        yield lambda values, step: accelerator.log(flat(values), step=step)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one: ``{"losses": {"ner": 1.0}}`` becomes ``{"losses/ner": 1.0}``. None is left out."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}/")
        elif value is not None:
            found[f"{above}{key}"] = value
    return found


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
