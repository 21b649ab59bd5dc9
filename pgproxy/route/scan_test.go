package route

import "testing"

func TestScan(t *testing.T) {
	tests := []struct {
		sql  string
		want Facts
	}{
		{"", Facts{Kind: Empty}},
		{" ; -- nothing\n;", Facts{Kind: Empty}},
		{"select 1", Facts{}},
		{"SELECT 'listen; begin', $$commit; listen$$, $a$ ; $a$", Facts{}},
		{"BEGIN", Facts{Kind: Begin}},
		{"/* a /* b */ ; */ start transaction", Facts{Kind: Begin}},
		{"COMMIT;", Facts{Kind: Commit, EndsTransaction: true}},
		{"end work", Facts{Kind: Commit, EndsTransaction: true}},
		{"ROLLBACK", Facts{Kind: Rollback, EndsTransaction: true}},
		{"rollback to savepoint a", Facts{Kind: Savepoint}},
		{"release a", Facts{Kind: Savepoint}},
		{"rollback to chain", Facts{Kind: Savepoint}},
		{"rollback to prepared", Facts{Kind: Savepoint}},
		{"rollback and no chain", Facts{Kind: Rollback, EndsTransaction: true}},
		{"rollback and chain", Facts{EndsTransaction: true}},
		{"rollback prepared 'x'", Facts{EndsTransaction: true}},
		{"commit and chain", Facts{EndsTransaction: true}},
		{"commit and no chain", Facts{Kind: Commit, EndsTransaction: true}},
		{"commit prepared 'x'", Facts{EndsTransaction: true}},
		{"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", Facts{Kind: Begin, Isolation: RepeatableRead, Access: ReadOnly}},
		{"start transaction read write, isolation level serializable, deferrable", Facts{Kind: Begin, Isolation: Serializable, Access: ReadWrite, Deferrable: true}},
		{"begin isolation level read uncommitted not deferrable", Facts{Kind: Begin, Isolation: ReadCommitted}},
		{"begin isolation level chaos", Facts{Kind: Begin, Isolation: IsolationUnknown}},
		{"set transaction snapshot 'x'", Facts{Kind: SetTransaction, Isolation: IsolationUnknown}},
		{"set local transaction_isolation = 'serializable'", Facts{Kind: SetLocal, Name: "transaction_isolation", Isolation: Serializable}},
		{"SET default_transaction_isolation TO \"Repeatable Read\"", Facts{Kind: Set, Name: "default_transaction_isolation", Isolation: RepeatableRead}},
		{"set default_transaction_isolation = default", Facts{Kind: Set, Name: "default_transaction_isolation", Isolation: IsolationUnknown}},
		{"set session characteristics as transaction isolation level serializable", Facts{Pin: PinSessionState, Isolation: Serializable}},
		{"set default_transaction_read_only = on", Facts{Kind: Set, Name: "default_transaction_read_only", Access: ReadOnly}},
		{"set transaction_read_only to 'false'", Facts{Kind: Set, Name: "transaction_read_only", Access: ReadWrite}},
		{"set fournines.route = 'primary'", Facts{Kind: Set, Name: RouteSetting, Hint: HintPrimary}},
		{"SET Fournines.Route TO Standby", Facts{Kind: Set, Name: RouteSetting, Hint: HintStandby}},
		{"set local fournines.route to default", Facts{Kind: SetLocal, Name: RouteSetting, Hint: HintAuto}},
		{"set fournines.route = 'other'", Facts{Kind: Set, Name: RouteSetting, Hint: HintInvalid}},
		{"set fournines.route = primary, standby", Facts{Kind: Set, Name: RouteSetting, Hint: HintInvalid}},
		{"reset fournines.route", Facts{Kind: Reset, Name: RouteSetting}},
		{"set standard_conforming_strings = off", Facts{Kind: Set, Name: "standard_conforming_strings", Foreign: true}},
		{"set standard_conforming_strings to 'on'", Facts{Kind: Set, Name: "standard_conforming_strings"}},
		{"set local standard_conforming_strings = 0", Facts{Kind: SetLocal, Name: "standard_conforming_strings", Foreign: true}},
		{"select 1; set standard_conforming_strings = off", Facts{Kind: Many, Pin: PinSessionState, Foreign: true}},
		{"SET client_encoding TO 'UTF-8'", Facts{Kind: Set, Name: "client_encoding"}},
		{"set names 'SJIS'", Facts{Kind: Set, Name: "client_encoding", Foreign: true}},
		{"set client_encoding = \"latin1\"", Facts{Kind: Set, Name: "client_encoding"}},
		{"begin isolation level serializable; set transaction read only", Facts{Kind: Many, Isolation: Serializable, Access: ReadOnly}},
		{"create table t ()", Facts{DDL: true}},
		{"ALTER FUNCTION f() VOLATILE", Facts{DDL: true}},
		{"select 1; drop table t", Facts{Kind: Many, DDL: true}},
		{"select * into t from x", Facts{DDL: true}},
		{"explain analyze create table t as select 1", Facts{DDL: true}},
		{"do $$ begin end $$", Facts{DDL: true, OwnCommits: true}},
		{"call p()", Facts{OwnCommits: true}},
		{"vacuum t", Facts{OwnCommits: true}},
		{"create index concurrently on t (n)", Facts{DDL: true, OwnCommits: true}},
		{"select 1; call p()", Facts{Kind: Many, OwnCommits: true}},
		{"insert into t values (1)", Facts{}},
		{"with x as (select 1) insert into t select * from x", Facts{}},
		{"merge into t using x on true when matched then delete", Facts{}},
		{"select 'create', \"into\", create_at", Facts{}},
		{"select U&\"pg\\005fadvisory_lock\"(1)", Facts{Pin: PinSessionState}},
		{"-- x\rlisten y", Facts{Pin: PinListen}},
		{"select E'a'\n'\\'; listen x'", Facts{}},
		{"select 'a' '\\'; listen x --'", Facts{Kind: Many, Pin: PinListen}},
		{"select 1or pg_advisory_lock(1)", Facts{Pin: PinAdvisoryLock}},
		{"prepare transaction 'x'", Facts{EndsTransaction: true}},
		{"prepare x as select 1", Facts{Pin: PinPrepare}},
		{"SET TimeZone TO 'UTC'", Facts{Kind: Set, Name: "timezone"}},
		{"set time zone 'UTC'", Facts{Kind: Set, Name: "timezone"}},
		{"set names 'utf8'", Facts{Kind: Set, Name: "client_encoding"}},
		{"set session search_path = a, b", Facts{Kind: Set, Name: "search_path"}},
		{"set my.var = '1'", Facts{Kind: Set, Name: "my.var"}},
		{"set local x = 1", Facts{Kind: SetLocal, Name: "x"}},
		{"set transaction isolation level serializable", Facts{Kind: SetTransaction, Isolation: Serializable}},
		{"set session characteristics as transaction read only", Facts{Pin: PinSessionState, Access: ReadOnly}},
		{"set role x", Facts{Pin: PinSessionState}},
		{"reset timezone", Facts{Kind: Reset, Name: "timezone"}},
		{"RESET TIME ZONE", Facts{Kind: Reset, Name: "timezone"}},
		{"reset my.var", Facts{Kind: Reset, Name: "my.var"}},
		{"reset all", Facts{Kind: ResetAll}},
		{"discard all", Facts{Kind: DiscardAll}},
		{"discard plans", Facts{}},
		{"deallocate all", Facts{Kind: DeallocateAll}},
		{"deallocate prepare \"Ab\"", Facts{Kind: Deallocate, Name: "Ab"}},
		{"listen x", Facts{Pin: PinListen}},
		{"create temp table t ()", Facts{Pin: PinTemporary}},
		{"select 1 into temporary t", Facts{Pin: PinTemporary}},
		{"declare c cursor with hold for select 1", Facts{Pin: PinHoldCursor}},
		{"declare c cursor for select 1", Facts{}},
		{"select \"pg_advisory_lock\"(1)", Facts{Pin: PinAdvisoryLock}},
		{"select pg_advisory_xact_lock(1)", Facts{}},
		{"select pg_catalog.set_config('a','b',false)", Facts{Pin: PinSessionState}},
		{"begin; select 1; commit", Facts{Kind: Many, EndsTransaction: true}},
		{"select 1; set x = 1", Facts{Kind: Many, Pin: PinSessionState}},
		{"set x = 1; select 1", Facts{Kind: Many, Pin: PinSessionState}},
		{"select E'\\'; listen x'", Facts{}},
		{"select 'it''s; listen x'", Facts{}},
		{"select $1, a$b from t", Facts{}},
	}
	for _, tt := range tests {
		t.Run(tt.sql, func(t *testing.T) {
			if got := Scan([]byte(tt.sql)); got != tt.want {
				t.Fatalf("got %+v want %+v", got, tt.want)
			}
		})
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("set a.b = 'x'; $q$ ; $q$ /* */ e'\\"))
	f.Fuzz(func(t *testing.T, b []byte) { Scan(b) })
}

func BenchmarkScan(b *testing.B) {
	sql := []byte("SELECT messages.id AS messages_id, messages.app_id AS messages_app_id, messages.query FROM messages WHERE messages.conversation_id = 'b6b1' ORDER BY messages.created_at DESC LIMIT 10")
	b.ReportAllocs()
	for b.Loop() {
		Scan(sql)
	}
}
