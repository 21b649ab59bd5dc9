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
		{"prepare transaction 'x'", Facts{EndsTransaction: true}},
		{"prepare x as select 1", Facts{Pin: PinPrepare}},
		{"SET TimeZone TO 'UTC'", Facts{Kind: Set, Name: "timezone"}},
		{"set time zone 'UTC'", Facts{Kind: Set, Name: "timezone"}},
		{"set names 'utf8'", Facts{Kind: Set, Name: "client_encoding"}},
		{"set session search_path = a, b", Facts{Kind: Set, Name: "search_path"}},
		{"set my.var = '1'", Facts{Kind: Set, Name: "my.var"}},
		{"set local x = 1", Facts{}},
		{"set transaction isolation level serializable", Facts{}},
		{"set session characteristics as transaction read only", Facts{Pin: PinSessionState}},
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
