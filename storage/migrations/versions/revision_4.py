"""What a study's adapters take: their size, and how fast they answer."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table, if it is missing."""
    op.create_table(
        "remember_adapter_costs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column(
            "payload", sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb"), nullable=False
        ),
        sa.ForeignKeyConstraint(["study"], ["remember_studies.name"], ondelete="CASCADE"),
        sa.UniqueConstraint("study", "trial", "epoch"),
        if_not_exists=True,
    )
