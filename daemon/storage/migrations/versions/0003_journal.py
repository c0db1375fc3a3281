"""The journal: what is about to change, and what requests with an idempotency key have done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from storage.models import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    op.create_table(
        "file_intent",
        sa.Column("token", sa.String(32), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("started", UtcDateTime, nullable=False),
        sa.Column("workspace", sa.Text, nullable=False),
        sa.Column("verb", sa.String(16), nullable=False),
        sa.Column("file_path", sa.Text, nullable=False),
        sa.Column("new_path", sa.Text, nullable=True),
        sa.Column("model", json, nullable=False),
        sa.Column("details", json, nullable=False),
        sa.Column("request_id", sa.BigInteger, nullable=True),
    )
    op.create_index("file_intent_workspace", "file_intent", ["workspace"])
    op.create_index("file_intent_request", "file_intent", ["request_id"])
    op.create_table(
        "keyed_request",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("workspace", sa.Text, nullable=False),
        sa.Column("caller", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("run", sa.String(32), nullable=False),
        sa.Column("used", UtcDateTime, nullable=False),
        sa.UniqueConstraint("workspace", "caller", "key", name="keyed_request_key"),
    )
    op.create_index("keyed_request_used", "keyed_request", ["used"])
    op.create_table(
        "keyed_item",
        sa.Column("request_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("file_id", sa.BigInteger, nullable=True),
        sa.Column("created", UtcDateTime, nullable=False),
    )
    op.create_index("keyed_item_created", "keyed_item", ["created"])


def downgrade() -> None:
    for table in ("keyed_item", "keyed_request", "file_intent"):
        op.drop_table(table)
