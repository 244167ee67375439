"""What Alembic runs: the migrations on the connection that `upgrade` gives it."""

from alembic import context

from olivepress.database.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
