// Package postgres runs clients that nobody here wrote through pgproxy, on a
// real PostgreSQL, as applications and operators use them: pgbench, psql,
// pg_dump, psycopg2, SQLAlchemy, Alembic, pgx. docs/postgres.md says what works
// and what is refused.
package postgres
