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

from nlp_mtl.errors import NlpMtlError
from nlp_mtl.hub.card import About
from nlp_mtl.hub.pushing import push_to
from nlp_mtl.hub.repository import Repository
from nlp_mtl.recipe import HubSpec, Recipe
from nlp_mtl.run_folder import save_model, save_plots
from nlp_mtl.storage import write_text, written_folder

logger = logging.getLogger(__name__)


class RunPusher:
    """Pushes a run's model. On one process of a run."""

    def __init__(self, recipe: Recipe, hub: HubSpec, output_dir: Path) -> None:
        """Make the repository, where there is none: what the Hub refuses is told before anything is trained.

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

        Raises:
            RunError: it cannot be written to the run folder, from which it is sent.
        """
        step = results["step"]
        if self._sending is not None and self._sending.is_alive():
            logger.info("Step %d is not pushed: the push of step %d is still under way", step, self._sent)
            return
        with written_folder(self._folder) as folder:
            save_model(folder / "model", model, tokenizer, weights)
            write_text(folder / "recipe.yaml", self.recipe.to_yaml())
            write_text(folder / "results.json", json.dumps(results))
            save_plots(folder, results["main_metrics"], self.output_dir / "metrics.jsonl")
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
        shutil.rmtree(self._folder, ignore_errors=True)
        self._repository.again = (
            f"the run is complete; push it again: {shlex.join(['nlp-mtl', 'push', str(self.recipe.output_dir)])}"
        )
        return push_to(self._repository, self.output_dir, self._message, self._about)

    @property
    def _folder(self) -> Path:
        """What is being pushed, laid out as a run folder, under its name."""
        return self.output_dir / "pushing" / self.output_dir.name

    def _push(self, step: int) -> None:
        try:
            address = push_to(self._repository, self._folder, f"{self._message}: step {step}", self._about)
        except NlpMtlError as error:
            logger.warning("Step %d was not pushed, training goes on: %s", step, error)
        else:
            logger.info("Step %d is pushed: %s", step, address)
