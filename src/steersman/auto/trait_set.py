"""A trait by its name: what it means, answers that show it beside plain ones, and a vector fitted on them with its proof.

Prompts are split once, as in auto-steering: the vector is fitted on some, its strength chosen on others, and proven on neither.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace

from pydantic import JsonValue, TypeAdapter

from steersman.auto.examples import written_examples
from steersman.auto.facts import Behaviour, ContrastSet, Evidence, Report
from steersman.auto.opposites import opposites_among
from steersman.auto.prompts import split_prompts
from steersman.auto.prove import prove, proving_judges
from steersman.auto.strength import choose_strength
from steersman.auto.task import Task
from steersman.auto.writing import asking, write
from steersman.engine.engine import Engine
from steersman.errors import DataError
from steersman.facts import fact
from steersman.judges.facts import Judge
from steersman.judges.local import LocalJudge, QuickJudge
from steersman.models.asking import Ask, ask_json, fields_of
from steersman.models.language_model import LanguageModel
from steersman.models.sentence_encoder import TextEncoder
from steersman.sae.index.file import load_index
from steersman.sae.library import find_sae
from steersman.steering.methods import caa
from steersman.steering.pairs import Pair
from steersman.steering.recipe import Recipe
from steersman.steering.traits import described, trait_name

FORM = "Answer in a very {trait} way."
"""How a trait is asked for of which nothing but its name is known."""
_NAME_WORDS = 8
"""A text of more words is a sentence, whatever it ends with."""
_BARE_WORDS = 2
"""A name of more words says what it means, and is taken as it stands."""
_VERBS = ("act", "answer", "be", "mention", "praise", "sound", "speak", "talk", "tell", "use", "write")
_AROUND = 2.0
"""Strengths are tried around so many fitted differences (docs/contrast-vectors.md)."""
SHOWN = "How was your day?"
"""A question, in none of the sets, that every tone can be heard in."""
_SHOWN_TOKENS = 48
_NOISE = re.compile(r"([^\W\d_])\1\1|[bcdfghjklmnpqrstvwxz]{5}|^[bcdfghjklmnpqrstvwxz]{3,}$")
_ASK = (
    "You describe traits of how an assistant writes. For the trait that the user names, reply with JSON alone: "
    '{"problem": null or a reason, "sentence": null or an instruction}. The instruction tells an assistant in one short sentence '
    'to write so that the trait is obvious, such as "Talk like a pirate." Give a problem instead, in a few words, where the name '
    "means nothing, or asks for two things that exclude each other."
)


@fact
class TraitSettings:
    """How much is done; the defaults take about a minute on two cores with the bundled model."""

    train: int = 24
    """Prompts that the vector is fitted on."""
    validation: int = 8
    """Prompts that the strength is chosen on."""
    test: int = 16
    """Prompts of the proof."""
    layers: tuple[int, ...] = ()
    """Decoder blocks to try, counted from 0, each alone; the best stays. None named: the one three tenths of the way up."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 2:
                raise DataError(f"{name} must be at least 2 prompts, not {getattr(self, name)}")


def check_trait(model: LanguageModel, trait: str) -> None:
    """Refuse what cannot be a trait, before any work is done.

    Args:
        model: whose tokenizer tells a word from noise.
        trait: a name, or a sentence.

    Raises:
        DataError: it is empty, no word, or asks for two things that exclude each other.
    """
    said = " ".join(trait.split())
    if not said:
        raise DataError(
            "the trait is empty; name one, such as 'sarcastic', or say in a sentence how the model should behave"
        )
    words = re.findall(r"[^\W\d_]+", said.lower())
    if not any(len(word) > 1 for word in words):
        raise DataError(f"{said[:60]!r} holds no word; name a trait, such as 'sarcastic'")
    if _is_sentence(said):
        return
    noise = next((word for word in words if _is_noise(model, word)), None)
    if noise is not None:
        raise DataError(f"{noise[:60]!r} is no word that the model knows; say in a sentence how it should behave")
    pair = next((pair for pair in opposites_among(words)), None)
    if pair is not None:
        raise DataError(
            f"{pair[0]!r} and {pair[1]!r} exclude each other; name one of them, and add their recipes to mix them"
        )


def trait_behaviour(model: LanguageModel, trait: str, ask: Ask | None = None) -> Behaviour:
    """What a trait means, in a sentence.

    Args:
        model: whose tokenizer tells a word from noise.
        trait: a name (`sarcastic`), or the sentence itself.
        ask: a language model that puts a name into a sentence; by default `FORM`, but for the traits that ship.

    Raises:
        DataError: the name is empty, no word, or contradicts itself.
        EndpointError: the language model does not answer in the form asked for.
    """
    check_trait(model, trait)
    said = " ".join(trait.split())
    known = described(said)
    if known is not None or _says_how(said):
        return Behaviour(description=known or said)
    if ask is None:
        return Behaviour(description=FORM.format(trait=said.rstrip(".!")))
    messages = [{"role": "system", "content": _ASK}, {"role": "user", "content": said}]
    problem, sentence = ask_json(ask, messages, _answer)
    if problem:
        raise DataError(f"{said!r} is no trait that can be written: {problem}; name another, or say it in a sentence")
    return Behaviour(description=sentence)


def trait_pairs(
    engine: Engine, trait: str, *, judge: Judge, ask: Ask | None = None, report: Report | None = None, seed: int = 0
) -> list[Pair]:
    """A training set from the name of a trait: answers that show it and plain ones, to the same prompts.

    The validation and test prompts of `split_prompts` for `seed` and the sizes of `TraitSettings` are in none of the pairs.

    Args:
        engine: its model writes; a `QuickJudge` of it is a good judge.
        trait: a name, or a sentence that says how to behave.
        judge: keeps the answers that show the trait.
        ask: a language model that writes the answers which show the trait; by default the engine's own model, told to.
        report: told how many pairs were kept.
        seed: of the choice of prompts.

    Raises:
        DataError: as `trait_behaviour`; or the trait is not seen in enough answers, though it was asked for.
        EndpointError: the language model does not answer.
    """
    behaviour = trait_behaviour(engine.model, trait, ask)
    return _pairs(_examples(engine, behaviour, judge, TraitSettings(seed=seed), ask, report or _silent))


def fit_trait(
    engine: Engine,
    trait: str,
    *,
    encoder: TextEncoder,
    settings: TraitSettings | None = None,
    ask: Ask | None = None,
    report: Report | None = None,
) -> Recipe:
    """A recipe for a trait, with its evidence: contrast set, contrastive activation addition, strength, proof.

    At 1 the recipe adds the strength that did best on the validation prompts. Its evidence is an `auto.facts.Evidence`, whose
    `verdict` says whether the trait was proven; in `data`, `multipliers` holds answers to `SHOWN` at -1, 0 and 1, to be read.

    Args:
        engine: whose model is steered; `writing.SLOTS` slots are a good number.
        trait: a name, or a sentence that says how to behave.
        encoder: of the judges.
        settings: how much is done.
        ask: as for `trait_pairs`.
        report: called with what happens, as it happens, in the form that `autosteer` reports in.

    Raises:
        DataError: as `trait_pairs`.
        ModelError: a layer that the model does not have.
        EndpointError: the language model does not answer.
    """
    settings, report, began = settings or TraitSettings(), report or _silent, time.perf_counter()

    def stage(name: str) -> None:
        report("stage", {"name": name, "seconds": round(time.perf_counter() - began, 2)})

    behaviour = trait_behaviour(engine.model, trait, ask)
    stage("contrast set")
    examples = _examples(engine, behaviour, QuickJudge(engine), settings, ask, report)
    task = _task(engine, behaviour, LocalJudge(engine, encoder), examples, settings.seed, report)
    prompts = split_prompts(settings.seed, settings.train, settings.validation, settings.test)
    stage("strength")
    recipe, tried, is_better = _strongest(task, settings.layers, prompts.validation, trait_name(trait)[:100])
    stage("proof")
    evidence = prove(task, recipe, prompts.test, proving_judges(task, encoder))
    if not is_better:
        why = "no strength improved on plain answers to the validation prompts; the weakest that was tried is reported"
        evidence = replace(evidence, verdict="no effect", why=why)
    data: dict[str, JsonValue] = {
        **recipe.data,
        "settings": TypeAdapter(TraitSettings).dump_python(settings, mode="json"),
        "examples": {"train": len(examples.train), "validation": len(examples.validation), "source": examples.source},
        "strengths": tried,
        "multipliers": multipliers(engine, recipe),
        "seconds": round(time.perf_counter() - began, 1),
    }
    report("result", {"verdict": evidence.verdict, "why": evidence.why, "seconds": data["seconds"]})
    return replace(recipe, data=data, evidence=TypeAdapter(Evidence).dump_python(evidence, mode="json"))


def _examples(
    engine: Engine, behaviour: Behaviour, judge: Judge, settings: TraitSettings, ask: Ask | None, report: Report
) -> ContrastSet:
    prompts = split_prompts(settings.seed, settings.train, settings.validation, settings.test)
    return written_examples(engine, behaviour, prompts, judge, report, ask)


def _pairs(examples: ContrastSet) -> list[Pair]:
    return [Pair.answers(item.prompt, item.positive, item.negative) for item in examples.train]


def _task(engine: Engine, behaviour: Behaviour, judge: Judge, examples: ContrastSet, seed: int, report: Report) -> Task:
    # A task has an SAE, which nothing here reads: the shipped one will do for any model.
    entry = find_sae()
    sae = entry.load()
    index = load_index(entry.index_folder, sae.ref(entry.name))
    return Task(behaviour, engine, sae, index, judge, examples, seed, report)


def _strongest(
    task: Task, layers: Sequence[int], prompts: Sequence[str], name: str
) -> tuple[Recipe, dict[str, JsonValue], bool]:
    """The vector of the layer and at the strength that did best, what was tried, and whether it beat plain answers."""
    n_layers = task.model.n_layers
    blocks = list(layers) or [min(round(0.3 * n_layers), n_layers - 1)]
    fitted = caa.fit(task.model, _pairs(task.contrast), profile=task.engine.profile, layers=blocks, name=name)
    fitted = replace(fitted, description=task.behaviour.description)
    best, found, tried = (-1.0, False), fitted, dict[str, JsonValue]()
    for edit in fitted.edits:
        alone = replace(fitted, edits=(edit,))
        strength, scores = choose_strength(task, alone, prompts, _AROUND * edit.strength)
        tried[str(edit.layer)] = {f"{length:g}": round(score, 4) for length, score in scores.items()}
        length = strength or min(length for length in scores if length)
        if (scores[strength], bool(strength)) > best:
            best, found = (scores[strength], bool(strength)), replace(alone, edits=(replace(edit, strength=length),))
    return replace(found, data={**fitted.data, "layers": [found.edits[0].layer]}), tried, best[1]


def multipliers(engine: Engine, recipe: Recipe) -> dict[str, JsonValue]:
    """Answers to `SHOWN` at -1, 0 and 1 times a recipe, to be read."""
    at = ("-1", "0", "1")
    answers = write(engine, [asking(SHOWN, recipe, strength=float(each), tokens=_SHOWN_TOKENS) for each in at])
    return {"prompt": SHOWN, **dict(zip(at, answers, strict=True))}


def _is_sentence(said: str) -> bool:
    return len(said.split()) > _NAME_WORDS or (said[-1] in ".!?" and " " in said)


def _says_how(said: str) -> bool:
    words = said.lower().split()
    return _is_sentence(said) or len(words) > _BARE_WORDS or (len(words) > 1 and words[0] in _VERBS)


def _is_noise(model: LanguageModel, word: str) -> bool:
    """Whether a word looks like one that nobody says, and the tokenizer has not seen it either."""
    if not _NOISE.search(word):
        return False
    return len(word) <= 2 * len(model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"])


def _answer(value: JsonValue) -> tuple[str, str]:
    """Problem and sentence; one of them is empty."""
    fields = fields_of(value, "problem", "sentence")
    problem, sentence = (fields[name] or "" for name in ("problem", "sentence"))
    if not isinstance(problem, str) or not isinstance(sentence, str) or bool(problem.strip()) == bool(sentence.strip()):
        raise ValueError('give a text for one of "problem" and "sentence", and null for the other')
    return problem.strip(), sentence.strip()


def _silent(name: str, facts: dict[str, JsonValue]) -> None:
    """Nobody listens."""
