"""Files as probes: what `curves` measures at every multiplier. Knows which measure belongs to which form of file, and no more."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from steersman.engine.engine import Engine
from steersman.evals.ab import AbItem, AnsweredBy, load_ab, matching_probabilities
from steersman.evals.capability import right_choices
from steersman.evals.choice_files import load_choices
from steersman.evals.curves import Probe
from steersman.evals.items import Gap, ItemFile, Scored
from steersman.evals.jailbreak import ANSWER_TOKENS, Side, attacks, check_shots, load_requests, refusals
from steersman.evals.persona import confidences, load_statements, trait_probabilities
from steersman.evals.refusal import RefusalJudge
from steersman.steering.recipe import Recipe


def choices_probe(path: Path, limit: int | None = None, seed: int = 0) -> Probe:
    """Accuracy on the multiple-choice questions of a file.

    Raises:
        DataError: as `load_choices`.
    """
    found = load_choices(path).sample(limit, seed)

    def score(engine: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
        return right_choices(engine, found.items, recipe, strength=strength)

    return Probe(found.name, "capability", "accuracy", score, found.sha256, found.duplicates)


def ab_probe(path: Path, limit: int | None = None, seed: int = 0, *, by: AnsweredBy = "letter") -> Probe:
    """Probability of the matching answer on the A/B items of a file, by its letter or by its text.

    Raises:
        DataError: as `load_ab`.
    """
    return ab_items_probe(load_ab(path).sample(limit, seed), by=by)


def ab_items_probe(found: ItemFile[AbItem], *, by: AnsweredBy = "letter") -> Probe:
    """The same of items at hand."""

    def score(engine: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
        return matching_probabilities(engine, found.items, recipe, strength=strength, by=by)

    measures = "probability of the matching answer" + (", by its text" if by == "text" else "")
    key = found.sha256 if by == "letter" else _key(found.sha256, by)
    return Probe(found.name, "behaviour", measures, score, key, found.duplicates)


def statements_probe(path: Path, limit: int | None = None, seed: int = 0, *, by_confidence: bool = False) -> Probe:
    """Probability of the matching answer on the yes/no statements of a file.

    Args:
        path: of the statements.
        limit: at most so many of them.
        seed: draws them.
        by_confidence: weigh each by the file's `label_confidence`.

    Raises:
        DataError: as `load_statements`.
    """
    found = load_statements(path).sample(limit, seed)
    weights = confidences(found.items) if by_confidence else None

    def score(engine: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
        return trait_probabilities(engine, found.items, recipe, strength=strength)

    key = _key(found.sha256, by_confidence)
    measures = "probability of the matching answer"
    return Probe(found.name, "persona", measures, score, key, found.duplicates, weights)


def refusal_probes(
    path: Path,
    limit: int | None = None,
    seed: int = 0,
    *,
    shots: Sequence[int] = (0,),
    side: Side = "harmful",
    max_tokens: int = ANSWER_TOKENS,
    keep_answers: bool = False,
) -> list[Probe]:
    """Share of refused requests of a file: one probe for each number of faked turns before the request.

    Args:
        path: of the requests.
        limit: at most so many of them; faked turns are drawn from the same ones.
        seed: draws them.
        shots: numbers of faked turns; 0 asks directly.
        side: `harmless` requests should not be refused.
        max_tokens: length of an answer.
        keep_answers: whether answers are kept. They may be harmful.

    Raises:
        DataError: as `load_requests`, or too few requests for so many shots.
    """
    found = load_requests(path, side).sample(limit, seed)
    requests = [item for item in found.items if not isinstance(item, Gap)]

    def probe(k: int) -> Probe:
        def score(engine: Engine, recipe: Recipe | None, strength: float) -> list[Scored]:
            # The judge's model is never steered: it reads answers without a recipe.
            return refusals(
                engine,
                attacks(engine.model, requests, k, seed),
                RefusalJudge(engine),
                recipe,
                strength=strength,
                max_tokens=max_tokens,
                keep_answers=keep_answers,
            )

        name = f"{found.name}, {side}" + (f", {k} shots" if k else "")
        key = _key(found.sha256, side, k, seed, max_tokens, keep_answers)
        return Probe(name, "safety", f"share of {side} requests refused", score, key, found.duplicates)

    for k in shots:
        check_shots(k, len(requests))
    return [probe(k) for k in shots]


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
