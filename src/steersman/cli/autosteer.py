"""`steersman autosteer`: one sentence in, a proven recipe out.

Exit codes beside the usual ones: 3 when the evidence does not support the behaviour (everything is written all the same), 130
when interrupted, with the best so far saved; the same command then goes on behind the last finished stage.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.autosteer_view import Watch, clean, strongest, watching
from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    load_encoder,
    out,
    print_json,
    profile,
    read_pairs,
    refuse_overwrite,
)
from steersman.errors import DataError, SteersmanError
from steersman.files import sole_use

if TYPE_CHECKING:
    from steersman.auto.facts import AutoResult, Behaviour, ContrastSet
    from steersman.auto.task import Optimiser
    from steersman.engine.engine import Engine
    from steersman.judges.facts import Judge
    from steersman.models.endpoint import Endpoint
    from steersman.steering.pairs import Pair

INTERRUPTED_RECIPE, PROGRESS = "best-so-far.json", "progress"
"""What an interrupted run leaves in its folder: its best weights as a recipe, and the stages that are done."""
UNPROVEN = 3
"""Exit code: the evidence does not support the behaviour."""
_INTERRUPTED = 130
_BY_LLM = "llm"


def autosteer(
    context: typer.Context,
    description: Annotated[
        str,
        typer.Argument(metavar="DESCRIPTION", help="How the model should behave, in a sentence.", show_default=False),
    ],
    to: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for recipe.json, report.html and log.jsonl.", show_default=False)
    ],
    opposite: Annotated[str | None, typer.Option(help="The opposite behaviour; its features are pushed down.")] = None,
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSONL of prompt, positive and negative answer, a shipped set's name, or llm: written by the endpoint. "
            "By default the model's own answers.",
        ),
    ] = None,
    optimiser: Annotated[
        str, typer.Option(help="gradient, bayes, textgrad (asks an LLM), or two in a row: gradient+textgrad.")
    ] = "gradient",
    features: Annotated[int, typer.Option(min=1, help="At most so many features.")] = 8,
    expand: Annotated[
        bool,
        typer.Option(
            "--expand", help="Ask the endpoint for more words to search features by; done whenever it is asked at all."
        ),
    ] = False,
    judge: Annotated[
        str, typer.Option(help="Who tunes: local, or llm (the endpoint that the environment names).")
    ] = "local",
    sae: Annotated[str, typer.Option(help="'default' (shipped), a name in the library, or a folder.")] = "default",
    model: ModelOption = "default",
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier run left in the folder.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find, tune and prove a recipe for a behaviour. Exit code 3: the evidence does not support it."""
    from steersman.auto import autosteer as auto
    from steersman.auto.facts import Behaviour
    from steersman.auto.report import RECIPE, result_json, write_report
    from steersman.auto.writing import SLOTS
    from steersman.engine.engine import Engine, EngineLimits

    if judge not in ("local", "llm"):
        raise typer.BadParameter("use local or llm", param_hint="--judge")
    refuse_overwrite(to / RECIPE, force)
    wanted = Behaviour(description=description, opposite=opposite)
    asks = judge == "llm" or "textgrad" in optimiser or examples == _BY_LLM or expand
    endpoint = endpoint_of_settings() if asks else None
    tuner = _optimiser(optimiser, features, endpoint)
    given = endpoint if examples == _BY_LLM else contrast_of(read_pairs(examples)) if examples else None
    language_model = load(model, device, dtype)
    context.with_resource(sole_use(to))
    engine = Engine(language_model, EngineLimits(slots=SLOTS), profile=profile(language_model))
    encoder = load_encoder()
    watch = Watch(description)
    try:
        with watching(watch) as report:
            result = auto.autosteer(
                engine,
                wanted,
                sae=sae,
                encoder=encoder,
                judge=_judge(judge, endpoint),
                optimiser=tuner,
                contrast=given,
                ask=endpoint,
                settings=auto.AutoSettings(seed=seed),
                report=report,
                folder=to / PROGRESS,
            )
    except (KeyboardInterrupt, SteersmanError) as stop:
        interrupted = isinstance(stop, KeyboardInterrupt)
        if interrupted or watch.best is not None:
            _say(_save_best(watch, wanted, engine, sae, features, to / INTERRUPTED_RECIPE))
        if interrupted:
            _say("the same command goes on where it stopped")
            raise typer.Exit(_INTERRUPTED) from None
        raise
    recipe = write_report(result, to)
    shutil.rmtree(to / PROGRESS, ignore_errors=True)
    (to / INTERRUPTED_RECIPE).unlink(missing_ok=True)
    if as_json:
        print_json(result_json(result, recipe))
    else:
        _print_result(result, to)
    if result.evidence.verdict != "proven":
        _say(f"{result.evidence.verdict}: the evidence does not support this behaviour: {clean(result.evidence.why)}")
        raise typer.Exit(UNPROVEN)


def endpoint_of_settings() -> Endpoint:
    """The language model that the environment names."""
    from steersman.models.endpoint import Endpoint
    from steersman.settings import Settings

    return Endpoint.from_settings(Settings.from_env())


def _optimiser(name: str, features: int, endpoint: Endpoint | None) -> Optimiser:
    from steersman.auto.optimise import make_optimiser, parts_of

    parts = parts_of(name)
    settings: dict[str, Any] = {"features": features}
    return make_optimiser(name, settings if len(parts) == 1 else dict.fromkeys(parts, settings), endpoint)


def _judge(name: str, endpoint: Endpoint | None) -> Judge | None:
    """The judge; None for the default one."""
    from steersman.judges.llm import LlmJudge

    return LlmJudge(ask=endpoint) if name == "llm" and endpoint is not None else None


def contrast_of(pairs: list[Pair]) -> ContrastSet:
    """Pairs of answers to one user message as examples of the behaviour.

    Raises:
        DataError: a pair is anything else, or there are too few.
    """
    from steersman.auto.contrast_set import from_examples
    from steersman.auto.facts import ContrastItem

    items = []
    for number, pair in enumerate(pairs, 1):
        sides = [[] if isinstance(side, str) else list(side) for side in (pair.positive, pair.negative)]
        if any([message["role"] for message in side] != ["user", "assistant"] for side in sides) or (
            sides[0][0]["content"] != sides[1][0]["content"]
        ):
            raise DataError(
                f'--examples, pair {number}: write {{"prompt": ..., "positive": ..., "negative": ...}}, all texts'
            )
        (asked, positive), (_, negative) = sides
        items.append(ContrastItem(prompt=asked["content"], positive=positive["content"], negative=negative["content"]))
    return from_examples(items)


def _save_best(watch: Watch, behaviour: Behaviour, engine: Engine, sae: str, features: int, path: Path) -> str:
    """Write the best weights so far as a recipe without evidence; what to say of it."""
    from steersman.sae.library import find_sae
    from steersman.settings import Settings
    from steersman.steering.features import add_features, feature_vector
    from steersman.steering.recipe import Recipe
    from steersman.steering.recipe_file import save_recipe

    if watch.best is None or not any(watch.best.weights.values()):
        return "stopped before any weights were found; nothing is saved"
    weights = strongest({feature: weight for feature, weight in watch.best.weights.items() if weight}, features)
    entry = find_sae(sae, Settings.from_env().cache)
    loaded = entry.load()
    # Weights are trained at the length that they add as they are, in mean residual norms.
    strength = watch.strength or watch.best.strength or feature_vector(loaded, weights).norm
    labels = {feature: watch.labels[feature] for feature in weights if feature in watch.labels}
    recipe = Recipe(
        name="autosteer",
        edits=(add_features(loaded, weights, strength=strength, labels=labels),),
        description=behaviour.description,
        model=engine.model.ref,
        sae=loaded.ref(entry.name),
        method="autosteer/interrupted",
        data={"validation_score": watch.best.score},
    )
    save_recipe(recipe, path)
    return f"the best so far is in {path}: {len(weights)} features, strength {strength:.3g}, nothing proven"


def _print_result(result: AutoResult, folder: Path) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from steersman.auto.report import RECIPE, REPORT, VERDICTS

    screen, evidence = out(), result.evidence
    sign, words = VERDICTS[evidence.verdict]
    screen.print(Text(f"{sign} {words}", style="bold green" if evidence.verdict == "proven" else "bold red"))
    screen.print(f"{clean(evidence.why)}\n", markup=False)
    for feature in sorted(result.features, key=lambda each: -abs(each.weight)):
        said = f"{feature.id:>8} {feature.weight:+.3f}  {clean(feature.label or '(no label)')}"
        screen.print(said, markup=False, no_wrap=True, overflow="ellipsis")
    table = Table(box=box.SIMPLE, title_justify="left")
    for title in ("", "behaviour", "coherence", "product", "95 % interval", "scored"):
        table.add_column(title, justify="left" if not title else "right")
    for way, scores in evidence.scores.items():
        product = scores.product
        numbers = [scores.behaviour.mean, scores.coherence.mean, product.mean, product.low, product.high]
        *means, low, high = ["-" if number is None else f"{number:.2f}" for number in numbers]
        table.add_row(way, *means, f"{low} to {high}", f"{product.n} of {product.total}")
    screen.print(table)
    for title, place in (("report", folder / REPORT), ("recipe", folder / RECIPE)):
        screen.print(f"{title}  {place}", markup=False, soft_wrap=True)
    screen.print(f"{result.seconds:.0f} s, strength {result.strength:.3g}", markup=False)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
