"""Alembic's entry point. The catalog hands over its connection; see `storage.catalog.Catalog.upgrade`."""

from __future__ import annotations

from alembic import context

from storage.models import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
