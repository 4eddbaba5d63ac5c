"""Floors, agreements of judges with people, second judgings, and what judges decided."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0002"
down_revision = "0001"

_LONG_TEXT = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    """Create the tables that are missing."""
    op.create_table(
        "remember_floors",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("recall", sa.Double),
        sa.Column("payload", _LONG_TEXT, nullable=False),
        sa.ForeignKeyConstraint(["study"], ["remember_studies.name"], ondelete="CASCADE"),
        sa.UniqueConstraint("study", "name"),
        if_not_exists=True,
    )
    op.create_table(
        "remember_agreements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("judge", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("labelled", sa.Integer, nullable=False),
        sa.Column("payload", _LONG_TEXT, nullable=False),
        sa.Column("of_study", _LONG_TEXT, nullable=False),
        sa.Column("recorded_at_seconds", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["study"], ["remember_studies.name"], ondelete="CASCADE"),
        if_not_exists=True,
    )
    op.create_table(
        "remember_rejudgements",
        sa.Column("measurement_id", sa.Integer, primary_key=True),
        sa.Column("judge", sa.String(255), primary_key=True),
        sa.Column("payload", _LONG_TEXT, nullable=False),
        sa.Column("recorded_at_seconds", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["remember_measurements.id"], ondelete="CASCADE"
        ),
        if_not_exists=True,
    )
    op.create_table(
        "remember_verdicts",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("label", sa.String(16), nullable=False),
        if_not_exists=True,
    )
