"""The tables of remember-me: SQLAlchemy models that stand beside Optuna's in one database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

# MySQL's plain TEXT ends at 64 KB.
_LongText = Text().with_variant(LONGTEXT(), "mysql", "mariadb")
# As long as Optuna allows a study's name to be.
_StudyName = String(512)


class database_seconds(FunctionElement[float]):  # reads like a function in SQL
    """Seconds since 1970 by the database's clock, the only one all workers share."""

    type = Double()
    inherit_cache = True


@compiles(database_seconds, "sqlite")
def _sqlite_seconds(element: database_seconds, compiler: SQLCompiler, **_: Any) -> str:
    return (
        "((julianday('now') - 2440587.5) * 86400.0)"  # 2440587.5 is the Julian day of 1970-01-01
    )


@compiles(database_seconds, "postgresql")
def _postgresql_seconds(element: database_seconds, compiler: SQLCompiler, **_: Any) -> str:
    # now() would stand still for as long as a transaction waits for a lock.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(database_seconds, "mysql")
@compiles(database_seconds, "mariadb")
def _mysql_seconds(element: database_seconds, compiler: SQLCompiler, **_: Any) -> str:
    return "(UNIX_TIMESTAMP(NOW(6)) + 0e0)"  # the addition turns a decimal into a double


@compiles(database_seconds, "mssql")
def _mssql_seconds(element: database_seconds, compiler: SQLCompiler, **_: Any) -> str:
    return "(DATEDIFF_BIG(MICROSECOND, '1970-01-01', SYSUTCDATETIME()) / 1e6)"


@compiles(database_seconds, "oracle")
def _oracle_seconds(element: database_seconds, compiler: SQLCompiler, **_: Any) -> str:
    return "((CAST(SYS_EXTRACT_UTC(SYSTIMESTAMP) AS DATE) - DATE '1970-01-01') * 86400)"


class Row(DeclarativeBase):
    """The base of all our tables; their names begin with `remember_`."""


class SchemaRow(Row):
    """One row: a version that programs from before Alembic refuse; the true one is Alembic's."""

    __tablename__ = "remember_schema"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]


class StudyRow(Row):
    """A study as it was created; `slots` is its K."""

    __tablename__ = "remember_studies"

    name: Mapped[str] = mapped_column(_StudyName, primary_key=True)
    config: Mapped[str] = mapped_column(_LongText)
    fingerprint: Mapped[str] = mapped_column(_LongText)
    slots: Mapped[int]
    seed: Mapped[int] = mapped_column(BigInteger)
    created_at_seconds: Mapped[float] = mapped_column(Double, default=database_seconds())


class LeaseRow(Row):
    """Who may write about a trial; `owner` is NULL when nobody holds it.

    It comes before the trial's own row, which only the owner may write.
    """

    __tablename__ = "remember_leases"

    study: Mapped[str] = mapped_column(
        _StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"), primary_key=True
    )
    trial: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner: Mapped[str | None] = mapped_column(String(512))
    fence: Mapped[int]
    expires_at_seconds: Mapped[float] = mapped_column(Double)


class SittingRow(Row):
    """A worker's time at a study, by the database's clock: from its start to its last sign.

    `ended_at_seconds` is NULL until the worker says that it leaves, `payload` the last state that
    it gave, `versions` those of the packages it runs on. `token` tells a repeated insertion from
    another sitting.
    """

    __tablename__ = "remember_sittings"

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(_StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"))
    owner: Mapped[str] = mapped_column(String(512))
    device: Mapped[str] = mapped_column(String(64))
    began_at_seconds: Mapped[float] = mapped_column(Double, default=database_seconds())
    seen_at_seconds: Mapped[float] = mapped_column(Double, default=database_seconds())
    slots: Mapped[int] = mapped_column(server_default=text("0"))
    ended_at_seconds: Mapped[float | None] = mapped_column(Double)
    payload: Mapped[str | None] = mapped_column(_LongText)
    versions: Mapped[str | None] = mapped_column(_LongText)
    token: Mapped[str | None] = mapped_column(String(32))


class TrialRow(Row):
    """A trial by its Optuna number; costs are NULL until it ends."""

    __tablename__ = "remember_trials"
    __table_args__ = (UniqueConstraint("study", "asked_index"),)

    study: Mapped[str] = mapped_column(
        _StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    asked_index: Mapped[int]
    recipe: Mapped[str] = mapped_column(_LongText)
    sampling: Mapped[str] = mapped_column(_LongText)
    seed: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(_LongText)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    generated_tokens: Mapped[int | None] = mapped_column(BigInteger)
    seconds: Mapped[float | None] = mapped_column(Double)
    last_epoch: Mapped[int | None]
    highest_learning_rate: Mapped[float | None] = mapped_column(Double)


class MeasurementRow(Row):
    """One measurement; `trial` is NULL for the untouched base.

    `payload` is the whole measurement, the columns repeat what is searched for.
    """

    __tablename__ = "remember_measurements"
    __table_args__ = (
        ForeignKeyConstraint(
            ["study", "trial"], [TrialRow.study, TrialRow.number], ondelete="CASCADE"
        ),
        # NULLs differ from each other in SQL: for the base the recorder sees to uniqueness.
        UniqueConstraint("study", "trial", "epoch", "sampling", "purpose", "version"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(_StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"))
    trial: Mapped[int | None]
    epoch: Mapped[int]
    sampling: Mapped[str] = mapped_column(String(128))
    purpose: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    recall: Mapped[float | None] = mapped_column(Double)
    knowledge_loss: Mapped[float | None] = mapped_column(Double)
    payload: Mapped[str] = mapped_column(_LongText)
    adapter: Mapped[str | None] = mapped_column(_LongText)
    recorded_at_seconds: Mapped[float] = mapped_column(Double, default=database_seconds())


class FloorRow(Row):
    """What the untouched model recalls with facts in its prompt; read in order of `id`.

    `payload` is the whole floor, the columns repeat what is searched for.
    """

    __tablename__ = "remember_floors"
    __table_args__ = (UniqueConstraint("study", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(_StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(32))
    recall: Mapped[float | None] = mapped_column(Double)
    payload: Mapped[str] = mapped_column(_LongText)


class AdapterCostRow(Row):
    """What an adapter of a trial takes and how fast it answers; `payload` is the whole of it."""

    __tablename__ = "remember_adapter_costs"
    __table_args__ = (UniqueConstraint("study", "trial", "epoch"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(_StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"))
    trial: Mapped[int]
    epoch: Mapped[int]
    payload: Mapped[str] = mapped_column(_LongText)


class PromptRow(Row):
    """A prompt of a study, stored once; `digest` covers everything in it."""

    __tablename__ = "remember_prompts"
    __table_args__ = (UniqueConstraint("study", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(_StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(_LongText)
    style: Mapped[str] = mapped_column(String(32))
    phrasing: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(64))
    question: Mapped[str] = mapped_column(_LongText)
    accepted: Mapped[str] = mapped_column(_LongText)
    templated: Mapped[bool]
    ring: Mapped[str | None] = mapped_column(String(32))


class AnswerRow(Row):
    """An answer and its verdict; `position` keeps the order in which they were judged."""

    __tablename__ = "remember_answers"

    measurement_id: Mapped[int] = mapped_column(
        ForeignKey(MeasurementRow.id, ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    prompt_id: Mapped[int] = mapped_column(Integer, ForeignKey(PromptRow.id, ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(_LongText)
    tokens: Mapped[int]
    label: Mapped[str] = mapped_column(String(16))
    judge: Mapped[str] = mapped_column(String(255))


class RejudgementRow(Row):
    """A measurement's answers judged once more by another judge.

    `payload` is the list of its labels, in the answers' order.
    """

    __tablename__ = "remember_rejudgements"

    measurement_id: Mapped[int] = mapped_column(
        ForeignKey(MeasurementRow.id, ondelete="CASCADE"), primary_key=True
    )
    judge: Mapped[str] = mapped_column(String(255), primary_key=True)
    payload: Mapped[str] = mapped_column(_LongText)
    recorded_at_seconds: Mapped[float] = mapped_column(Double, default=database_seconds())


class AgreementRow(Row):
    """How far a judge agrees with the labels of one file, of `digest`.

    `payload` is the agreement over all `labelled` answers, `of_study` that over those among them
    that models of the study gave.
    """

    __tablename__ = "remember_agreements"

    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(_StudyName, ForeignKey(StudyRow.name, ondelete="CASCADE"))
    judge: Mapped[str] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(String(64))
    labelled: Mapped[int]
    payload: Mapped[str] = mapped_column(_LongText)
    of_study: Mapped[str] = mapped_column(_LongText)
    recorded_at_seconds: Mapped[float] = mapped_column(Double, default=database_seconds())


class VerdictRow(Row):
    """What a judge decided, under a digest of all it depends on; it belongs to no study."""

    __tablename__ = "remember_verdicts"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    label: Mapped[str] = mapped_column(String(16))
