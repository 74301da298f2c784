"""`steersman fit topic`: steer towards what some texts are about, and say how well the SAE can represent it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from steersman.cli.console import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    check_choice,
    load,
    load_encoder,
    out,
    print_json,
    refuse_overwrite,
    status,
)
from steersman.cli.effects import SaeOption
from steersman.cli.fit import OutOption
from steersman.cli.sae_common import find

if TYPE_CHECKING:
    from steersman.models.language_model import LanguageModel
    from steersman.sae.model import SparseAutoencoder
    from steersman.steering.methods.topic_alignment import Steering, Summary, TopicScores
    from steersman.steering.methods.topic_uncertainty import TopicUncertainty

_METHODS = ("sae", "clamp", "weight", "swap")
_SUMMARIES = ("mean", "max", "count")


def topic(
    align: Annotated[Path, typer.Option(help="Texts of the topic: .jsonl, .csv or .txt (one a line).")],
    reference: Annotated[Path, typer.Option(help="Diverse texts, in the same forms.")],
    out_path: OutOption,
    method: Annotated[str, typer.Option(help="sae, clamp, weight or swap.")] = "swap",
    keep_error: Annotated[
        bool | None,
        typer.Option(
            "--keep-error/--drop-error",
            help="Keep what the SAE does not reconstruct, or drop it as the paper does; kept by default, but for sae.",
        ),
    ] = None,
    summary: Annotated[str, typer.Option(help="Of a latent over a text: mean, max or count.")] = "mean",
    least: Annotated[
        int, typer.Option(min=1, help="Reference pieces that a feature raised by clamp fires on; 1 in the paper.")
    ] = 3,
    chunk_tokens: Annotated[int, typer.Option(help="Longer texts are cut into pieces of so many tokens.")] = 256,
    name: Annotated[str | None, typer.Option(help="Name of the recipe; by default that of the file.")] = None,
    scores_out: Annotated[Path | None, typer.Option(help="Also write every latent's score here, as CSV.")] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals.")] = 0,
    sae: SaeOption = "default",
    model: ModelOption = "default",
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files if they exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Topic alignment: score every feature by how close to the topic it fires, and steer with the scores."""
    from steersman.steering.methods import topic_alignment, topic_texts, topic_uncertainty
    from steersman.steering.recipe_file import save_recipe, tensor_path

    check_choice("--method", method, _METHODS)
    check_choice("--summary", summary, _SUMMARIES)
    if method == "sae" and keep_error:
        raise typer.BadParameter(
            "sae is the dropping of the error; kept, it would do nothing", param_hint="--keep-error"
        )
    for path in (out_path, tensor_path(out_path), *([scores_out] if scores_out else [])):
        refuse_overwrite(path, force)
    near, texts = topic_texts.load_texts(align), topic_texts.load_texts(reference)
    entry = find(sae)
    language_model, loaded = load(model, device, dtype), entry.load()
    loaded = loaded.to(language_model.device)
    title = name or align.stem
    scored = _scored(language_model, loaded, (near, texts), cast("Summary", summary), chunk_tokens)
    recipe = topic_alignment.fit(
        scored,
        loaded,
        model=language_model.ref,
        sae_ref=loaded.ref(entry.name),
        name=title,
        method=cast("Steering", method),
        keep_error=keep_error,
        least=least,
    )
    with status("measuring how well the SAE represents the topic"):
        known = topic_uncertainty.assess(language_model, loaded, scored, near, seed=seed, chunk_tokens=chunk_tokens)
    save_recipe(recipe, out_path)
    if scores_out is not None:
        fired = (scored.scores > 0).index_fill(0, scored.reference.latents, True)
        topic_texts.save_scores(scores_out, scored.scores.tolist(), fired.tolist(), title)
    facts = {"recipe": str(out_path), "name": recipe.name, "method": recipe.method, "data": recipe.data}
    _say(facts, known, as_json)


def _scored(
    model: LanguageModel,
    sae: SparseAutoencoder,
    texts: tuple[list[str], list[str]],
    summary: Summary,
    chunk_tokens: int,
) -> TopicScores:
    from steersman.steering.methods.topic_alignment import score_topic

    encoder = load_encoder()
    with status("reading the texts"):
        return score_topic(model, sae, encoder, *texts, summary=summary, chunk_tokens=chunk_tokens)


def _say(facts: dict[str, Any], known: TopicUncertainty, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        print_json(facts | {"uncertainty": asdict(known)})
        return
    data = facts["data"]
    pieces = f"{data['align_pieces']} pieces of the topic and {data['reference_pieces']} of the reference"
    out().print(f"wrote {facts['recipe']}: {facts['method']} from {pieces}", markup=False)
    out().print(str(known), markup=False)
    shares = f"{known.topic_share:.0%} of its activation lies on {known.separating} features that separate it"
    out().print(f"{shares} (reference: {known.reference_share:.0%})", markup=False)
    errors = f"left unexplained: {known.topic_error:.0%} of the topic's variance, {known.reference_error:.0%} of the reference's"
    out().print(f"{errors}; mean width of a score's interval: {known.mean_width:.2f}", markup=False)
    for each in known.top[:5]:
        ends = "no interval" if each.low is None else f"[{each.low:.2f}, {each.high:.2f}]"
        out().print(f"  feature {each.latent}: {each.score:.2f} {ends}, fires on {each.pieces} pieces", markup=False)
    out().print(
        f"try: steersman generate --recipe {facts['recipe']} --compare --prompt 'Tell me something.'", markup=False
    )
