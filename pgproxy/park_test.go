package pgproxy

import (
	"fmt"
	"io"
	"testing"
	"time"

	"fournines/internal/eventually"
	"fournines/internal/reactor"
	"fournines/internal/servertest"
)

// TestParkedClients: silent clients lose their goroutines and go on as if they
// had not, and are found when the proxy stops.
func TestParkedClients(t *testing.T) {
	if l, err := reactor.New(); err != nil || l == nil {
		t.Skip("no loop on this system")
	}
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	var clients []*client
	for range 5 {
		c := newClient(t, r.dsn())
		if err := c.ask(simpleRequest); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	for range 2 {
		r.awaitParked(t, len(clients))
		for _, c := range clients {
			for range 3 {
				if err := c.ask(simpleRequest); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	r.awaitParked(t, len(clients))
	_ = clients[0].Close()
	eventually.Nil(t, time.Minute, func() error {
		if n := r.clients.Load(); n != int64(len(clients)-1) {
			return fmt.Errorf("%d clients", n)
		}
		return nil
	})
	r.awaitParked(t, len(clients)-1)
	// A drain reaches those who are parked.
	r.cancel()
	for _, c := range clients[1:] {
		if _, err := io.ReadAll(c.Conn); err != nil {
			t.Errorf("the end of a parked client: %v", err)
		}
	}
}

// TestParkingKeepsTransactions: whoever holds a server is left alone.
func TestParkingKeepsTransactions(t *testing.T) {
	db := servertest.NewPostgres(t, servertest.PostgresOptions{})
	r := startProxy(t, nil, db)
	c := r.connect(t)
	mustExec(t, c, "BEGIN")
	mustExec(t, c, "CREATE TABLE kept (n int)")
	silent := newClient(t, r.dsn())
	if err := silent.ask(simpleRequest); err != nil {
		t.Fatal(err)
	}
	r.awaitParked(t, 1) // and the transaction has been silent for longer
	for _, s := range r.clientSessions() {
		s.mu.Lock()
		s.parkMu.Lock()
		if s.srv != nil && s.parked {
			t.Error("a transaction was parked")
		}
		s.parkMu.Unlock()
		s.mu.Unlock()
	}
	mustExec(t, c, "INSERT INTO kept VALUES (1)")
	mustExec(t, c, "COMMIT")
	if n := scan[int](t, c, "SELECT n FROM kept"); n != 1 {
		t.Errorf("got %d", n)
	}
}

// awaitParked waits until so many sessions have no goroutine.
func (r *running) awaitParked(t *testing.T, want int) {
	t.Helper()
	eventually.Nil(t, time.Minute, func() error {
		n := 0
		for _, s := range r.clientSessions() {
			s.parkMu.Lock()
			if s.parked {
				n++
			}
			s.parkMu.Unlock()
		}
		if n != want {
			return fmt.Errorf("%d are parked, not %d", n, want)
		}
		return nil
	})
}
