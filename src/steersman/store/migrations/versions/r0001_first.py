"""Keys, recipes, jobs and sets."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TIME = sa.DateTime(timezone=True)
_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, and give the database its identity."""
    identity = op.create_table("identity", sa.Column("id", sa.Text, nullable=False), _primary("identity", "id"))
    op.bulk_insert(identity, [{"id": secrets.token_hex(4)}])
    op.create_table(
        "api_keys",
        *_texts("id", "name", "owner", "scopes", "digest"),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("revoked_at", _TIME),
        _primary("api_keys", "id"),
    )
    _make_recipes()
    _make_jobs()
    _make_sets()


def downgrade() -> None:
    """Drop everything."""
    for table in ("set_vectors", "sets", "job_events", "jobs", "recipe_tags", "recipes", "api_keys", "identity"):
        op.drop_table(table)


def _make_recipes() -> None:
    op.create_table(
        "recipes",
        *_texts("id", "owner", "name", "about", "facts"),
        sa.Column("tensors", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        _primary("recipes", "id"),
        sa.UniqueConstraint("owner", "name", name="uq_recipes_owner_name"),
    )
    op.create_index("ix_recipes_tensors", "recipes", ["tensors"])
    op.create_table(
        "recipe_tags", *_texts("recipe_id", "tag"), _owned("recipe_tags", "recipe_id", "recipes"),
        _primary("recipe_tags", "recipe_id", "tag"),
    )  # fmt: skip
    op.create_index("ix_recipe_tags_tag", "recipe_tags", ["tag"])


def _make_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("number", _COUNTER, nullable=False, autoincrement=True),
        *_texts("id", "owner", "kind", "state", "request"),
        sa.Column("result", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", _TIME),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("n_events", sa.Integer, nullable=False),
        _primary("jobs", "number"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
    )
    op.create_index("ix_jobs_state_number", "jobs", ["state", "number"])
    op.create_index("ix_jobs_owner_number", "jobs", ["owner", "number"])
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        *_texts("kind", "data"),
        _owned("job_events", "job_id", "jobs"),
        _primary("job_events", "job_id", "number"),
    )


def _make_sets() -> None:
    op.create_table(
        "sets",
        *_texts("id", "owner", "label", "model", "method", "dimensions"),
        sa.Column("prompts", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("job_id", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sets_job_id"),
        _primary("sets", "id"),
        sa.UniqueConstraint("job_id", name="uq_sets_job_id"),
    )
    op.create_index("ix_sets_owner", "sets", ["owner"])
    op.create_table(
        "set_vectors",
        sa.Column("set_id", sa.Text, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        *_texts("trait", "facts"),
        sa.Column("tensors", sa.Text),
        _owned("set_vectors", "set_id", "sets"),
        _primary("set_vectors", "set_id", "place"),
    )
    op.create_index("ix_set_vectors_tensors", "set_vectors", ["tensors"])


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _primary(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _owned(table: str, column: str, owner: str) -> sa.ForeignKeyConstraint:
    """Gone with the row that it refers to."""
    return sa.ForeignKeyConstraint([column], [f"{owner}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")
