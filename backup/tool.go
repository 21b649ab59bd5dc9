package backup

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fournines/internal/process"
)

// stopGrace is how long pgBackRest may take to end a backup in order after it
// was asked to stop.
const stopGrace = 10 * time.Second

// call is one run of pgBackRest.
type call struct {
	command string
	// args are its options, operands what stands behind it.
	args, operands []string
	// node is the server or restored directory the command is about; the zero
	// Node is none.
	node Node
	// phase names the progress that the command's output tells; empty has none.
	phase string
	// stdout receives the output of commands that answer; nil for others.
	stdout io.Writer
	// warned is told what the command warned of when it went well; nil for
	// commands whose warnings say nothing more.
	warned func(string)
}

// environment is all that pgBackRest gets to know. Secrets travel here, where
// only the account itself can read them, and never in arguments; nothing is
// inherited, because a variable of the caller could change the target.
func (b *Backups) environment(n Node) ([]string, error) {
	c := &b.cfg
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + c.StateDir, "LC_ALL=C.UTF-8", "TZ=UTC"}
	set := func(option, value string) { env = append(env, "PGBACKREST_"+option+"="+value) }
	set("STANZA", c.Name)
	set("LOCK_PATH", b.state("lock"))
	set("SPOOL_PATH", b.state("spool"))
	set("LOG_PATH", c.StateDir)
	set("LOG_LEVEL_FILE", "off")
	set("LOG_TIMESTAMP", "n")
	set("COMPRESS_TYPE", "zst")
	set("PROCESS_MAX", strconv.Itoa(c.Processes))
	set("ARCHIVE_TIMEOUT", strconv.Itoa(int(c.ArchiveTimeout.Seconds())))
	// Small files share one: a new cluster has a thousand of them, and each costs
	// a sync of the disk or a request to S3.
	set("REPO1_BUNDLE", "y")
	set("REPO1_RETENTION_FULL_TYPE", "time")
	set("REPO1_RETENTION_FULL", strconv.Itoa(c.KeepDays))
	if c.WALLimit > 0 {
		set("ARCHIVE_PUSH_QUEUE_MAX", strconv.FormatInt(c.WALLimit, 10))
	}
	if n.DataDir != "" {
		set("PG1_PATH", n.DataDir)
	}
	if n.SocketDir != "" {
		set("PG1_SOCKET_PATH", n.SocketDir)
		set("PG1_PORT", strconv.Itoa(n.Port))
		set("PG1_USER", c.User)
		if c.PasswordFile != "" {
			password, err := readSecret(c.PasswordFile)
			if err != nil {
				return nil, err
			}
			env = append(env, "PGPASSWORD="+password)
		}
	}
	if s := c.S3; s != nil {
		set("REPO1_TYPE", "s3")
		set("REPO1_PATH", s.prefix())
		set("REPO1_S3_BUCKET", s.Bucket)
		set("REPO1_S3_ENDPOINT", s.Endpoint)
		set("REPO1_S3_REGION", s.Region)
		set("IO_TIMEOUT", strconv.FormatFloat(s.timeout().Seconds(), 'f', -1, 64))
		if s.PathStyle {
			set("REPO1_S3_URI_STYLE", "path")
		}
		if s.CAFile != "" {
			set("REPO1_STORAGE_CA_FILE", s.CAFile)
		}
		for _, f := range []struct{ option, path string }{
			{"REPO1_S3_KEY", s.AccessKeyFile}, {"REPO1_S3_KEY_SECRET", s.SecretKeyFile},
		} {
			secret, err := readSecret(f.path)
			if err != nil {
				return nil, err
			}
			set(f.option, secret)
		}
	} else {
		set("REPO1_PATH", c.Folder)
	}
	if c.CipherPassFile != "" {
		pass, err := readSecret(c.CipherPassFile)
		if err != nil {
			return nil, err
		}
		set("REPO1_CIPHER_TYPE", "aes-256-cbc")
		set("REPO1_CIPHER_PASS", pass)
	}
	return env, nil
}

// run runs pgBackRest to its end. When ctx ends it is asked to stop, and killed
// when it does not; it never outlives this process.
func (b *Backups) run(ctx context.Context, c call) error {
	if err := b.prepare(); err != nil {
		return err
	}
	env, err := b.environment(c.node)
	if err != nil {
		return err
	}
	args := []string{"--no-config", "--log-level-stderr=warn"}
	if c.phase != "" {
		args = append(args, "--log-level-console=detail")
	} else {
		args = append(args, "--log-level-console=off")
	}
	if takesRetries[c.command] && b.cfg.S3 == nil {
		// What a directory refuses once it refuses fifteen seconds later as well.
		args = append(args, "--job-retry=0")
	}
	args = append(append(append(args, c.args...), c.command), c.operands...)
	cmd := exec.CommandContext(ctx, b.cfg.PgBackRest, args...)
	cmd.Env = env
	cmd.Dir = b.cfg.StateDir
	if c.command == "archive-push" || c.command == "archive-get" {
		cmd.Dir = "" // the server gives paths relative to its data directory
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	lines, err := b.output(cmd, c)
	if err != nil {
		return err
	}
	if err := runLocked(cmd, patient[c.command]); err != nil {
		lines()
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is not installed; run `make setup`, or correct pgbackrest in the configuration", b.cfg.PgBackRest)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s was interrupted: %w", c.command, context.Cause(ctx))
		}
		return b.explain(c.command, cmd.ProcessState, err, stderr.String())
	}
	lines()
	if c.warned != nil {
		c.warned(stderr.String())
	}
	return nil
}

// takesRetries are the commands whose workers can repeat a file.
var takesRetries = map[string]bool{"backup": true, "restore": true, "verify": true}

// output connects the command's stdout to what wants it. The returned function
// waits until all of it was taken.
func (b *Backups) output(cmd *exec.Cmd, c call) (done func(), err error) {
	if c.phase == "" {
		cmd.Stdout = c.stdout
		return func() {}, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	cmd.Stdout = w
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		b.follow(r, c)
	}()
	return func() {
		_ = w.Close()
		<-finished
		_ = r.Close()
	}, nil
}

// percent is how pgBackRest ends the line of each file: (8KB, 12.34%).
var percent = regexp.MustCompile(`, ([0-9]+\.[0-9]+)%\)`)

// follow reads the log of a long command and tells its progress.
func (b *Backups) follow(r io.Reader, c call) {
	reader := bufio.NewReader(r)
	for {
		line, err := reader.ReadString('\n')
		if c.stdout != nil {
			_, _ = io.WriteString(c.stdout, line) // a buffer
		}
		switch m := percent.FindStringSubmatch(line); {
		case m != nil:
			if value, err := strconv.ParseFloat(m[1], 64); err == nil {
				b.progress(Progress{Phase: c.phase, Percent: value})
			}
		case strings.Contains(line, "wait for all WAL segments to archive"):
			b.progress(Progress{Phase: "wait for the WAL", Percent: -1})
		}
		if err != nil {
			return
		}
	}
}

// patient are the commands that make way for the database and its application.
var patient = map[string]bool{"backup": true, "restore": true, "verify": true, "expire": true}

// makesWay is the niceness of patient commands.
const makesWay = 10

// runLocked runs the command to its end; see startLocked.
func runLocked(cmd *exec.Cmd, nice bool) error {
	started := make(chan error, 1)
	ended := make(chan error, 1)
	go func() { ended <- startLocked(cmd, started) }()
	if err := <-started; err != nil {
		return err
	}
	if nice {
		// Its workers, which it starts later, inherit it. Without it they are only
		// less polite.
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, cmd.Process.Pid, makesWay)
	}
	return <-ended
}

// startLocked starts the command, tells started how that went, and waits for its
// end, all on one thread: the kernel ties Pdeathsig to the thread that started
// the child.
func startLocked(cmd *exec.Cmd, started chan<- error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	started <- err
	if err != nil {
		return err
	}
	return cmd.Wait()
}

// ToolError says what pgBackRest refused to do and why, in one sentence.
type ToolError struct {
	// Command of pgBackRest, "backup".
	Command string
	// Code is its exit status; -1 when a signal ended it.
	Code int
	// Message is the sentence.
	Message string
}

func (e *ToolError) Error() string { return e.Command + ": " + e.Message }

// Exit codes of pgBackRest (src/build/error/error.yaml).
const (
	codeChecksum       = 26
	codeFormat         = 29
	codePathNotEmpty   = 40
	codeDuplicateWAL   = 45
	codeLocked         = 50
	codeMissingFile    = 55
	codeNoPrimary      = 56
	codeNoBackupSet    = 75
	codeArchiveTimeout = 82
	codeCrypto         = 95
	codeNoRepository   = 103
)

var (
	errorLine  = regexp.MustCompile(`^ERROR: \[[0-9]+\]: (.*)$`)
	fromWorker = regexp.MustCompile(`raised from \S+ protocol( on '[^']*')?: `)
	indexFile  = regexp.MustCompile(`(backup|archive)\.info`)
	walName    = regexp.MustCompile(`[0-9A-F]{24}`)
)

// explain turns the end of pgBackRest into one sentence that names the cause
// and, where it is known, what to do.
func (b *Backups) explain(command string, state *os.ProcessState, err error, stderr string) error {
	if state == nil {
		return fmt.Errorf("start pgBackRest: %w", err)
	}
	e := &ToolError{Command: command, Code: state.ExitCode()}
	if e.Code < 0 {
		e.Message = "pgBackRest was killed (" + state.String() + "); nothing of it counts as a backup"
		return e
	}
	cause := firstError(stderr)
	message := ""
	switch {
	case strings.Contains(cause, "[28]"), strings.Contains(cause, "unable to write") && b.noRoom():
		message = "the target " + b.Target() + " is full"
	case strings.Contains(cause, "[122]"):
		message = "the disk quota of the target " + b.Target() + " is used up"
	case strings.Contains(cause, "[30]"):
		message = "the target " + b.Target() + " is read-only"
	case strings.Contains(cause, "[13]"):
		message = "permission denied: give the account that runs this the right to use what is named"
	case strings.Contains(cause, "do not match stanza"):
		message = "the set of backups " + b.cfg.Name + " in " + b.Target() + " is that of another cluster: give this one a name or a target of its own"
	case b.serviceTrouble(stderr) != "":
		message = b.serviceTrouble(stderr)
	default:
		message = b.meaning(e.Code, cause)
	}
	switch {
	case message == "":
		e.Message = cause
	case cause == "":
		e.Message = message
	default:
		e.Message = message + " (" + cause + ")"
	}
	return e
}

var (
	httpFailed = regexp.MustCompile(`HTTP request failed with ([0-9]{3})`)
	// serviceCode is how an S3 service names an error.
	serviceCode = regexp.MustCompile(`<Code>([A-Za-z0-9]+)</Code>`)
	noAnswer    = regexp.MustCompile(`unable to connect to|unable to get address|HostConnectError|timeout after [0-9]+ms waiting for (read|write)|unexpected EOF|read error on socket|TLS error`)
)

// serviceTrouble says what an S3 service refused, or that it did not answer;
// empty when the target is a folder or it is something else.
func (b *Backups) serviceTrouble(text string) string {
	s := b.cfg.S3
	if s == nil {
		return ""
	}
	code := ""
	if m := serviceCode.FindStringSubmatch(text); m != nil {
		code = m[1]
	}
	status := httpFailed.FindStringSubmatch(text)
	switch {
	case strings.Contains(text, "unable to verify certificate"), strings.Contains(text, "unable to find hostname"):
		return "the certificate of " + s.Endpoint + " is not trusted: name the file of its authority in s3.caFile"
	case code == "NoSuchBucket":
		return "there is no bucket " + s.Bucket + " at " + s.Endpoint + ": create it, or correct s3.bucket"
	case status != nil && status[1] == "403":
		return s.Endpoint + " refuses the keys in " + s.AccessKeyFile + " and " + s.SecretKeyFile + " for bucket " + s.Bucket + " (" + code + ")"
	case status != nil && code != "":
		return s.Endpoint + " answers with status " + status[1] + " (" + code + ")"
	case noAnswer.MatchString(text):
		return s.Endpoint + " does not answer"
	}
	return ""
}

const corrupt = "a file in the backup is corrupt, so it cannot be restored: verify the others and take a new one"

// noRoom reports whether the folder has less room than one WAL segment needs. A
// write that fits in part fails without a number that says so.
func (b *Backups) noRoom() bool {
	if b.cfg.Folder == "" {
		return false
	}
	free, err := process.FreeBytes(b.cfg.Folder)
	return err == nil && free < walSegmentSize
}

// meaning says what an exit code means to an operator; empty when pgBackRest's
// own words say it best.
func (b *Backups) meaning(code int, cause string) string {
	switch code {
	case codeChecksum:
		return corrupt
	case codeFormat, codeCrypto:
		if !indexFile.MatchString(cause) {
			return corrupt
		}
		if b.cfg.CipherPassFile != "" {
			return "the target cannot be read with the passphrase in " + b.cfg.CipherPassFile + ", or its index is corrupt"
		}
		return "the index of the backups is corrupt, or encrypted and cipherPassFile is not set"
	case codePathNotEmpty:
		return "the directory to restore into is not empty"
	case codeDuplicateWAL:
		return "the archive has another segment of this name: two servers archive into one set of backups"
	case codeLocked:
		return "another pgBackRest works for this set of backups"
	case codeMissingFile, codeNoRepository:
		if indexFile.MatchString(cause) {
			return "the target " + b.Target() + " has no set of backups called " + b.cfg.Name + ": take a first backup, or see if the target is mounted"
		}
	case codeNoPrimary:
		return "the server does not answer or is no primary"
	case codeNoBackupSet:
		return "no backup ends before that point"
	case codeArchiveTimeout:
		return fmt.Sprintf("WAL segment %s did not reach the archive within %v: archive_command fails or hangs, see the server's log", walName.FindString(cause), b.cfg.ArchiveTimeout)
	}
	return ""
}

// firstError is pgBackRest's error message without its hints, in one line.
func firstError(stderr string) string {
	var words []string
	for line := range strings.Lines(stderr) {
		line = strings.TrimSpace(line)
		if m := errorLine.FindStringSubmatch(line); m != nil {
			words = append(words[:0], fromWorker.ReplaceAllString(m[1], ""))
			continue
		}
		if len(words) == 0 || line == "" {
			continue
		}
		if strings.HasPrefix(line, "HINT:") || strings.HasPrefix(line, "[") {
			break
		}
		words = append(words, line)
	}
	text := strings.ToValidUTF8(strings.Join(words, " "), "?")
	// What follows is the whole request and its answer.
	text, _, _ = strings.Cut(text, ": *** Path")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if len(text) > longestCause {
		text = strings.ToValidUTF8(text[:longestCause], "") + "..."
	}
	return text
}

// longestCause bounds what is quoted of pgBackRest: it quotes whole files that
// it cannot read.
const longestCause = 400
