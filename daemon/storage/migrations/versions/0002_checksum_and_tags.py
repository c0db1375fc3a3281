"""What a file holds and what its user says of it; indexes for the history of a path and for pages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("scale_file", sa.Column("checksum", sa.Text, nullable=False, server_default=sa.text("''")))
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    op.add_column("scale_file", sa.Column("tags", json, nullable=False, server_default=sa.text("'{}'")))
    op.create_index("scale_file_path", "scale_file", ["workspace", "file_path"])
    op.create_index("scale_file_workspace", "scale_file", ["workspace", "id"])


def downgrade() -> None:
    op.drop_index("scale_file_workspace", "scale_file")
    op.drop_index("scale_file_path", "scale_file")
    op.drop_column("scale_file", "tags")
    op.drop_column("scale_file", "checksum")
