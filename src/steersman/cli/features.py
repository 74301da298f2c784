"""`steersman features`: find, look at and compare the features of an SAE."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steersman.cli.console import DeviceOption, DtypeOption, JsonOption, load, load_encoder, out, print_json, read_pairs
from steersman.cli.feature_view import highlighted, label_of, print_inspection, print_table
from steersman.cli.sae_common import find

if TYPE_CHECKING:
    from steersman.models.language_model import LanguageModel, Prompt
    from steersman.sae.index.facts import FeatureIndex
    from steersman.sae.index.passages import Reader
    from steersman.sae.library import SaeEntry

app = typer.Typer(help="Find, look at and compare the features of an SAE.", no_args_is_help=True)

SaeOption = Annotated[str, typer.Option("--sae", help="'default' (shipped), a name in the library, or a folder.")]
ModelOfSaeOption = Annotated[
    str | None, typer.Option("--model", "-m", help="The model of the SAE; by default the one that its index names.")
]
CountOption = Annotated[int, typer.Option("-n", help="How many to show.", min=1)]


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A word, a phrase or a sentence.")],
    sae: SaeOption = "default",
    encoder: Annotated[str, typer.Option(help="Sentence encoder that the index was made with.")] = "default",
    n: CountOption = 10,
    token: Annotated[bool, typer.Option("--token", help="Look for this very token instead of a meaning.")] = False,
    among: Annotated[list[int] | None, typer.Option(help="Order these features only; may be repeated.")] = None,
    max_density: Annotated[float, typer.Option(help="Leave out features that fire on a larger share of tokens.")] = 0.2,
    model: ModelOfSaeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Features by meaning, by token, or a given list ordered by a query. Works offline."""
    from steersman.sae.index import search as by

    entry, index = _open(sae)
    reader = _reader(_model(index, model))
    if token:
        found = by.search_token(index, query, reader.tokenizer, n=n)
        if as_json:
            print_json(asdict(found))
            return
        print_table(
            "fires on it", [(f.feature, f"{f.share:.2f}", f.density, f.label) for f in found.fires], index, reader
        )
        promotes = [(f.feature, f"#{f.rank}", f.density, f.label) for f in found.promotes]
        print_table("makes it likelier", promotes, index, reader)
        return
    sentence_encoder = load_encoder(encoder)
    hits = (
        by.rerank(index, among, query, sentence_encoder)
        if among
        else by.search(index, query, sentence_encoder, n=n, max_density=max_density)
    )
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    print_table(
        f"nearest to {query!r}", [(h.feature, f"{h.score:.2f}", h.density, h.label) for h in hits], index, reader
    )
    if hits:
        more = "" if entry.name == "default" else f" --sae {entry.name}"
        out().print(f"look closer: steersman features show {hits[0].feature}{more}", style="dim", markup=False)


@app.command()
def show(
    feature: Annotated[int, typer.Argument(help="Number of the feature.")],
    sae: SaeOption = "default",
    model: ModelOfSaeOption = None,
    as_json: JsonOption = False,
) -> None:
    """One feature: label and its score, density, contexts with activations, tokens promoted, neighbours."""
    from steersman.sae.index.search import neighbours

    _, index = _open(sae)
    reader = _reader(_model(index, model))
    passages = reader.passages(index.contexts(feature))
    label, near = index.labels[feature], neighbours(index, feature)
    words = {
        name: [_token(reader, i) for i in getattr(index, name)[feature].tolist()] for name in ("promoted", "suppressed")
    }
    facts: dict[str, Any] = {
        "feature": feature,
        "label": asdict(label) if label else None,
        "density": float(index.density[feature]),
        "mean_activation": float(index.mean_activation[feature]),
        "max_activation": float(index.max_activation[feature]),
        **words,
        "neighbours": [asdict(other) for other in near],
    }
    if as_json:
        contexts = [
            {"tokens": [p.token(i) for i in range(len(p.activations))], "activations": list(p.activations)}
            for p in passages
        ]
        print_json({**facts, "contexts": contexts})
        return
    screen = out()
    screen.print(f"feature {feature}  {label.text if label else '(never fires)'}", style="bold", markup=False)
    score = "not scored" if label is None or label.score is None else f"{label.score:.2f}"
    screen.print(
        f"fires on {100 * facts['density']:.3f} % of tokens, mean {facts['mean_activation']:.1f}, "
        f"max {facts['max_activation']:.1f}; label detection accuracy {score}", markup=False,
    )  # fmt: skip
    for passage in passages:
        screen.print(highlighted(passage))
    for name, what in (("promoted", "makes likelier"), ("suppressed", "makes less likely")):
        screen.print(f"{what}: {', '.join(repr(word) for word in words[name])}", markup=False)
    for other in near:
        screen.print(f"near {other.feature} (cosine {other.cosine:.2f})  {other.label or ''}", markup=False)


@app.command()
def contrast(
    positives: Annotated[
        str,
        typer.Argument(
            help="File of texts or chats (.jsonl; .txt: one a line); with --pairs, a file or shipped set of pairs."
        ),
    ],
    negatives: Annotated[str | None, typer.Argument(help="File of texts or chats to tell them from.")] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="The one file holds positives and negatives side by side.")
    ] = False,
    sae: SaeOption = "default",
    n: CountOption = 10,
    model: ModelOfSaeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Features that tell two sets of texts or chats apart, in both directions."""
    from steersman.sae.index.contrast import contrast as compare

    if pairs == (negatives is not None):
        raise typer.BadParameter("give two files, or one with --pairs", param_hint="NEGATIVES")
    if pairs:
        examples = read_pairs(positives)
        one, other = [pair.positive for pair in examples], [pair.negative for pair in examples]
    else:
        one, other = _texts(positives), _texts(str(negatives))
    entry, index = _open(sae)
    language_model = _model(index, model, device, dtype)
    found = compare(language_model, entry.load(str(language_model.device)), one, other, n=n, index=index)
    if as_json:
        print_json({**asdict(found), "labels": _labels(index, [*found.positive, *found.negative])})
        return
    reader = _reader(language_model)
    for title, differences in (("more in the first", found.positive), ("more in the second", found.negative)):
        rows = [
            (d.feature, f"{d.score:+.2f}", float(index.density[d.feature]), label_of(index, d.feature))
            for d in differences
        ]
        print_table(f"{title} (standardised difference)", rows, index, reader)


@app.command("inspect")
def inspect_(
    text: Annotated[str, typer.Argument(help="A text; with --chat, a user's message.")],
    answer: Annotated[str | None, typer.Option(help="With --chat: the assistant's answer, and what is read.")] = None,
    as_chat: Annotated[bool, typer.Option("--chat", help="Put the text through the model's chat template.")] = False,
    sae: SaeOption = "default",
    n: Annotated[int, typer.Option("-n", help="Features a token.", min=1)] = 3,
    model: ModelOfSaeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which features fire on which token of a text, and most over the whole of it."""
    from steersman.models.language_model import Message
    from steersman.sae.index.inspect import inspect

    if answer is not None and not as_chat:
        raise typer.BadParameter("an answer belongs to a chat; add --chat", param_hint="--answer")
    content: Prompt = text
    if as_chat:
        content = [Message(role="user", content=text)]
        content += [Message(role="assistant", content=answer)] if answer is not None else []
    entry, index = _open(sae)
    language_model = _model(index, model, device, dtype)
    loaded = entry.load(str(language_model.device))
    found = inspect(language_model, loaded, content, n_per_token=n, read="answer" if answer else "all", index=index)
    if as_json:
        tokens, totals = [asdict(token) for token in found], [asdict(total) for total in found.totals[:50]]
        print_json({"tokens": tokens, "totals": totals, "labels": _labels(index, found.totals[:50])})
        return
    print_inspection(found, index)


def _open(name: str) -> tuple[SaeEntry, FeatureIndex]:
    from steersman.sae.index.file import load_index

    entry = find(name)
    return entry, load_index(entry.index_folder)


def _model(index: FeatureIndex, name: str | None, device: str | None = None, dtype: str | None = None) -> LanguageModel:
    return load(name or index.facts.model.id, device, dtype)


def _reader(model: LanguageModel) -> Reader:
    from steersman.sae.index.passages import Reader

    return Reader(model.tokenizer)


def _token(reader: Reader, token: int) -> str:
    return reader.passage([token]).text


def _labels(index: FeatureIndex, items: Any) -> dict[int, str]:
    return {item.feature: label_of(index, item.feature) for item in items}


def _texts(path: str) -> list[Prompt]:
    """Texts or chats of a file: rows of a .jsonl, lines of a .txt."""
    from steersman.errors import DataError
    from steersman.sae.texts import read_rows

    file = Path(path)
    if file.suffix != ".txt":
        return [row.content for row in read_rows(file)]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read texts from {path}: {error.strerror}") from error
    return [line for line in lines if line.strip()]
