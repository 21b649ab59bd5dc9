-- What route.Database knows of a database: one row per kind, schema and name,
-- with the worst of all objects of that name. One query, so one snapshot, and
-- one text, so one transaction, to which the settings are local.
-- Kinds: f function, o operator, t type, r relation.
SET LOCAL search_path = pg_catalog;
SET LOCAL jit = off;
SET LOCAL lock_timeout = 1000;
WITH RECURSIVE
-- Volatile functions without effect, as far as they are PostgreSQL's own or in C.
own AS (
  SELECT p.oid, p.proname, p.pronamespace, p.prokind, p.proargtypes, p.prorettype, p.proargdefaults,
    CASE
      WHEN p.provolatile = 'v' AND l.lanname IN ('internal', 'c', 'sql') AND (p.oid < 16384 OR l.lanname = 'c') AND p.proname IN (
        'random', 'clock_timestamp', 'timeofday', 'pg_sleep', 'pg_sleep_for', 'pg_sleep_until',
        'gen_random_uuid', 'gen_random_bytes', 'gen_salt', 'uuid_generate_v1', 'uuid_generate_v1mc', 'uuid_generate_v4') THEN 2
      WHEN p.provolatile = 'v' THEN 3
      WHEN p.provolatile = 's' THEN 1
      ELSE 0
    END AS vol
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  -- Triggers cannot be called.
  WHERE p.prorettype NOT IN ('pg_catalog.trigger'::pg_catalog.regtype, 'pg_catalog.event_trigger'::pg_catalog.regtype)
),
bad AS (SELECT oid FROM own WHERE vol = 3),
-- Types that run a volatile function when a value is read, written, cast or sorted.
bad_type(oid) AS (
  SELECT t.oid FROM pg_catalog.pg_type t
    WHERE t.typinput IN (SELECT oid FROM bad) OR t.typoutput IN (SELECT oid FROM bad) OR t.typreceive IN (SELECT oid FROM bad)
      OR t.typsend IN (SELECT oid FROM bad) OR t.typmodin IN (SELECT oid FROM bad) OR t.typmodout IN (SELECT oid FROM bad)
      OR t.typsubscript IN (SELECT oid FROM bad)
  UNION
  SELECT c.contypid FROM pg_catalog.pg_constraint c
    WHERE c.contypid <> 0 AND (
      EXISTS (SELECT FROM pg_catalog.regexp_matches(c.conbin::pg_catalog.text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') m WHERE m[1]::pg_catalog.oid IN (SELECT oid FROM bad))
      OR EXISTS (SELECT FROM pg_catalog.regexp_matches(c.conbin::pg_catalog.text, ':opno ([0-9]+)', 'g') m
        JOIN pg_catalog.pg_operator o ON o.oid = m[1]::pg_catalog.oid WHERE o.oprcode IN (SELECT oid FROM bad)))
  UNION
  SELECT u.oid FROM pg_catalog.pg_cast c CROSS JOIN LATERAL (VALUES (c.castsource), (c.casttarget)) u(oid)
    WHERE c.castfunc IN (SELECT oid FROM bad)
      -- Both types must be there for it to run, so one of them may stay good.
      AND (u.oid >= 16384 OR c.castsource < 16384 AND c.casttarget < 16384)
  UNION
  SELECT oc.opcintype FROM pg_catalog.pg_opclass oc JOIN pg_catalog.pg_amproc a ON a.amprocfamily = oc.opcfamily
    WHERE a.amproc IN (SELECT oid FROM bad) AND (oc.opcdefault OR oc.opcintype >= 16384)
  UNION
  SELECT oc.opcintype FROM pg_catalog.pg_opclass oc JOIN pg_catalog.pg_amop a ON a.amopfamily = oc.opcfamily
    JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr
    WHERE o.oprcode IN (SELECT oid FROM bad) AND (oc.opcdefault OR oc.opcintype >= 16384)
  UNION
  SELECT d.oid FROM bad_type b JOIN (
    SELECT oid, typelem AS base FROM pg_catalog.pg_type WHERE typelem <> 0
    UNION ALL SELECT oid, typbasetype FROM pg_catalog.pg_type WHERE typtype = 'd'
    UNION ALL SELECT t.oid, a.atttypid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid
      WHERE t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL SELECT rngtypid, rngsubtype FROM pg_catalog.pg_range
    UNION ALL SELECT rngmultitypid, rngsubtype FROM pg_catalog.pg_range
  ) d ON d.base = b.oid
),
-- Functions with what they run besides themselves: the parts of an aggregate,
-- defaults of arguments, and the types of arguments and result.
func AS (
  SELECT p.oid, p.proname, p.pronamespace, CASE
    WHEN p.prorettype IN (SELECT oid FROM bad_type) OR EXISTS (SELECT FROM pg_catalog.unnest(p.proargtypes) a WHERE a IN (SELECT oid FROM bad_type)) THEN 3
    WHEN p.proargdefaults IS NOT NULL AND (
      EXISTS (SELECT FROM pg_catalog.regexp_matches(p.proargdefaults::pg_catalog.text, ':(?:funcid|opfuncid) ([0-9]+)', 'g') m WHERE m[1]::pg_catalog.oid IN (SELECT oid FROM bad))
      OR EXISTS (SELECT FROM pg_catalog.regexp_matches(p.proargdefaults::pg_catalog.text, ':opno ([0-9]+)', 'g') m
        JOIN pg_catalog.pg_operator o ON o.oid = m[1]::pg_catalog.oid WHERE o.oprcode IN (SELECT oid FROM bad))) THEN 3
    WHEN p.prokind = 'p' THEN 3
    WHEN p.prokind = 'a' THEN GREATEST(p.vol, (
      SELECT pg_catalog.max(q.vol) FROM pg_catalog.pg_aggregate a JOIN own q ON q.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn,
        a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) WHERE a.aggfnoid = p.oid))
    ELSE p.vol
  END AS vol
  FROM own p
),
-- Tables whose data is not on standbys, or not only in this database.
away(oid) AS (
  SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'f' OR relkind IN ('r', 'p', 'm') AND relpersistence <> 'p'
  UNION
  SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN away a ON a.oid = i.inhrelid
)
SELECT 'f', n.nspname, f.proname, pg_catalog.max(f.vol)::pg_catalog.text, NULL
  FROM func f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace GROUP BY n.nspname, f.proname
UNION ALL
SELECT 'o', n.nspname, o.oprname, pg_catalog.max(COALESCE(f.vol, 3))::pg_catalog.text, NULL
  FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace LEFT JOIN func f ON f.oid = o.oprcode
  WHERE o.oprcode <> 0 GROUP BY n.nspname, o.oprname
UNION ALL
SELECT 't', n.nspname, t.typname, CASE WHEN t.oid IN (SELECT oid FROM bad_type) OR NOT t.typisdefined THEN 'u' ELSE 's' END, NULL
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  WHERE n.nspname !~ '^pg_(toast|temp)'
UNION ALL
SELECT 'r', n.nspname, c.relname, CASE
    WHEN c.relkind = 'S' OR c.oid IN (SELECT oid FROM away)
      OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.atttypid IN (SELECT oid FROM bad_type)) THEN 'u'
    WHEN c.relkind = 'v' THEN 'v'
    ELSE 't'
  END,
  CASE
    WHEN c.relkind = 'v' THEN pg_catalog.pg_get_viewdef(c.oid)
    WHEN c.relrowsecurity THEN 'SELECT ' || COALESCE((SELECT pg_catalog.string_agg('(' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')', ', ')
      FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid AND p.polcmd IN ('r', '*') AND p.polqual IS NOT NULL), 'true')
  END
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f', 'S') AND n.nspname !~ '^pg_(toast|temp)'
