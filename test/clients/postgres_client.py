"""psycopg2, SQLAlchemy and Alembic in typical and in awkward use.

The address is in FOURNINES_POSTGRES_URL. Every check runs on few server
connections, so that a session meets those of others.
"""

import os
import select
import tempfile

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

url = os.environ["FOURNINES_POSTGRES_URL"]


def connect(**more):
    return psycopg2.connect(url, **more)


def one(conn, sql, args=None):
    with conn.cursor() as c:
        c.execute(sql, args)
        return c.fetchone()[0]


def driver():
    """psycopg2 alone."""
    conn = connect(options="-c timezone=UTC -c statement_timeout=30000", application_name="dify")
    assert one(conn, "show timezone") == "UTC"
    assert one(conn, "show application_name") == "dify"
    with conn.cursor() as c:
        c.execute("create table py_items (id serial primary key, name text, data jsonb, tags text[], at timestamptz default now())")
        c.executemany("insert into py_items (name) values (%s)", [(f"it's {i} %",) for i in range(50)])
        psycopg2.extras.execute_values(c, "insert into py_items (name, data) values %s", [("v", psycopg2.extras.Json({"a": i})) for i in range(200)])
        psycopg2.extras.execute_batch(c, "update py_items set tags = %s where id = %s", [(["x", "ü"], i) for i in range(1, 50)])
    conn.commit()
    assert one(conn, "select count(*) from py_items") == 250
    conn.rollback()

    # An error leaves the transaction failed until it is rolled back.
    try:
        one(conn, "select 1/0")
        raise AssertionError("1/0 was answered")
    except psycopg2.errors.DivisionByZero:
        pass
    try:
        one(conn, "select 1")
        raise AssertionError("a failed transaction went on")
    except psycopg2.errors.InFailedSqlTransaction:
        conn.rollback()

    # Savepoints, also around an error.
    with conn.cursor() as c:
        c.execute("savepoint a")
        c.execute("insert into py_items (name) values ('kept')")
        c.execute("savepoint b")
        try:
            c.execute("insert into py_items (id) values (1)")
            raise AssertionError("a duplicate key was taken")
        except psycopg2.errors.UniqueViolation:
            c.execute("rollback to savepoint b")
        c.execute("release savepoint a")
    conn.commit()
    assert one(conn, "select count(*) from py_items where name = 'kept'") == 1

    # Server-side cursors: in the transaction, and beyond it.
    with conn.cursor("in_transaction") as c:
        c.itersize = 30
        c.execute("select id from py_items order by id")
        assert sum(1 for _ in c) == 251
    conn.commit()
    with conn.cursor("beyond", withhold=True) as c:
        c.execute("select generate_series(1, 100)")
        conn.commit()
        assert len(c.fetchall()) == 100
    conn.commit()

    # Isolation levels, read only, SET LOCAL.
    conn.set_session(isolation_level="REPEATABLE READ")
    assert one(conn, "show transaction_isolation") == "repeatable read"
    conn.rollback()
    conn.set_session(isolation_level="READ COMMITTED", readonly=True)
    try:
        one(conn, "insert into py_items (name) values ('no') returning id")
        raise AssertionError("a read-only transaction wrote")
    except psycopg2.errors.ReadOnlySqlTransaction:
        conn.rollback()
    conn.set_session(readonly=False)
    with conn.cursor() as c:
        c.execute("set local work_mem = '9MB'")
    assert one(conn, "show work_mem") == "9MB"
    conn.rollback()
    assert one(conn, "show work_mem") != "9MB"
    conn.close()

    # Autocommit, with settings that have to follow the session.
    conn = connect()
    conn.autocommit = True
    other = connect()
    other.autocommit = True
    with conn.cursor() as c:
        c.execute("set search_path = pg_catalog; set statement_timeout = '25s'")
        for _ in range(5):
            assert one(conn, "show statement_timeout") == "25s"
            assert one(other, "show statement_timeout") == "0"
        c.execute("reset statement_timeout")
        assert one(conn, "show statement_timeout") == "0"
        c.execute("reset all")
        # Statements that cannot run in a transaction.
        c.execute("create index concurrently py_name on py_items (name)")
        c.execute("vacuum analyze py_items")

    # Temporary tables belong to one session.
    with conn.cursor() as c:
        c.execute("create temp table scratch (n int)")
        c.execute("insert into scratch select generate_series(1, 10)")
    for _ in range(5):
        assert one(conn, "select count(*) from scratch") == 10
        try:
            one(other, "select count(*) from scratch")
            raise AssertionError("another session sees the temporary table")
        except psycopg2.errors.UndefinedTable:
            pass

    # Session advisory locks exclude, and end with their session.
    assert one(conn, "select pg_try_advisory_lock(4711)")
    assert not one(other, "select pg_try_advisory_lock(4711)")
    assert one(conn, "select pg_advisory_unlock(4711)")
    assert one(other, "select pg_try_advisory_lock(4711)")
    other.close()
    # The same for a transaction.
    other = connect()
    assert one(other, "select pg_try_advisory_xact_lock(4712)")
    assert not one(conn, "select pg_try_advisory_xact_lock(4712)")
    other.rollback()
    assert one(conn, "select pg_try_advisory_xact_lock(4712)")

    # LISTEN and NOTIFY.
    with conn.cursor() as c:
        c.execute("listen news")
    with other.cursor() as c:
        c.execute("notify news, 'it works'")
    other.commit()
    while not conn.notifies:
        ready, _, _ = select.select([conn], [], [], 30)
        assert ready, "no notification within 30 s"
        conn.poll()
    assert conn.notifies.pop().payload == "it works"

    # A large result, and a large value in both directions.
    assert one(other, "select length(string_agg(repeat('x', 1000), '')) from generate_series(1, 20000)") == 20_000_000
    big = "ü" * 3_000_000
    assert one(other, "select %s", (big,)) == big
    with other.cursor() as c:
        c.execute("select g, repeat('y', 100) from generate_series(1, 100000) g")
        assert c.rowcount == 100000
    other.rollback()

    # Cancel, and the session is usable afterwards.
    other.autocommit = True
    with other.cursor() as c:
        c.execute("set statement_timeout = '50ms'")
        try:
            c.execute("select pg_sleep(30)")
            raise AssertionError("was not cancelled")
        except psycopg2.errors.QueryCanceled:
            pass
        c.execute("reset statement_timeout")
    assert one(other, "select 1") == 1

    # Large objects need a transaction.
    other.autocommit = False
    lo = other.lobject(0, "wb")
    lo.write(b"12345" * 1000)
    oid = lo.oid
    other.commit()
    assert other.lobject(oid, "rb").read() == b"12345" * 1000
    other.lobject(oid, "rb").unlink()
    other.commit()

    # Two phases.
    xid = other.xid(1, "fournines", "test")
    other.tpc_begin(xid)
    one(other, "insert into py_items (name) values ('two phases') returning id")
    other.tpc_prepare()
    other.tpc_commit()
    assert one(other, "select count(*) from py_items where name = 'two phases'") == 1
    other.commit()
    conn.close()
    other.close()


def migrations():
    """Alembic up, down and up, as Dify's upgrade does."""
    with tempfile.TemporaryDirectory(prefix="fournines-test-") as folder:
        command.init(Config(os.path.join(folder, "alembic.ini")), os.path.join(folder, "m"))
        config = Config(os.path.join(folder, "alembic.ini"))
        config.set_main_option("script_location", os.path.join(folder, "m"))
        config.set_main_option("sqlalchemy.url", url.replace("postgres://", "postgresql+psycopg2://"))
        steps = [
            ("one", None, "op.create_table('mig', sa.Column('id', sa.Integer, primary_key=True), sa.Column('a', sa.String(10)))", "op.drop_table('mig')"),
            ("two", "one", "op.add_column('mig', sa.Column('b', sa.JSON)); op.create_index('mig_a', 'mig', ['a'])", "op.drop_index('mig_a'); op.drop_column('mig', 'b')"),
            ("three", "two", "op.execute(\"insert into mig (a) select g::text from generate_series(1, 100) g\"); op.alter_column('mig', 'a', type_=sa.Text)", "op.execute('delete from mig')"),
        ]
        for name, down, up, back in steps:
            with open(os.path.join(folder, "m", "versions", name + ".py"), "w") as f:
                f.write(f"import sqlalchemy as sa\nfrom alembic import op\nrevision = {name!r}\ndown_revision = {down!r}\n"
                        f"def upgrade():\n    {up}\ndef downgrade():\n    {back}\n")
        command.upgrade(config, "head")
        engine = sa.create_engine(url.replace("postgres://", "postgresql+psycopg2://"))
        with engine.connect() as c:
            assert c.execute(sa.text("select count(*) from mig")).scalar() == 100
            assert {x["name"] for x in sa.inspect(c).get_columns("mig")} == {"id", "a", "b"}
        command.downgrade(config, "one")
        with engine.connect() as c:
            assert {x["name"] for x in sa.inspect(c).get_columns("mig")} == {"id", "a"}
        command.upgrade(config, "head")
        engine.dispose()


driver()
migrations()
print("ok")
