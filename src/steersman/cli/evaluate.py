"""`steersman evaluate`: steering methods on one behaviour, compared as a reviewer would want it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    usage,
)
from steersman.cli.progress import counting
from steersman.files import sole_use

if TYPE_CHECKING:
    from steersman.evals.behaviours import EvalBehaviour
    from steersman.evals.facts import EvalSettings, Evaluation
    from steersman.intervals import Interval
    from steersman.models.endpoint import Endpoint

_SLOTS = 32


def evaluate(
    context: typer.Context,
    to: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder of results and report; a run that stopped goes on there.", show_default=False
        ),
    ],
    behaviour: Annotated[
        str,
        typer.Option(
            "--behaviour", "-b", help="A shipped name, a JSON file of texts, or a .jsonl of pairs.", show_default=False
        ),
    ],
    describe: Annotated[
        str | None, typer.Option(help="The behaviour in a sentence; in place of the file's own.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Names with commas, such as caa,sae,random; by default all there are.")
    ] = None,
    judge: Annotated[str, typer.Option(help="local, embedding or llm, or several: local+llm.")] = "local",
    battles: Annotated[
        bool, typer.Option("--battles", help="Let the LLM endpoint compare answers in pairs, in both orders.")
    ] = False,
    prompts: Annotated[int, typer.Option(min=4, help="How many prompts to evaluate on.")] = 16,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Your own prompts (.txt: one a line; .jsonl, .json).")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Lengths in mean residual norms, with commas.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the answers.")] = 40,
    layer: Annotated[int | None, typer.Option(help="Block to steer at; by default the SAE's.")] = None,
    sae: Annotated[str, typer.Option(help="'default' (shipped), a name, a folder, or none.")] = "default",
    effects: Annotated[Path | None, typer.Option(help="Effect map for sae-ts; by default the SAE's own.")] = None,
    model: ModelOption = "default",
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the results of another run in that folder; its answers stay.")
    ] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare steering methods on a behaviour: held-out strength, controls, intervals, tests, a report."""
    from steersman.engine.engine import Engine, EngineLimits
    from steersman.evals.behaviours import load_behaviour
    from steersman.evals.evaluate import Tools, check_named, judge_names
    from steersman.evals.evaluate import evaluate as run
    from steersman.evals.methods import DEFAULT_METHODS, methods_of
    from steersman.evals.store import check_folder, claim
    from steersman.evals.tables import RESULT_FILES, facts_of, write_results
    from steersman.steering.methods.prompt_sets import load_prompts

    # What is wrong with the question is said before anything is loaded.
    names = DEFAULT_METHODS if methods is None else tuple(_words(methods))
    with usage("--methods"):
        methods_of(names)
    with usage("--judge"):
        judges = judge_names(judge)
    settings = _settings(prompts, strengths, tokens, layer, seed)
    wanted = load_behaviour(behaviour, describe)
    own = load_prompts(prompt_file) if prompt_file else None
    named = None if sae == "none" else sae
    check_named(named, effects)
    endpoint = _endpoint() if battles or "llm" in judges else None
    question = _question(wanted, settings, judges, own, {"sae": sae, "model": model, "dtype": dtype})
    context.with_resource(sole_use(to))
    if not force:
        check_folder(to, question, RESULT_FILES)
    language_model = load(model, device, dtype)
    engine = Engine(language_model, EngineLimits(slots=_SLOTS), profile=profile(language_model))
    tools = Tools(load_encoder(), judge, endpoint, named, effects, battles)
    claim(to, question)
    with counting() as report:
        found = run(engine, wanted, to, tools=tools, methods=names, settings=settings, prompts=own, progress=report)
    place = write_results(found, to)
    if as_json:
        print_json({**facts_of(found), "report": str(place)})
    else:
        _print_result(found, place)


def _settings(prompts: int, strengths: str | None, tokens: int, layer: int | None, seed: int) -> EvalSettings:
    from steersman.evals.facts import STRENGTHS, EvalSettings

    lengths = STRENGTHS
    if strengths is not None:
        try:
            lengths = tuple(float(word) for word in _words(strengths))
        except ValueError:
            said = f"give numbers with commas, such as 0.1,0.2,0.4, not {strengths!r}"
            raise typer.BadParameter(said, param_hint="--strengths") from None
    with usage("--strengths"):
        return EvalSettings(prompts=prompts, strengths=lengths, tokens=tokens, layer=layer, seed=seed)


def _question(
    wanted: EvalBehaviour,
    settings: EvalSettings,
    judges: list[str],
    own: list[str] | None,
    loaded: dict[str, str | None],
) -> dict[str, Any]:
    """What decides the results of a folder. Methods, strengths and battles may be added to them."""
    from steersman.evals.store import content_hash
    from steersman.version import __version__

    return {
        "steersman": __version__,
        "behaviour": wanted.name,
        "examples and description": wanted.sha256[:16],
        "judge": "+".join(judges),
        "prompts": settings.prompts,
        "prompt file": None if own is None else content_hash([*own])[:16],
        "tokens": settings.tokens,
        "layer": settings.layer,
        "seed": settings.seed,
        **loaded,
    }


def _endpoint() -> Endpoint:
    """The language model that the environment names."""
    from steersman.models.endpoint import Endpoint
    from steersman.settings import Settings

    return Endpoint.from_settings(Settings.from_env())


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _print_result(found: Evaluation, place: Path) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    screen = out()
    table = Table(
        box=box.SIMPLE, pad_edge=False, title=Text(f"{found.behaviour}: {found.description}"), title_justify="left"
    )
    for title in ("method", "behaviour", "coherence", "product", "95 %", "AxBench", "p", "scored"):
        table.add_column(title, justify="left" if title == "method" else "right")
    best = sorted(found.methods, key=lambda each: -_or(each.scores["product"].mean, -1.0))
    for each in best:
        scores = each.scores
        paired = each.against.get("prompt")
        table.add_row(
            each.name,
            *(_mean(scores[name]) for name in ("behaviour", "coherence", "product")),
            _around(scores["product"]),
            _mean(scores["harmonic"]),
            "-" if paired is None or paired.p_holm is None else f"{paired.p_holm:.3g}",
            f"{scores['product'].n} / {scores['product'].total}",
        )
    screen.print(table)
    screen.print("95 %: interval of the product; p: of its difference to prompting, corrected over the methods")
    for each in found.methods:
        if each.error:
            screen.print(f"{each.name}: not fitted: {each.error}", markup=False)
    screen.print(f"report  {place}", markup=False, soft_wrap=True)
    screen.print(f"{found.seconds:.0f} s", markup=False)


def _mean(interval: Interval) -> str:
    return "-" if interval.mean is None else f"{interval.mean:.2f}"


def _around(interval: Interval) -> str:
    return "-" if interval.low is None or interval.high is None else f"{interval.low:.2f}–{interval.high:.2f}"


def _or(value: Any, other: float) -> float:
    return other if value is None else float(value)
