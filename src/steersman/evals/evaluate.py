"""Compare steering methods on one behaviour: fit, sweep, grade, choose on one half and report on the other, test.

Everything that takes time is kept in a folder by the hash of what made it: an interrupted run goes on where it stopped, and a
method more costs only that method.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.engine.engine import Engine
from steersman.errors import DataError, EndpointError, ModelError, SaeError, did_you_mean
from steersman.evals.battles import fight_all
from steersman.evals.behaviours import EvalBehaviour
from steersman.evals.context import Context, PromptSets, prompt_sets, with_examples
from steersman.evals.facts import Asked, Battle, EvalSettings, Evaluation, Fitted, Grade, Progress, Written
from steersman.evals.methods import DEFAULT_METHODS, fit_all, methods_of
from steersman.evals.score import Panel, grade_all
from steersman.evals.statistics import CrossFit, halves
from steersman.evals.store import RunFolder
from steersman.evals.summary import Swept, results_of, samples_of
from steersman.evals.sweep import answer_all
from steersman.judges.embedding import EmbeddingJudge
from steersman.judges.facts import Judge
from steersman.judges.llm import LlmJudge
from steersman.judges.local import LocalJudge
from steersman.models.asking import Ask
from steersman.models.blocks import check_layer
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.index.facts import FeatureIndex
from steersman.sae.index.file import load_index
from steersman.sae.library import DEFAULT, find_sae
from steersman.sae.model import SparseAutoencoder
from steersman.steering.methods.effect_map_file import MAP_FILE

JUDGES = ("local", "embedding", "llm")
"""By name; several joined by `+` grade together."""
_NOT_IN_BATTLE = ("plain", "random", "wrong-sign")


@dataclass(frozen=True, slots=True)
class Tools:
    """What an evaluation works with beside the model."""

    encoder: TextEncoder
    judges: str = "local"
    """Names of `JUDGES`, joined by `+`."""
    ask: Ask | None = None
    """A language model, for the judge `llm` and for battles."""
    sae: str | None = DEFAULT
    """An SAE's name or folder; None: without. The shipped one is left aside by models that it does not fit."""
    effects: Path | None = None
    """An effect map for `sae-ts`; by default the one in the SAE's folder."""
    battles: bool = False
    """Let the language model compare answers in pairs."""


def evaluate(
    engine: Engine,
    behaviour: EvalBehaviour,
    folder: Path,
    *,
    tools: Tools,
    methods: Sequence[str] = DEFAULT_METHODS,
    settings: EvalSettings | None = None,
    prompts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare methods on a behaviour.

    Args:
        engine: of a chat model.
        behaviour: what to steer to, with or without examples.
        folder: where what was done is kept, and found again.
        tools: judges, encoder, SAE.
        methods: names of `methods.METHODS`; prompting and the plain model are added.
        settings: how much is done.
        prompts: to evaluate on, in place of general ones.
        progress: told what happens.

    Raises:
        DataError: unknown methods or judges, no effect map where one is named, too few prompts, or a behaviour that the model
            does not show even when told to.
        EndpointError: the judge `llm` without a language model.
        ModelError: a model without a chat template, or a layer that it does not have.
        SaeError: an SAE that is not there, or, named by the user, does not fit.
        StorageError: the disk refused.
    """
    began, settings = time.perf_counter(), settings or EvalSettings()
    chosen, names = methods_of(methods), judge_names(tools.judges)
    if tools.ask is None and ("llm" in names or tools.battles):
        raise EndpointError("an LLM judge needs a language model: set STEERSMAN_LLM_URL and STEERSMAN_LLM_MODEL")
    if not engine.model.is_chat:
        raise ModelError(f"{engine.model.name} has no chat template; evaluations ask chat prompts: choose a chat model")
    check_named(tools.sae, tools.effects)
    kept = RunFolder(folder)
    sets = prompt_sets(settings, behaviour, prompts)
    context = _context(engine, behaviour, sets, tools, settings, kept, progress)
    fitted = fit_all(chosen, context, kept, progress)
    panel = panel_of(context, names, tools)
    swept = sweep(panel, fitted, sets.test, settings, kept, progress)
    parts = halves(len(sets.test), settings.seed)
    results, fits = results_of(swept, len(sets.test), parts, settings.seed)
    battles: list[Battle] = []
    if tools.battles and tools.ask is not None:
        answers = {each.fitted.name: _taken(each, fits) for each in swept if each.fitted.name not in _NOT_IN_BATTLE}
        fighting = {name: texts for name, texts in answers.items() if any(texts)}
        battles = fight_all(tools.ask, context.behaviour.criterion, sets.test, fighting, kept.notes, progress)
    shown = context.behaviour
    return Evaluation(
        behaviour=shown.name,
        description=shown.description,
        criterion=shown.criterion,
        examples=f"{len(shown.items)} pairs from {shown.source}"
        + (f", {shown.duplicates} repeated ones left out" if shown.duplicates else ""),
        model=engine.model.name,
        sae=tools.sae if context.sae is not None else None,
        layer=context.layer,
        judges=tuple(judge.name for judge in panel.judges),
        prompts=sets.test,
        halves=parts,
        methods=tuple(results),
        battles=tuple(battles),
        samples=tuple(samples_of(swept, fits, sets.test)),
        settings=settings,
        seconds=time.perf_counter() - began,
    )


def check_named(sae: str | None, effects: Path | None) -> None:
    """Refuse an SAE or an effect map that is not there, before anything is loaded.

    Raises:
        DataError: no effect map.
        SaeError: no SAE of that name.
    """
    if sae is not None:
        find_sae(sae)
    if effects is not None and not effects.is_file():
        raise DataError(f"there is no effect map at {effects}; make one: steersman effects measure, then fit")


def sweep(
    panel: Panel,
    fitted: Sequence[Fitted],
    prompts: Sequence[str],
    settings: EvalSettings,
    kept: RunFolder,
    progress: Progress | None = None,
) -> list[Swept]:
    """Answers and grades of all methods at all strengths on all prompts, written in one batch.

    Raises:
        StorageError: the disk refused.
    """
    cells = [(each, s) for each in fitted if each.error is None for s in each.strengths or settings.strengths]
    asked = [Asked(prompt, each.recipe, s, each.system) for each, s in cells for prompt in prompts]
    written = answer_all(panel.engine, asked, tokens=settings.tokens, kept=kept.answers, progress=progress)
    pairs = list(zip([each.prompt for each in asked], written, strict=True))
    grades = grade_all(panel, pairs, kept.grades, progress)
    n = len(prompts)
    texts: dict[str, dict[float, list[Written]]] = {each.name: {} for each in fitted}
    marks: dict[str, dict[float, list[Grade]]] = {each.name: {} for each in fitted}
    for place, (each, strength) in enumerate(cells):
        part = slice(place * n, (place + 1) * n)
        texts[each.name][strength], marks[each.name][strength] = written[part], grades[part]
    return [Swept(each, texts[each.name], marks[each.name]) for each in fitted]


def judge_names(said: str) -> list[str]:
    """Names of judges, joined by `+`.

    Raises:
        DataError: an unknown one.
    """
    names = [name.strip() for name in said.split("+")]
    for name in names:
        if name not in JUDGES:
            raise DataError(f"unknown judge {name!r}; there are {', '.join(JUDGES)}{did_you_mean(name, JUDGES)}")
    return list(dict.fromkeys(names))


def panel_of(context: Context, names: Sequence[str], tools: Tools) -> Panel:
    """The judges of these names. The embedding judge learns from the examples, which the evaluation's prompts do not touch.

    Raises:
        DataError: too few examples for the embedding judge.
    """
    examples = context.behaviour.items

    def made(name: str) -> Judge:
        if name == "llm" and tools.ask is not None:
            return LlmJudge(ask=tools.ask)
        if name == "embedding":
            sides = [[getattr(item, side) for item in examples] for side in ("positive", "negative")]
            return EmbeddingJudge(context.encoder, *sides, coherence=context.judge)
        return context.judge

    return Panel(context.engine, context.encoder, tuple(made(name) for name in names), context.behaviour)


def _context(
    engine: Engine,
    behaviour: EvalBehaviour,
    sets: PromptSets,
    tools: Tools,
    settings: EvalSettings,
    kept: RunFolder,
    progress: Progress | None,
) -> Context:
    """What methods fit from: the SAE where there is one that fits, and examples, written by the model where none are given."""
    local = LocalJudge(engine, tools.encoder)
    sae, index, effects, why = _sae(engine, tools.sae)
    layer = settings.layer if settings.layer is not None else default_layer(engine, sae)
    check_layer(layer, engine.model.n_layers)
    shown, contrast = with_examples(behaviour, engine, local, sets, kept, progress)
    return Context(
        behaviour=shown,
        contrast=contrast,
        engine=engine,
        encoder=tools.encoder,
        judge=local,
        layer=layer,
        prompts=(*sets.tuning, *sets.validation),
        seed=settings.seed,
        sae=sae,
        index=index,
        effects=tools.effects or effects,
        without_sae=why,
    )


def default_layer(engine: Engine, sae: SparseAutoencoder | None) -> int:
    """The SAE's layer, so that all methods steer at the same one; without an SAE three tenths of the way up."""
    return sae.config.layer if sae is not None else min(round(0.3 * engine.model.n_layers), engine.model.n_layers - 1)


def _sae(engine: Engine, name: str | None) -> tuple[SparseAutoencoder | None, FeatureIndex | None, Path | None, str]:
    """An SAE with its index, and where its effect map would be; or why there is none."""
    if name is None:
        return None, None, None, "no SAE was given; name one with --sae"
    entry = find_sae(name)
    sae = entry.load(str(engine.model.device))
    try:
        sae.check_fits(engine.model.ref)
    except SaeError:
        if name != DEFAULT:
            raise
        why = f"the shipped SAE is not for {engine.model.name}; train or import one and name it with --sae"
        return None, None, None, why
    effects = entry.folder / MAP_FILE
    try:
        return sae, load_index(entry.index_folder, sae.ref(entry.name)), effects, ""
    except SaeError as error:
        return sae, None, effects, str(error)


def _taken(each: Swept, fits: Mapping[str, CrossFit]) -> list[str | None]:
    """Each prompt's answer at the strength that it is reported at."""
    taken = fits[each.fitted.name].taken
    return [None if s is None else each.written[s][place].text for place, s in enumerate(taken)]
