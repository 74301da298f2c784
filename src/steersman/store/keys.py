"""API keys: made once, shown once, kept as hashes. Knows nothing of HTTP.

A key is `ssm_<12 hex digits>_<43 characters>`: its public id, and 256 random bits in URL-safe base64. Those are too many to
guess, so one SHA-256 is enough; hashes made slow are for passwords.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime

from sqlalchemy import or_, select

from steersman.errors import AccessRefused, DataError, NotFound, did_you_mean
from steersman.store.checks import check_owner, check_text, from_document, to_document
from steersman.store.database import Database
from steersman.store.facts import SCOPES, KeyRecord, Scope
from steersman.store.tables import KeyRow

Records = list[KeyRecord]
_FORM = re.compile(r"ssm_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NO_ID = "-"
_NO_DIGEST = hashlib.sha256(b"").hexdigest()


class Keys:
    """The keys of one store."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        """Keep keys in a database, by a clock that gives UTC."""
        self._database, self._clock = database, clock

    def create(
        self, name: str, owner: str, scopes: Iterable[Scope], expires_at: datetime | None = None
    ) -> tuple[KeyRecord, str]:
        """Make a key.

        Args:
            name: for people; need not be unique.
            owner: whose recipes, sets and jobs it reaches.
            scopes: what it may do; at least one.
            expires_at: when it stops working, with its time zone; None for never.

        Returns:
            What is kept, and the key itself, which nobody can look up again.

        Raises:
            DataError: a name, owner, scope or time that will not do.
        """
        check_text(name, "key name")
        check_owner(owner)
        wanted = _checked(scopes)
        now = self._clock()
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= now):
            raise DataError("a key expires in the future, at a time with its zone")
        key_id = secrets.token_hex(6)
        secret = f"ssm_{key_id}_{secrets.token_urlsafe(32)}"
        row = KeyRow(
            id=key_id,
            name=name,
            owner=owner,
            scopes=to_document([*sorted(wanted)], "scopes"),
            digest=_digest(secret),
            created_at=now,
            expires_at=expires_at,
            revoked_at=None,
        )
        with self._database.writing() as session:
            session.add(row)
        return _record(row), secret

    def verify(self, secret: str) -> KeyRecord:
        """The key's record, where it is good now. Unknown and wrong keys take the same work and get the same answer.

        Raises:
            AccessRefused: no such key, or one that has expired or was revoked.
        """
        form = _FORM.fullmatch(secret)
        with self._database.reading() as session:
            row = session.get(KeyRow, form[1] if form else _NO_ID)
        # Compared even where there is nothing to compare with, and in constant time: neither says how near a guess came.
        is_right = hmac.compare_digest(row.digest if row else _NO_DIGEST, _digest(secret))
        if row is None or not is_right:
            raise AccessRefused("this API key is not known; check it, or make one with `steersman keys create`")
        if row.revoked_at is not None:
            raise AccessRefused(f"the API key {row.id} was revoked; ask for another")
        if row.expires_at is not None and row.expires_at <= self._clock():
            raise AccessRefused(f"the API key {row.id} has expired; ask for another")
        return _record(row)

    def list(self) -> Records:
        """All keys, the oldest first."""
        with self._database.reading() as session:
            return [_record(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.created_at, KeyRow.id))]

    def revoke(self, key_id: str) -> KeyRecord:
        """Stop a key from working, from now on; once more changes nothing.

        Raises:
            NotFound: no key has this id.
        """
        with self._database.writing() as session:
            row = session.get(KeyRow, key_id) if re.fullmatch("[0-9a-f]{12}", key_id) else None
            if row is None:
                raise NotFound(f"no key has the id {key_id[:60]!a}; `steersman keys list` shows all")
            row.revoked_at = row.revoked_at or self._clock()
            return _record(row)

    def any_valid(self) -> bool:
        """Whether any key works now."""
        works = KeyRow.revoked_at.is_(None) & or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > self._clock())
        with self._database.reading() as session:
            return session.scalar(select(KeyRow.id).where(works).limit(1)) is not None


def _checked(scopes: Iterable[str]) -> frozenset[Scope]:
    given = list(scopes)
    for scope in given:
        if scope not in SCOPES:
            known = ", ".join(SCOPES)
            raise DataError(f"unknown scope {scope[:40]!a}{did_you_mean(scope, SCOPES)}; there are {known}")
    if not given:
        raise DataError(f"a key needs a scope; there are {', '.join(SCOPES)}")
    return frozenset(scope for scope in SCOPES if scope in given)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _record(row: KeyRow) -> KeyRecord:
    return KeyRecord(
        id=row.id,
        name=row.name,
        owner=row.owner,
        scopes=frozenset(from_document(row.scopes)),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
