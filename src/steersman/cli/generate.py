"""`steersman generate`: answer prompts, plain or steered, side by side if wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    load,
    load_recipes,
    out,
    print_json,
    profile,
)
from steersman.errors import RequestError

if TYPE_CHECKING:
    from steersman.engine.engine import Engine
    from steersman.engine.guard import Mode
    from steersman.engine.request import Request, Result
    from steersman.models.language_model import LanguageModel, Prompt
    from steersman.steering.recipe import Recipe

_MAX_STDIN_CHARACTERS = 1 << 20


def generate(
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", "-p", help="What to answer; may be repeated. '-': standard input."),
    ],
    recipe: Annotated[
        list[Path] | None, typer.Option("--recipe", "-r", help="Recipe that steers; several are added up.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Factor on the recipe's strengths; 0 is the plain model.")] = 1.0,
    compare: Annotated[bool, typer.Option("--compare", help="Print the plain answer beside the steered one.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Write at most this many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest tokens that hold this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Choose among this many likeliest tokens; 0 means all.")] = 0,
    repetition_penalty: Annotated[float, typer.Option(help="Make tokens already used less likely; 1 is none.")] = 1.1,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; by default the model's own.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as plain text, not as a chat.")] = False,
    guard: Annotated[str, typer.Option(help="Watch for degenerate text: off, warn, soften or stop.")] = "off",
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer prompts with the plain or the steered model."""
    from steersman.engine.engine import Engine
    from steersman.engine.guard import Guard
    from steersman.engine.request import Request, Sampling

    if guard not in ("off", "warn", "soften", "stop"):
        raise typer.BadParameter("use off, warn, soften or stop", param_hint="--guard")
    if compare and not recipe:
        raise typer.BadParameter("needs a --recipe to compare with the plain model", param_hint="--compare")
    if raw and system is not None:
        raise typer.BadParameter("plain text has no system prompt; leave out --raw or --system", param_hint="--system")
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        max_tokens=max_tokens,
    )
    texts = [_read(text) for text in prompt]
    steering = load_recipes(recipe or [])
    language_model = load(model, device, dtype)
    prompts = [_prompt(language_model, text, system, raw) for text in texts]
    steered = [
        Request(
            prompt=item, recipe=steering, strength=strength, sampling=sampling, guard=Guard(mode=cast("Mode", guard))
        )
        for item in prompts
    ]
    plain = [Request(prompt=item, sampling=sampling) for item in prompts] if compare else []
    engine = Engine(language_model, profile=profile(language_model))
    if as_json:
        results = engine.generate([*steered, *plain])
        print_json(_facts(language_model, steering, strength, texts, results))
    elif compare:
        _print_comparison(engine, texts, steered, plain)
    else:
        _print_stream(engine, texts, steered)


def _read(text: str) -> str:
    if text != "-":
        return text
    try:
        found = sys.stdin.read(_MAX_STDIN_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is no text in {error.encoding.upper()}; convert it first") from error
    if len(found) > _MAX_STDIN_CHARACTERS:
        raise RequestError("standard input holds more than a million characters; that is no prompt")
    return found


def _prompt(model: LanguageModel, text: str, system: str | None, raw: bool) -> Prompt:
    from steersman.models.language_model import chat

    if not text.strip():
        raise RequestError("the prompt is empty; write something for the model to answer")
    return text if raw or (not model.is_chat and system is None) else chat(text, system)


def _facts(
    model: LanguageModel, recipe: Recipe | None, strength: float, texts: Sequence[str], results: Sequence[Result]
) -> dict[str, Any]:
    """The JSON answer: one entry a prompt, with `plain` beside it when compared."""
    answers = [{"prompt": text, **asdict(result)} for text, result in zip(texts, results, strict=False)]
    for answer, result in zip(answers, results[len(texts) :], strict=False):
        answer["plain"] = asdict(result)
    steering = None if recipe is None else {"name": recipe.name, "method": recipe.method, "strength": strength}
    return {"model": asdict(model.ref), "recipe": steering, "answers": answers}


def _print_stream(engine: Engine, texts: Sequence[str], requests: Sequence[Request]) -> None:
    """Each answer as it is written, under its prompt when there are several."""
    console = out()
    for text, request in zip(texts, requests, strict=True):
        if len(texts) > 1:
            console.print(f"> {text}", style="bold", markup=False)
        for chunk in engine.stream(request):
            print(chunk.text, end="", flush=True)
            if chunk.result is not None:
                print()
                _print_guard(chunk.result)


def _print_comparison(
    engine: Engine, texts: Sequence[str], steered: Sequence[Request], plain: Sequence[Request]
) -> None:
    """Plain and steered answers in two columns, a row for each prompt; everything runs in one batch."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    results = engine.generate([*steered, *plain])
    for index, text in enumerate(texts):
        table = Table(
            title=Text(text), title_justify="left", title_style="bold", expand=True, show_lines=True, box=box.ROUNDED
        )
        table.add_column("plain", ratio=1)
        table.add_column("steered", ratio=1)
        table.add_row(Text(results[len(texts) + index].text.strip()), Text(results[index].text.strip()))
        out().print(table)
        _print_guard(results[index])


def _print_guard(result: Result) -> None:
    for event in result.guard_events:
        print(
            f"guard: {event.reason} {event.measured:.2f} (limit {event.limit:g}) after {event.at_token} tokens, "
            f"strength now {event.strength:.2f}",
            file=sys.stderr,
        )
    if result.finish_reason in ("guard", "abort"):
        print(f"ended by the {'guard' if result.finish_reason == 'guard' else 'recipe (abort)'}", file=sys.stderr)
