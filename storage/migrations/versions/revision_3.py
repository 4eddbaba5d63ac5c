"""Sittings know their slots, end, versions, what their worker does, and an identity."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns that are missing, and keep programs from before Alembic away."""
    long_text = sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")
    is_there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(_SITTINGS)}
    for column in (
        sa.Column("slots", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("ended_at_seconds", sa.Double),
        sa.Column("payload", long_text),
        sa.Column("versions", long_text),
        sa.Column("token", sa.String(32)),
    ):
        if column.name not in is_there:
            op.add_column(_SITTINGS, column)
    schema = sa.table("remember_schema", sa.column("id"), sa.column("version"))
    op.execute(sa.delete(schema))
    op.execute(sa.insert(schema).values(id=1, version=3))


_SITTINGS = "remember_sittings"
