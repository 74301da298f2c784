"""What methods fit from: the model, the behaviour with its examples, the SAE, the prompts that are theirs to use.

Knows nothing of the methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from steersman.auto.contrast_set import make_contrast_set
from steersman.auto.facts import Behaviour, ContrastSet
from steersman.auto.prompts import distinct_prompts, general_prompts, normalised
from steersman.auto.task import Task
from steersman.engine.engine import Engine
from steersman.errors import DataError, SaeError
from steersman.evals.behaviours import NEUTRAL_PROMPT, EvalBehaviour
from steersman.evals.facts import Asked, EvalSettings, Fitted, Progress
from steersman.evals.store import RunFolder, cache_key, content_hash
from steersman.evals.sweep import answer_all
from steersman.files import sha256_file
from steersman.judges.facts import Judge
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.model import SparseAutoencoder

_EXAMPLE_TOKENS = 48
_CONTRAST = TypeAdapter(ContrastSet)


@dataclass(frozen=True, slots=True)
class Context:
    """One behaviour, one model, one seed."""

    behaviour: EvalBehaviour
    """Its examples are there, whoever wrote them."""
    contrast: ContrastSet
    """The same examples, to train on and to validate with."""
    engine: Engine
    encoder: TextEncoder
    judge: Judge
    """For methods that tune with one."""
    layer: int
    prompts: tuple[str, ...]
    """Tuning prompts: none of them is evaluated on."""
    seed: int
    sae: SparseAutoencoder | None = None
    index: FeatureIndex | None = None
    effects: Path | None = None
    """Where the SAE's effect map is, or would be."""
    without_sae: str = "no SAE was given; name one with --sae"
    """Why there is no SAE or index."""
    fitted: tuple[Fitted, ...] = field(default=())
    """What the methods before this one came to."""

    def task(self) -> Task:
        """The same for auto-steering's parts.

        Raises:
            SaeError: there is no SAE, or none with an index.
        """
        if self.sae is None or self.index is None:
            raise SaeError(self.without_sae)
        wanted = Behaviour(description=self.behaviour.description)
        return Task(wanted, self.engine, self.sae, self.index, self.judge, self.contrast, self.seed, lambda *_: None)

    @property
    def identity(self) -> JsonValue:
        """All that decides what any method comes to. An effect map decides some only (`effects_sha256`)."""
        model = self.engine.model
        sae = None if self.sae is None else self.sae.weights_hash
        examples = asdict(self.contrast)
        return [
            model.ref.config_hash, model.ref.weights_hash, str(model.hf.dtype), sae, self.layer,
            self.seed, self.behaviour.sha256, content_hash(examples), list(self.prompts), self.judge.name,
        ]  # fmt: skip

    @property
    def effects_sha256(self) -> str | None:
        """Of the effect map; None where there is none."""
        return sha256_file(self.effects) if self.effects is not None and self.effects.is_file() else None


@dataclass(frozen=True, slots=True)
class PromptSets:
    """Prompts for tuning and for the evaluation; they share none."""

    tuning: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def prompt_sets(settings: EvalSettings, behaviour: EvalBehaviour, own: Sequence[str] | None = None) -> PromptSets:
    """Prompts at random for each purpose.

    Args:
        settings: how many, and the seed.
        behaviour: prompts of its examples are not evaluated on.
        own: the user's prompts to evaluate on; by default general ones that ship.

    Raises:
        DataError: too few different prompts.
    """
    used = {normalised(item.prompt) for item in behaviour.items}
    there = [p for p in distinct_prompts(general_prompts() if own is None else own) if normalised(p) not in used]
    if len(there) < settings.prompts:
        raise DataError(
            f"there are {len(there)} prompts that no example uses, but {settings.prompts} are to be evaluated on; "
            "give more, or ask for fewer (--prompts)"
        )
    made = random.Random(settings.seed)
    order = made.sample(there, len(there))
    test = tuple(order[: settings.prompts])
    taken = used | {normalised(prompt) for prompt in test}
    rest = [prompt for prompt in distinct_prompts(general_prompts()) if normalised(prompt) not in taken]
    rest = made.sample(rest, len(rest))
    return PromptSets(tuple(rest[: settings.tuning]), tuple(rest[settings.tuning :][: settings.validation]), test)


def with_examples(
    behaviour: EvalBehaviour,
    engine: Engine,
    judge: Judge,
    sets: PromptSets,
    kept: RunFolder,
    progress: Progress | None = None,
) -> tuple[EvalBehaviour, ContrastSet]:
    """The behaviour with examples: its own, or the model's answers when told to behave so, written once for a folder.

    Raises:
        DataError: the model does not show the behaviour even when it is told to.
        StorageError: the disk refused.
    """
    if behaviour.items:
        return behaviour, behaviour.contrast
    model = engine.model
    prompts = {"train": sets.tuning, "validation": sets.validation}
    asked: JsonValue = [model.ref.weights_hash, str(model.hf.dtype), judge.name, [list(p) for p in prompts.values()]]
    key = cache_key(["examples", behaviour.sha256, asked])
    examples = _kept_contrast(kept.notes.get(key))
    if examples is None:

        def answers(wanted: Sequence[tuple[str, str | None]]) -> list[str]:
            jobs = [Asked(prompt, system=system) for prompt, system in wanted]
            written = answer_all(
                engine, jobs, tokens=_EXAMPLE_TOKENS, kept=kept.answers, progress=progress, title="examples"
            )
            return [each.text or "" for each in written]

        wanted = Behaviour(description=behaviour.description)
        examples = make_contrast_set(wanted, prompts, answers, judge, lambda *_: None)
        kept.notes.put({key: asdict(examples)})
    items = examples.train + examples.validation
    return replace(behaviour, items=items, source=f"{len(items)} of the model's own answers"), examples


def is_plain_text(behaviour: EvalBehaviour) -> bool:
    """Whether the examples are texts that answer nothing in particular."""
    return all(item.prompt == NEUTRAL_PROMPT for item in behaviour.items)


def _kept_contrast(value: JsonValue) -> ContrastSet | None:
    try:
        return None if value is None else _CONTRAST.validate_python(value)
    except ValidationError:
        return None
