"""Jobs say which model they are for; those that are there already are for any."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COLUMNS = ("model_id", "model_config_hash", "model_weights_hash")


def upgrade() -> None:
    """Add the model's name and its two hashes, empty in every row."""
    for name in _COLUMNS:
        op.add_column("jobs", sa.Column(name, sa.Text))


def downgrade() -> None:
    """Forget them: every job is for any model again."""
    for name in _COLUMNS:
        op.drop_column("jobs", name)
