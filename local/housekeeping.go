package local

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"fournines/internal/process"
)

// housekeepingLoop rotates logs and measures memory.
func (s *Supervisor) housekeepingLoop(ctx context.Context) {
	for sleep(ctx, housekeeping) == nil {
		s.rotateLogs()
		s.freshMemory(housekeeping / 2)
	}
}

// reapLoop collects the orphans that the units leave to a subreaper.
func (s *Supervisor) reapLoop(ctx context.Context) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	var reaper process.Reaper
	for {
		// A parent that died may have left us a zombie without a signal.
		wait := housekeeping
		if again, err := reaper.Look(); err != nil {
			s.log.Warn("orphans not collected", "err", err)
		} else if again {
			wait = reapAgain
		}
		timer := time.NewTimer(wait)
		select {
		case <-ended:
			// The pause lets those waiters act who are meant, and bounds what a
			// unit costs that forks all the time.
			timer.Reset(reapAgain)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *Supervisor) rotateLogs() {
	names := []string{SupervisorLog}
	for _, u := range s.units {
		names = append(names, u.def.Name)
	}
	for _, name := range names {
		if _, err := process.RotateLog(LogPath(s.opts.Dir, name), s.opts.LogMaxBytes, max(s.opts.LogKeep, 0)); err != nil {
			s.log.Warn("log not rotated", "unit", name, "err", err)
		}
	}
}

// freshMemory returns the memory of each unit, measured at most maxAge ago.
func (s *Supervisor) freshMemory(maxAge time.Duration) map[string]int64 {
	s.memoryMu.Lock()
	defer s.memoryMu.Unlock()
	if last := s.memory.Load(); last != nil && time.Since(s.memoryTime) < maxAge {
		return *last
	}
	table, err := process.Scan()
	if err != nil {
		s.log.Warn("memory not measured", "err", err)
		return nil
	}
	out := map[string]int64{}
	for _, u := range s.units {
		if rec := u.record.Load(); rec.PID != 0 {
			out[u.def.Name] = process.Memory(table.Members(rec.Identity, u.mark))
		}
	}
	s.memory.Store(&out)
	s.memoryTime = time.Now()
	return out
}
