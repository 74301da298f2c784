"""`steersman keys`: make, list and revoke the API keys of a server's store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steersman.cli.console import JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from steersman.store.facts import KeyRecord, Scope
    from steersman.store.store import Store

app = typer.Typer(help="Make, list and revoke the API keys of the server.", no_args_is_help=True)

_DatabaseOption = Annotated[
    str | None,
    typer.Option(
        help="The server's database, postgresql://user@host/name or sqlite:////path.db; by default a file in --folder."
    ),
]
_FolderOption = Annotated[
    Path | None, typer.Option(help="The server's folder, as given to `steersman serve`; by default in the cache.")
]
_USUAL: tuple[Scope, ...] = ("read", "generate", "train")
_MOST_DAYS = 36_500.0


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, to tell it from others.")],
    owner: Annotated[
        str | None,
        typer.Option(
            help="Whose recipes, sets and jobs it reaches; by default the name. Keys of one owner share them."
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: read, generate, train, admin; several times for several. By default all but admin."
        ),
    ] = None,
    days: Annotated[float | None, typer.Option(help="After how many days it stops working; by default never.")] = None,
    database: _DatabaseOption = None,
    folder: _FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    with _store(database, folder) as store:
        record, secret = store.keys.create(name, owner or name, _scopes(scope), _end(days))
    if as_json:
        print_json({"key": secret, **_shown(record)})
        return
    print(secret)
    told = f"key {record.id} of {record.owner}: keep it now, it cannot be shown again"
    typer.echo(f"{told}. A server that asks for no keys yet does so from its next start on.", err=True)


@app.command("list")
def list_keys(database: _DatabaseOption = None, folder: _FolderOption = None, as_json: JsonOption = False) -> None:
    """List all keys, the oldest first; the keys themselves are kept nowhere."""
    with _store(database, folder) as store:
        records = store.keys.list()
    if as_json:
        print_json({"keys": [_shown(record) for record in records]})
        return
    if not records:
        print("no keys yet; make one with `steersman keys create`")
    for record in records:
        shown = _shown(record)
        scopes = ",".join(sorted(record.scopes))
        ends = f", until {record.expires_at:%Y-%m-%d %H:%M} UTC" if record.expires_at else ""
        print(f"{record.id}  {shown['state']:<8} {record.owner}  {scopes}{ends}  {record.name}")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `steersman keys list` shows.")],
    database: _DatabaseOption = None,
    folder: _FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a key from working, at once and for good."""
    with _store(database, folder) as store:
        record = store.keys.revoke(key_id)
    if as_json:
        print_json(_shown(record))
    else:
        print(f"revoked {record.id} ({record.name!a} of {record.owner})")


def _store(database: str | None, folder: Path | None) -> Store:
    from steersman.settings import Settings
    from steersman.store.store import Store

    return Store.open(database, (folder or Settings.from_env().cache / "server").expanduser())


def _scopes(given: Sequence[str] | None) -> Sequence[Scope]:
    """As they were given; the store refuses those that there are not."""
    scopes: Sequence[Scope] = given or _USUAL  # type: ignore[assignment]
    return scopes


def _end(days: float | None) -> datetime | None:
    from datetime import timedelta

    from steersman.errors import DataError
    from steersman.store.checks import utc_now

    if days is None:
        return None
    if not 0 < days <= _MOST_DAYS:
        raise DataError(
            f"--days must be more than 0 and at most {_MOST_DAYS:.0f}, not {days}; leave it out for a key without end"
        )
    return utc_now() + timedelta(days=days)


def _shown(record: KeyRecord) -> dict[str, object]:
    """A key as JSON shows it: all but the key."""
    from steersman.store.checks import utc_now

    ended = record.expires_at is not None and record.expires_at <= utc_now()
    return {
        "id": record.id,
        "name": record.name,
        "owner": record.owner,
        "scopes": sorted(record.scopes),
        "state": "revoked" if record.revoked_at else "expired" if ended else "valid",
        "created_at": record.created_at.isoformat(),
        "expires_at": record.expires_at.isoformat() if record.expires_at else None,
        "revoked_at": record.revoked_at.isoformat() if record.revoked_at else None,
    }
