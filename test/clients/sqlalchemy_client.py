"""SQLAlchemy with psycopg2, configured as Dify configures it."""

import uuid

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from stack import credentials

engine = sa.create_engine(
    credentials["postgres"]["url"].replace("postgres://", "postgresql+psycopg2://"),
    pool_size=30,
    max_overflow=10,
    pool_recycle=3600,
    pool_pre_ping=False,
    connect_args={"options": "-c timezone=UTC"},
)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = f"client_notes_{uuid.uuid4().hex[:8]}"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


with engine.connect() as conn:
    assert conn.execute(sa.text("show timezone")).scalar() == "UTC"
    assert conn.execute(sa.text("select pg_is_in_recovery()")).scalar() is False

Base.metadata.create_all(engine)
try:
    with Session(engine) as session:
        session.add_all([Note(text=f"note {i} with 'quotes' and %percent") for i in range(500)])
        session.commit()
        assert session.query(Note).count() == 500
        note = session.get(Note, 250)
        note.text = "changed"
        session.flush()
        session.rollback()
        assert session.get(Note, 250).text != "changed"

    # An error inside a transaction leaves the connection usable after a rollback.
    with engine.connect() as conn:
        try:
            conn.execute(sa.text("select * from no_such_table"))
            raise AssertionError("a table that does not exist was read")
        except sa.exc.ProgrammingError:
            conn.rollback()
        assert conn.execute(sa.text("select 1")).scalar() == 1

    # Savepoints, server-side cursors, locks and returning.
    with Session(engine) as session:
        with session.begin_nested():
            session.execute(sa.update(Note).where(Note.id == 1).values(text="inner"))
        locked = session.execute(sa.select(Note).where(Note.id == 1).with_for_update()).scalar_one()
        assert locked.text == "inner"
        session.commit()
    with engine.connect().execution_options(stream_results=True, yield_per=50) as conn:
        assert sum(1 for _ in conn.execute(sa.select(Note))) == 500
    with engine.begin() as conn:
        ids = conn.execute(sa.insert(Note).returning(Note.id), [{"text": "a"}, {"text": "b"}]).scalars().all()
        assert len(ids) == 2

    # More sessions at once than one pool of server connections holds.
    conns = [engine.connect() for _ in range(40)]
    for c in conns:
        assert c.execute(sa.text("select 1")).scalar() == 1
        c.commit()
    for c in conns:
        c.close()

    # The raw driver: bulk copy in and out.
    import io

    raw = engine.raw_connection()
    cursor = raw.cursor()
    cursor.copy_expert(f"copy {Note.__tablename__} (text) from stdin", io.StringIO("x\n" * 1000))
    raw.commit()
    out = io.StringIO()
    cursor.copy_expert(f"copy {Note.__tablename__} to stdout", out)
    assert out.getvalue().count("\n") == 1502
    raw.commit()
    raw.close()
finally:
    Base.metadata.drop_all(engine)
engine.dispose()
print("ok")
