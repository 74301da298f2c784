"""`steersman fit condition`: let a recipe steer only the requests that a condition on their prompt holds for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_choice,
    load,
    print_json,
    profile,
    refuse_overwrite,
    status,
)
from steersman.cli.fit import ForceOption, LayerOption, OutOption
from steersman.cli.fit_direction import OtherOption, SeedOption, TriggerOption

if TYPE_CHECKING:
    from steersman.models.language_model import LanguageModel
    from steersman.models.residuals import ModelProfile
    from steersman.steering.methods.conditional import Fitted, Search

_Kinds = tuple[list[str], list[str]]


def condition(
    trigger: TriggerOption,
    other: OtherOption,
    recipe: Annotated[
        Path, typer.Option("--recipe", "-r", metavar="RECIPE", help="What is done where the condition holds.")
    ],
    out: OutOption,
    layer: LayerOption = None,
    vector: Annotated[str, typer.Option(help="mean (difference) or pca (first component, as in the paper).")] = "mean",
    measure: Annotated[str, typer.Option(help="cosine or projection.")] = "cosine",
    read: Annotated[str, typer.Option(help="turn_end (the end of the user's turn) or any (every token).")] = "turn_end",
    sae: Annotated[
        str | None, typer.Option(help="Use features of this SAE instead of a direction: 'default', a name or a folder.")
    ] = None,
    features: Annotated[int, typer.Option(help="With --sae: at most so many features, joined by or.")] = 3,
    negate: Annotated[bool, typer.Option("--negate", help="Steer where the condition does not hold.")] = False,
    join: Annotated[str, typer.Option(help="and / or, with what the recipe waits for already.")] = "and",
    seed: SeedOption = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit a condition on prompts that should trigger a recipe and prompts that should not, and put it into the recipe."""
    from steersman.steering.methods.conditional import Search, gate
    from steersman.steering.methods.prompt_sets import load_prompts
    from steersman.steering.recipe_file import load_recipe, save_recipe, tensor_path

    for path in (out, tensor_path(out)):
        refuse_overwrite(path, force)
    for option, value, known in (
        ("--join", join, ("and", "or")),
        ("--vector", vector, ("mean", "pca")),
        ("--measure", measure, ("cosine", "projection")),
        ("--read", read, ("turn_end", "any")),
    ):
        check_choice(option, value, known)
    steering, kinds = load_recipe(recipe), (load_prompts(trigger), load_prompts(other))
    # A condition may not come later than the edits that wait for it.
    first = min((edit.layer for edit in steering.edits), default=0)
    search = Search(
        layers=tuple(layer) if layer else tuple(range(first + 1)),
        vector=cast("Literal['mean', 'pca']", vector),
        measure=cast("Literal['cosine', 'projection']", measure),
        read=cast("Literal['turn_end', 'any']", read),
        seed=seed,
    )
    language_model = load(model, device, dtype)
    steering.check_fits(language_model)
    norms = profile(language_model)
    with status(f"reading {len(kinds[0]) + len(kinds[1])} prompts"):
        fitted = _fitted(language_model, kinds, norms, search, sae, features)
    gated = gate(steering, fitted, negate=negate, join=cast("Literal['and', 'or']", join))
    save_recipe(gated, out)
    if as_json:
        print_json({"recipe": str(out), "name": gated.name, "condition": fitted.facts, "negate": negate, "join": join})
    else:
        _say(fitted, out, negate)


def _fitted(
    model: LanguageModel, kinds: _Kinds, norms: ModelProfile, search: Search, sae: str | None, features: int
) -> Fitted:
    from steersman.steering.methods import conditional, conditional_features

    if sae is None:
        return conditional.fit(model, *kinds, profile=norms, search=search)
    from steersman.cli.sae_common import find

    with status(f"reading the SAE {sae}"):
        loaded = find(sae).load().to(model.device)
    return conditional_features.fit(model, loaded, *kinds, profile=norms, search=search, features=features)


def _say(fitted: Fitted, out: Path, negate: bool) -> None:
    held = fitted.held_out
    data: Any = fitted.data
    what = f"steers {'unless' if negate else 'when'} layer {fitted.layer} reads {fitted.comparison} {fitted.cut.threshold:.3g}"
    if "features" in data:
        listed = ", ".join(f"{each['id']} (above {each['threshold']:.3g})" for each in data["features"])
        what = f"steers {'unless' if negate else 'when'} any of these features of layer {fitted.layer} fires: {listed}"
    print(f"wrote {out}: {what}")
    # Recall counts the triggers, false alarms the others.
    print(
        f"on {held.recall.n} + {held.false_alarms.n} held-out prompts: precision {_shown(held.precision.mean)}, "
        f"recall {_shown(held.recall.mean)}, F1 {_shown(held.f1.mean)} [{_shown(held.f1.low)}, {_shown(held.f1.high)}]; "
        f"steering always would give F1 {held.f1_always:.2f}"
    )


def _shown(value: float | None) -> str:
    return "none (nothing fired)" if value is None else f"{value:.2f}"
