"""Teams keep recipes of their own, in numbered versions."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_own_recipes"
down_revision = "2026_11_23_learn_costs"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "recipes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("removed_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recipes")),
        sa.UniqueConstraint("team", "name", "version", name=op.f("uq_recipes_team_name_version")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("recipes")
