"""One sentence in, a proven recipe out: contrast set, candidates, weights, strength, proof, in that order.

Prompts are split once: weights are trained on some, the strength is chosen on others, and the proof uses neither.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from steersman.auto.examples import written_examples
from steersman.auto.expand import expanded, queries_of
from steersman.auto.facts import AutoResult, Behaviour, Candidate, ContrastSet, Evidence, Report, Tuned
from steersman.auto.kept import Kept
from steersman.auto.optimise.gradient import Gradient
from steersman.auto.prompts import Prompts, choice_questions, split_prompts
from steersman.auto.prove import prove, proving_judges
from steersman.auto.retrieve import RetrievalSettings, retrieve
from steersman.auto.strength import choose_strength, trained_norm
from steersman.auto.task import Optimiser, Task
from steersman.auto.writing import SLOTS
from steersman.engine.engine import Engine, EngineLimits
from steersman.engine.likelihood import choice_accuracy
from steersman.errors import DataError, EndpointError
from steersman.facts import fact
from steersman.judges.facts import Judge
from steersman.judges.local import LocalJudge, QuickJudge
from steersman.models.asking import Ask
from steersman.models.language_model import LanguageModel
from steersman.models.sentence_encoder import SentenceEncoder, load_encoder
from steersman.sae.index.file import load_index
from steersman.sae.library import find_sae
from steersman.steering.edits import Add
from steersman.steering.recipe import Recipe
from steersman.version import __version__


@fact
class AutoSettings:
    """How much is done; the defaults take little more than a minute on two cores with the bundled model."""

    train: int = 24
    """Prompts that weights are trained on."""
    validation: int = 8
    """Prompts that decide when to stop, and how strong."""
    test: int = 16
    """Prompts of the proof."""
    choices: int = 120
    """Multiple-choice questions of the proof; 0 leaves them out."""
    retrieval: RetrievalSettings = RetrievalSettings()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 2:
                raise DataError(f"{name} must be at least 2 prompts, not {getattr(self, name)}")
        if self.choices < 0:
            raise DataError(f"choices must be 0 or more, not {self.choices}")


def autosteer(
    model: LanguageModel | Engine,
    behaviour: str | Behaviour,
    *,
    sae: str = "default",
    encoder: SentenceEncoder | None = None,
    judge: Judge | None = None,
    optimiser: Optimiser | None = None,
    contrast: ContrastSet | Ask | None = None,
    ask: Ask | None = None,
    settings: AutoSettings | None = None,
    report: Report | None = None,
    folder: Path | None = None,
) -> AutoResult:
    """Find, tune and prove a recipe for a behaviour.

    Args:
        model: what is steered; an engine (`writing.SLOTS` slots are a good number), or the model itself.
        behaviour: in a sentence.
        sae: name of an indexed SAE of the model, or its folder.
        encoder: sentence encoder; by default the bundled one.
        judge: decides while tuning; by default likelihood and coherence by the model itself. The proof adds a second judge.
        optimiser: chooses the weights; by default `Gradient`.
        contrast: examples of the behaviour, or a language model that writes them; by default the model's own answers.
        ask: a language model that thinks of more words to search features by; without one, the description is searched for.
        settings: how much is done.
        report: called with what happens, as it happens.
        folder: where the stages' results are kept; asked the same again, the work goes on behind the last that was finished.

    Raises:
        DataError: an empty behaviour, or one that the model does not show even when it is told to.
        SaeError: no such SAE, one of another model, or one without an index.
        EndpointError: the language model that is to write examples does not answer.
    """
    settings, said = settings or AutoSettings(), _Log(report)
    wanted = behaviour if isinstance(behaviour, Behaviour) else Behaviour(description=behaviour)
    engine = model if isinstance(model, Engine) else Engine(model, EngineLimits(slots=SLOTS))
    entry = find_sae(sae)
    said.stage("loading")
    loaded = entry.load(str(engine.model.device))
    loaded.check_fits(engine.model.ref)
    index = load_index(entry.index_folder, loaded.ref(entry.name))
    encoder, tuner = encoder or load_encoder(), optimiser or Gradient()
    screen, judge = judge or QuickJudge(engine), judge or LocalJudge(engine, encoder)
    prompts = split_prompts(settings.seed, settings.train, settings.validation, settings.test)
    asked = [__version__, wanted, settings, engine.model.ref, index.facts.sae, judge.name, tuner, contrast, ask]
    kept = Kept(folder, asked)
    said.stage("contrast set")
    examples = (
        contrast
        if isinstance(contrast, ContrastSet)
        else kept.stage(
            "contrast", ContrastSet, lambda: written_examples(engine, wanted, prompts, screen, said, contrast)
        )
    )
    task = Task(wanted, engine, loaded, index, judge, examples, settings.seed, said)
    said.stage("candidates")
    candidates = kept.stage("candidates", list[Candidate], lambda: _candidates(task, encoder, settings, ask))
    said("candidates", {"features": TypeAdapter(list[Candidate]).dump_python(candidates, mode="json")})
    said.stage("weights")
    tuned = kept.stage("weights", Tuned, lambda: tuner.tune(task, candidates))
    said.stage("strength")
    recipe = task.recipe(tuned.weights, 1.0, method=f"autosteer/{tuned.method}")
    around = tuned.strength or trained_norm(task, tuned.weights)
    strength, tried = kept.stage(
        "strength",
        tuple[float, dict[float, float]],
        lambda: choose_strength(task, recipe, prompts.validation, around),
    )
    recipe = task.recipe(tuned.weights, strength or _weakest(tried), method=recipe.method)
    said.stage("proof")
    evidence = _proof(task, recipe, prompts, encoder, settings)
    if not strength:
        why = "no strength improved on plain answers to the validation prompts; the weakest that was tried is reported"
        evidence = replace(evidence, verdict="no effect", why=why)
    edit = recipe.edits[0]
    assert isinstance(edit, Add)
    result = AutoResult(
        behaviour=wanted,
        recipe=_with_evidence(recipe, evidence, settings, examples),
        features=edit.features,
        strength=edit.strength,
        contrast=examples,
        candidates=tuple(candidates),
        history=tuned.history,
        strengths=tried,
        evidence=evidence,
        seconds=said.seconds,
        log=said.entries,
    )
    said("result", {"verdict": evidence.verdict, "why": evidence.why, "seconds": result.seconds})
    return result


class _Log:
    """Keeps what is reported, and passes it on."""

    def __init__(self, report: Report | None) -> None:
        self._report, self._began = report, time.perf_counter()
        self._entries: list[dict[str, JsonValue]] = []

    def __call__(self, name: str, facts: dict[str, JsonValue]) -> None:
        self._entries.append({"event": name, "seconds": round(self.seconds, 2), **facts})
        if self._report is not None:
            self._report(name, facts)

    def stage(self, name: str) -> None:
        """A new part of the work begins."""
        self("stage", {"name": name, "seconds": round(self.seconds, 2)})

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._began

    @property
    def entries(self) -> tuple[dict[str, JsonValue], ...]:
        """All that was reported."""
        return tuple(self._entries)


def _candidates(task: Task, encoder: SentenceEncoder, settings: AutoSettings, ask: Ask | None) -> list[Candidate]:
    queries = queries_of(task.behaviour)
    if ask is not None and settings.retrieval.search:
        try:
            queries = expanded(ask, task.behaviour)
        except EndpointError as error:  # The search is a help, not a need.
            task.report("search", {"expanded": False, "why": str(error)})
        else:
            task.report("search", {"expanded": True, "queries": [query.text for query in queries]})
    return retrieve(task, encoder, settings.retrieval, queries)


def _proof(task: Task, recipe: Recipe, prompts: Prompts, encoder: SentenceEncoder, settings: AutoSettings) -> Evidence:
    questions = choice_questions()[: settings.choices]
    choices = (lambda steered: choice_accuracy(task.engine, questions, steered)) if questions else None
    return prove(task, recipe, prompts.test, proving_judges(task, encoder), choices, len(questions))


def _weakest(tried: dict[float, float]) -> float:
    return min(length for length in tried if length)


def _with_evidence(recipe: Recipe, evidence: Evidence, settings: AutoSettings, examples: ContrastSet) -> Recipe:
    data: dict[str, JsonValue] = {
        "settings": TypeAdapter(AutoSettings).dump_python(settings, mode="json"),
        "examples": {"train": len(examples.train), "validation": len(examples.validation), "source": examples.source},
    }
    return replace(recipe, data=data, evidence=TypeAdapter(Evidence).dump_python(evidence, mode="json"))
