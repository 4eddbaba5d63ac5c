"""Our first tables: studies, leases, sittings, trials, measurements, prompts and answers.

Like every revision it repeats what it says here and imports none of our code, which will change.
It leaves alone what is there: tables from before Alembic, and what MySQL, which commits every
statement about a table at once, kept of a revision that was cut short. There is no way back: an
earlier program needs a copy of the database from before.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0001"
down_revision = None

_LONG_TEXT = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def _of_study() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["study"], ["remember_studies.name"], ondelete="CASCADE")


def upgrade() -> None:
    """Create the tables that are missing."""
    op.create_table(
        # Only programs from before Alembic read it: a version above theirs keeps them away.
        "remember_schema",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "remember_studies",
        sa.Column("name", sa.String(512), primary_key=True),
        sa.Column("config", _LONG_TEXT, nullable=False),
        sa.Column("fingerprint", _LONG_TEXT, nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created_at_seconds", sa.Double, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "remember_leases",
        sa.Column("study", sa.String(512), primary_key=True),
        sa.Column("trial", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("owner", sa.String(512)),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("expires_at_seconds", sa.Double, nullable=False),
        _of_study(),
        if_not_exists=True,
    )
    op.create_table(
        "remember_sittings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("owner", sa.String(512), nullable=False),
        sa.Column("device", sa.String(64), nullable=False),
        sa.Column("began_at_seconds", sa.Double, nullable=False),
        sa.Column("seen_at_seconds", sa.Double, nullable=False),
        _of_study(),
        if_not_exists=True,
    )
    op.create_table(
        "remember_trials",
        sa.Column("study", sa.String(512), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("asked_index", sa.Integer, nullable=False),
        sa.Column("recipe", _LONG_TEXT, nullable=False),
        sa.Column("sampling", _LONG_TEXT, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", _LONG_TEXT),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("generated_tokens", sa.BigInteger),
        sa.Column("seconds", sa.Double),
        sa.Column("last_epoch", sa.Integer),
        sa.Column("highest_learning_rate", sa.Double),
        _of_study(),
        sa.UniqueConstraint("study", "asked_index"),
        if_not_exists=True,
    )
    op.create_table(
        "remember_measurements",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("trial", sa.Integer),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("sampling", sa.String(128), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("recall", sa.Double),
        sa.Column("knowledge_loss", sa.Double),
        sa.Column("payload", _LONG_TEXT, nullable=False),
        sa.Column("adapter", _LONG_TEXT),
        sa.Column("recorded_at_seconds", sa.Double, nullable=False),
        _of_study(),
        sa.ForeignKeyConstraint(
            ["study", "trial"],
            ["remember_trials.study", "remember_trials.number"],
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("study", "trial", "epoch", "sampling", "purpose", "version"),
        if_not_exists=True,
    )
    op.create_table(
        "remember_prompts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("text", _LONG_TEXT, nullable=False),
        sa.Column("style", sa.String(32), nullable=False),
        sa.Column("phrasing", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("question", _LONG_TEXT, nullable=False),
        sa.Column("accepted", _LONG_TEXT, nullable=False),
        sa.Column("templated", sa.Boolean, nullable=False),
        sa.Column("ring", sa.String(32)),
        _of_study(),
        sa.UniqueConstraint("study", "digest"),
        if_not_exists=True,
    )
    op.create_table(
        "remember_answers",
        sa.Column("measurement_id", sa.Integer, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prompt_id", sa.Integer, nullable=False),
        sa.Column("text", _LONG_TEXT, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("label", sa.String(16), nullable=False),
        sa.Column("judge", sa.String(255), nullable=False),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["remember_measurements.id"], ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["prompt_id"], ["remember_prompts.id"], ondelete="CASCADE"),
        if_not_exists=True,
    )
