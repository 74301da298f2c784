"""`steersman effects`: measure what vectors do to features, fit the map that predicts it, and look ahead with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_choice,
    load,
    out,
    print_json,
    profile,
    refuse_overwrite,
)
from steersman.cli.sae_common import find
from steersman.files import sole_use

if TYPE_CHECKING:
    from steersman.evals.effects.measure import EffectProgress
    from steersman.sae.index.facts import FeatureIndex
    from steersman.sae.library import SaeEntry
    from steersman.steering.methods.effect_map_file import StoredMap

app = typer.Typer(help="What steering vectors do to features: measure it, fit a map, predict.", no_args_is_help=True)

SaeOption = Annotated[str, typer.Option("--sae", help="'default' (shipped), a name in the library, or a folder.")]
MapOption = Annotated[
    Path | None, typer.Option("--map", help="Effect map to use; by default the one beside the SAE.", show_default=False)
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of measured effects.")]
_STORES = ("int8", "bfloat16", "float32")


@app.command()
def measure(
    context: typer.Context,
    folder: FolderArgument,
    vectors: Annotated[int, typer.Option(min=1, help="How many there shall be in the folder.")] = 2000,
    sae: SaeOption = "default",
    samples: Annotated[int, typer.Option(min=1, help="Continuations of each prompt.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Length of a continuation.")] = 24,
    rise: Annotated[
        float | None,
        typer.Option(help="How far vectors raise the cross-entropy of plain text, in nats.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts (.txt: one a line; .jsonl, .json); by default 14 short ones.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the vectors and the samples.")] = 0,
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the effects of decoder rows, pairs of them and random directions; goes on where it was stopped."""
    from steersman.cli.progress import counting
    from steersman.evals.effects.facts import EffectSettings
    from steersman.evals.effects.measure import measure_effects
    from steersman.steering.methods.prompt_sets import load_prompts

    given: dict[str, Any] = {"samples": samples, "tokens": tokens, "seed": seed}
    given |= {"rise": rise} if rise is not None else {}
    given |= {"prompts": tuple(load_prompts(prompts))} if prompts is not None else {}
    settings, entry = EffectSettings(**given), find(sae)
    language_model = load(model, device, dtype)
    weights = entry.load(str(language_model.device))
    ref = weights.ref(entry.name)
    context.with_resource(sole_use(folder))
    rates: list[float] = []
    with counting() as show:

        def report(now: EffectProgress) -> None:
            rates.append(now.vectors_per_minute)
            left = "" if now.seconds_left is None else f", {_minutes(now.seconds_left)} left"
            show("measuring vectors", now.done, now.total, f"{now.vectors_per_minute:.1f} vectors/min{left}")

        store = measure_effects(
            language_model,
            weights,
            ref,
            profile=profile(language_model),
            folder=folder,
            vectors=vectors,
            settings=settings,
            report=report,
        )
    facts = {"folder": str(folder), "measured": store.measured, "failed": len(store.index.failed)}
    if as_json:
        print_json(facts | {"vectors_per_minute": round(rates[-1], 2), "sae": ref.id})
    else:
        gaps = f", {len(store.index.failed)} failed" if store.index.failed else ""
        print(f"{folder}: {store.measured:,} vectors measured{gaps}")
        print(f"next: steersman effects fit {folder} --out effects.safetensors")


@app.command()
def fit(
    folder: FolderArgument,
    out_file: Annotated[Path, typer.Option("--out", "-o", help="Where to write the map (safetensors).")],
    held_out: Annotated[float, typer.Option(help="Share of the vectors that the map is tested on.")] = 0.1,
    store: Annotated[str, typer.Option("--store-dtype", help="int8, bfloat16 or float32, on disk.")] = "int8",
    sgd: Annotated[bool, typer.Option("--sgd", help="Fit as the paper does too, and compare.")] = False,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the map if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the map from vectors to effects, and test it on vectors that it has not seen."""
    from steersman.evals.effects.fit import fit_effects, r_squared_as_stored
    from steersman.evals.effects.store import EffectStore
    from steersman.steering.methods.effect_map_file import save_effect_map

    refuse_overwrite(out_file, force)
    check_choice("--store-dtype", store, _STORES)
    measured = EffectStore.open(folder)
    fitted = fit_effects(measured, held_out=held_out, seed=seed, compare_sgd=sgd)
    kept = r_squared_as_stored(fitted, measured, store)  # type: ignore[arg-type]
    save_effect_map(fitted.effect_map, fitted.facts, out_file, store=store)  # type: ignore[arg-type]
    facts = fitted.facts
    if as_json:
        print_json(
            {"map": str(out_file), "bytes": out_file.stat().st_size, "stored_r_squared": kept.mean} | map_facts(fitted)
        )
        return
    r = facts.r_squared
    print(f"wrote {out_file} ({out_file.stat().st_size / 1e6:.1f} MB): {sum(facts.vectors.values()):,} vectors fitted")
    print(f"R² on {r.n:,} held-out vectors: {_share(r.mean)} ({_share(r.low)} to {_share(r.high)})")
    for kind, each in facts.r_squared_by_kind.items():
        print(f"  {kind:<8}{_share(each.mean)}  ({each.n:,} vectors)")
    print(
        f"  as {store:<8}{_share(kept.mean)}  at most {_share(facts.noise_ceiling)} is possible: the rest is sampling"
    )
    if r.mean is not None and r.mean <= 0:
        print(explains(fitted))
    if sgd:
        print(f"  by SGD  {_share(facts.data['sgd_r_squared'])}")


@app.command()
def predict(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="File of a recipe.")],
    effect_map: MapOption = None,
    sae: SaeOption = "default",
    top: Annotated[int, typer.Option(help="Features to list on either side.", min=1)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Say which features a recipe's vector will raise and lower most, before it is used."""
    from steersman.evals.effects.predict import predicted_effects
    from steersman.steering.recipe_file import load_recipe

    stored, entry = load_map(effect_map, sae)
    found = predicted_effects(load_recipe(recipe), stored)
    order = found.effects.argsort(descending=True).tolist()
    lists = {"raised": order[:top], "lowered": order[::-1][:top]}
    index = labels_of(entry, stored)
    sides = {
        side: [
            {"feature": feature, "change": round(float(found.effects[feature]), 5), "label": label_of(index, feature)}
            for feature in features
        ]
        for side, features in lists.items()
    }
    if as_json:
        print_json({"recipe": str(recipe), "strength": found.strength, "measured_at": stored.facts.strength} | sides)
        return
    own = f"{found.strength:.2f}{'' if found.is_relative else ' raw'}"
    print(f"{recipe}: change of mean activations at strength {stored.facts.strength:.2f} (the recipe's: {own})")
    for side, rows in sides.items():
        out().print(f"{side} most", markup=False)
        for row in rows:
            out().print(f"  {row['feature']:>6}  {row['change']:+8.3f}  {row['label'] or ''}", markup=False)
    print(explains(stored))


def explains(stored: StoredMap) -> str:
    """How far a map is to be trusted, in a line."""
    found = stored.facts.r_squared
    said = f"the map explains {_share(found.mean)} of the variance over {found.n:,} unseen vectors"
    if found.mean is not None and found.mean <= 0:
        return f"{said}: no better than a guess; measure more vectors"
    return said


def load_map(path: Path | None, sae: str) -> tuple[StoredMap, SaeEntry]:
    """The effect map of an SAE, by default the one in its folder, refused where it is of another SAE."""
    from steersman.steering.methods.effect_map_file import MAP_FILE, load_effect_map

    entry = find(sae)
    return load_effect_map(path or entry.folder / MAP_FILE, entry.load().ref(entry.name)), entry


def labels_of(entry: SaeEntry, stored: StoredMap) -> FeatureIndex | None:
    """The SAE's feature index, or None where it has none."""
    from steersman.errors import SaeError
    from steersman.sae.index.file import load_index

    try:
        return load_index(entry.index_folder, stored.facts.sae)
    except SaeError:
        return None  # Numbers do without names.


def label_of(index: FeatureIndex | None, feature: int) -> str | None:
    """What a feature stands for, where that is known."""
    label = None if index is None else index.labels[feature]
    return None if label is None else label.text


def map_facts(stored: StoredMap) -> dict[str, Any]:
    """What a map is, for JSON."""
    from dataclasses import asdict

    facts = asdict(stored.facts)
    return {name: facts[name] for name in facts if name not in {"format", "model"}}


def _share(value: Any) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _minutes(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
