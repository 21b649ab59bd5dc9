package local

import (
	"context"
	"fmt"
	"syscall"
)

const sigKill = syscall.SIGKILL

// command answers a command at once, or lets settle answer it later.
func (l *unitLoop) command(ctx context.Context, c command) {
	if c.verb == verbRestart && l.handsOver() && l.phase == running && l.wanted() {
		switch {
		case l.succession:
			l.replyLater(c.reply, &RequestError{Code: codeConflict, Message: fmt.Sprintf("%s is being restarted already", l.def.Name)})
			return
		case l.ready && !l.paused: // one that hangs cannot hand over
			l.succeed(ctx, c.reply)
			return
		}
	}
	later, err := l.obey(ctx, c)
	switch {
	case err != nil:
		l.replyLater(c.reply, err)
	case later && (l.phase == idle || l.phase == working && l.wanted() && !l.again):
		l.replyLater(c.reply, nil)
	case later:
		l.waiters = append(l.waiters, c.reply)
	default:
		l.replyLater(c.reply, nil)
	}
}

// obey reports if the answer comes later, when the unit has come to rest.
func (l *unitLoop) obey(ctx context.Context, c command) (later bool, err error) {
	switch c.verb {
	case verbDown:
		l.downing, l.again = true, false
		l.halt(ctx)
		return true, nil
	case verbHurry:
		if l.phase == stopping || l.phase == sweeping && len(l.old) > 0 {
			return false, l.kill()
		}
		return false, nil
	case verbPowerOff:
		l.again = false
		if l.phase == running || l.phase == stopping {
			l.phase = stopping
			l.timer.Stop()
			return true, l.kill()
		}
		l.halt(ctx)
		return true, nil
	case verbPowerOn:
		l.failures, l.everReady = 0, false
		if l.wanted() && l.phase == idle {
			l.launch(ctx, c.deps)
		}
		return false, nil
	}
	if err := l.refuse(c.verb); err != nil {
		return false, err
	}
	switch c.verb {
	case verbStop:
		l.held, l.again = true, false
		l.halt(ctx)
		return true, nil
	case verbStart, verbRestart:
		return l.startAgain(ctx, c.verb == verbRestart), nil
	case verbKill:
		return false, l.kill()
	case verbPause:
		if err := l.proc.Pause(); err != nil {
			return false, err
		}
		l.paused, l.ready = true, false
		return false, nil
	case verbResume:
		if err := l.proc.Resume(); err != nil {
			return false, err
		}
		l.paused = false
		return false, nil
	}
	return false, &RequestError{Code: codeNotFound, Message: fmt.Sprintf("there is no verb %q; a unit knows stop, start, restart, kill, pause and resume", c.verb)}
}

// refuse says why the user's verb makes no sense now.
func (l *unitLoop) refuse(v verb) error {
	conflict := func(format string, args ...any) error {
		return &RequestError{Code: codeConflict, Message: fmt.Sprintf(format, args...)}
	}
	name := l.def.Name
	switch {
	case l.downing:
		return conflict("the stack is being stopped")
	case l.def.Task != nil && v != verbStart && v != verbRestart:
		return conflict("%s is a task that runs once; it cannot %s", name, v)
	case l.powerless.Load():
		return conflict("%s stands in zone %s, which has no power; `fournines zone on %s`", name, l.def.Zone, l.def.Zone)
	}
	switch v {
	case verbKill, verbPause, verbResume:
		if l.phase != running {
			return conflict("%s is not running", name)
		}
	}
	return nil
}

// startAgain starts a unit that is stopped, and with restart also stops one
// that runs first. It reports if that takes until the unit has come to rest.
func (l *unitLoop) startAgain(ctx context.Context, restart bool) bool {
	l.held, l.failures = false, 0
	switch l.phase {
	case idle, resting:
		l.timer.Stop()
		if l.def.Task == nil || restart || !l.done {
			l.done = false
			l.launch(ctx, nil)
		}
	case stopping, sweeping:
		// A stop is under way: those who wait for it get their answer with ours.
		l.again = true
		return true
	case running:
		if restart {
			l.again = true
			l.halt(ctx)
			return true
		}
	case working:
		// It starts already; one that was cancelled starts anew in settle.
	}
	return false
}
