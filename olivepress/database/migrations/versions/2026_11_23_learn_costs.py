"""What steps took is learned by kind and family."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_23_learn_costs"
down_revision = "2026_11_23_first_tables"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "learned_costs",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("memory_ratio", sa.Double(), nullable=False),
        sa.Column("seconds_ratio", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "family", name=op.f("pk_learned_costs")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("learned_costs")
