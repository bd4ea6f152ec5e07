"""A run's way to the Hub, as its recipe's ``hub`` says: at the end, and with every save if that is wanted."""

import json
import logging
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_mtl.errors import ModelError, NlpMtlError, RunError
from nlp_mtl.hub.card import encoder_card, model_card
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.card_text import as_yaml, merged
from nlp_mtl.hub.portable import portable_recipe, portable_results
from nlp_mtl.hub.pushing import push_to
from nlp_mtl.hub.repository import Repository
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_parts import HubSpec
from nlp_mtl.run_folder import save_model, save_plots
from nlp_mtl.storage import write_text, written_folder

logger = logging.getLogger(__name__)
_PUSHING = "pushing"


class RunPusher:
    """Pushes a run's model. On one process of a run."""

    def __init__(self, recipe: Recipe, hub: HubSpec, output_dir: Path) -> None:
        """Make the repository, where there is none. What the Hub refuses is told before anything is trained.

        Raises:
            HubError: the Hub refused, or could not be reached.
        """
        self.recipe, self.hub, self.output_dir = recipe, hub, output_dir
        self._repository = Repository(
            hub.repo_id,
            again="run it again, or leave `hub` out and push the run when it is trained",
            private=hub.private,
            revision=hub.revision,
            create_pr=hub.create_pr,
        )
        about = {"license": hub.license, "language": hub.language, "tags": hub.tags}
        header = as_yaml({"library_name": "nlp_mtl", **{key: value for key, value in about.items() if value}})
        self._repository.check_card(f"---\n{header}---\n")
        self._message = hub.commit_message or f"Model of nlp_mtl ({output_dir.name})"
        self._about = About(hub.license, tuple(hub.language), tuple(hub.tags))
        self._sending: Thread | None = None
        self._sent = 0

    def send(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weights: dict[str, torch.Tensor] | None,
        results: Mapping[str, Any],
    ) -> None:
        """Push a model whose training goes on meanwhile. While the last one is under way, this one is left out.

        A push that fails is told, and training goes on: the next save is pushed again.

        Args:
            weights: the model's, where it holds only a part of them itself.
            results: as ``results.json`` has them at the end.
        """
        step = results["step"]
        if self._sending is not None and self._sending.is_alive():
            logger.info("Step %d is not pushed: the push of step %d is still under way", step, self._sent)
            return
        try:
            with written_folder(self._folder) as folder:
                save_model(folder / "model", model, tokenizer, weights)
                write_text(folder / "recipe.yaml", self.recipe.to_yaml())
                write_text(folder / "results.json", json.dumps(results))
                save_plots(folder, results["main_metrics"], self.output_dir / "metrics.jsonl")
        except RunError as error:
            logger.warning("Step %d was not pushed, training goes on: %s", step, error)
            return
        # Of a process that ends meanwhile, nothing arrives: a commit is made at the end of a push.
        self._sending = Thread(target=self._push, args=(step,), daemon=True)
        self._sent = step
        self._sending.start()

    def finish(self) -> str:
        """Push the run that is done; returns the address of the commit.

        Raises:
            HubError: the Hub refused, or could not be reached. The run is intact.
            ModelError: the card in the repository cannot be kept.
        """
        if self._sending is not None:
            self._sending.join()
        self._repository.again = (
            f"the run is complete; push it again: {shlex.join(['nlp-mtl', 'push', str(self.recipe.output_dir)])}"
        )
        return push_to(self._repository, self.output_dir, self._message, self._about)

    @property
    def _folder(self) -> Path:
        """What is being pushed, laid out as a run folder, under its name."""
        return self.output_dir / _PUSHING / self.output_dir.name

    def _push(self, step: int) -> None:
        try:
            address = push_to(self._repository, self._folder, f"{self._message}: step {step}", self._about)
        except NlpMtlError as error:
            logger.warning("Step %d was not pushed, training goes on: %s", step, error)
        else:
            logger.info("Step %d is pushed: %s", step, address)


def remove_pushing(output_dir: Path) -> None:
    """Remove what was written to be sent, also by a run that was killed meanwhile."""
    shutil.rmtree(output_dir / _PUSHING, ignore_errors=True)


def run_card(run: Path, recipe: Recipe, results: Mapping[str, Any], model: PreTrainedModel) -> str:
    """The model card that a run folder keeps; what its owner wrote into one that is there stays."""
    file = run / "model" / "README.md"
    old = file.read_text(encoding="utf-8") if file.is_file() else None
    config = model.config.to_dict()
    card_of = encoder_card if config.get("meta_learned") else model_card
    made = card_of(
        config, f"USER/{run.name}", about=About(),
        recipe=portable_recipe(recipe.to_dict(), run.name), results=portable_results(results),
    )  # fmt: skip
    try:
        return merged(old, *made, where=str(file))
    except ModelError as error:  # no reason to lose a model that is trained
        logger.warning("The model card is left as it is: %s", error)
        assert old is not None
        return old
