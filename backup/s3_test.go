package backup_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"fournines/backup"
	"fournines/internal/eventually"
	"fournines/internal/servertest"
)

const (
	bucket      = "dify-backups"
	accessKey   = "the-access-key"
	secretKey   = "the-secret-key-that-nobody-sees"
	weedStartup = time.Minute
)

// s3Server is a real S3 service with TLS and one account.
type s3Server struct {
	program, dir string
	filer        string // host:port
	port         int    // of S3, on localhost
	certificate  string
	cmd          *exec.Cmd
	ended        chan struct{}
}

func newS3Server(t *testing.T) *s3Server {
	t.Helper()
	program := os.Getenv(weedVariable)
	if program == "" {
		var err error
		if program, err = filepath.Abs(weedPath); err != nil {
			t.Fatal(err)
		}
	}
	servertest.Need(t, program)
	dir, err := os.MkdirTemp("", "fournines-test-")
	if err != nil {
		t.Fatal(err)
	}
	s := &s3Server{program: program, dir: dir, port: localhostPort(t), filer: servertest.FreeAddress(t)}
	t.Cleanup(func() {
		s.stop(t)
		_ = os.RemoveAll(dir)
	})
	s.certificate, _ = servertest.Certificate(t, dir, "localhost", "localhost")
	identities := fmt.Sprintf(`{"identities": [{"name": "backup", "credentials": [{"accessKey": %q, "secretKey": %q}],
		"actions": ["Read:%s", "Write:%s", "List:%s", "Tagging:%s"]}]}`, accessKey, secretKey, bucket, bucket, bucket, bucket)
	if err := os.WriteFile(filepath.Join(dir, "s3.json"), []byte(identities), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	eventually.Nil(t, weedStartup, func() error {
		resp, err := http.Post("http://"+s.filer+"/buckets/"+bucket+"/", "", nil) //nolint:noctx // bounded by the server's life
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("make the bucket: %s", resp.Status)
		}
		return nil
	})
	return s
}

func (s *s3Server) endpoint() string { return fmt.Sprintf("localhost:%d", s.port) }

// localhostPort is a free port of 127.0.0.1 below those that the kernel takes for
// outgoing connections: the certificate and pgBackRest want the name localhost.
func localhostPort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20000 + mathrand.N(10000)
		if ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = ln.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// start starts the server and waits until it serves.
func (s *s3Server) start(t *testing.T) {
	t.Helper()
	filerHost, filerPort, err := net.SplitHostPort(s.filer)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(s.dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(s.dir, "weed.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// All parts share an address that nobody else has, so their ports are free.
	s.cmd = exec.Command(s.program, "server", "-dir="+data, "-ip="+filerHost, "-ip.bind="+filerHost,
		"-master.volumeSizeLimitMB=64", "-volume.max=40", "-filer", "-filer.port="+filerPort,
		"-s3", "-s3.ip.bind=127.0.0.1", "-s3.port=0", fmt.Sprintf("-s3.port.https=%d", s.port),
		"-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.localSocket="+filepath.Join(s.dir, "s3.sock"),
		"-s3.cert.file="+s.certificate, "-s3.key.file="+filepath.Join(s.dir, "key.pem"),
		"-s3.config="+filepath.Join(s.dir, "s3.json"), "-s3.autoCreateBucket=false", "-s3.iam=false")
	s.cmd.Dir = s.dir
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, //nolint:gosec // only to see that it serves
	}}
	eventually.Nil(t, weedStartup, func() error {
		select {
		case <-s.ended:
			text, _ := os.ReadFile(filepath.Join(s.dir, "weed.log"))
			t.Fatalf("weed ended:\n%s", text)
		default:
		}
		resp, err := client.Get("https://" + s.endpoint() + "/status") //nolint:noctx // has a timeout
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

func (s *s3Server) stop(t *testing.T) {
	t.Helper()
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(10 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
}

// TestS3 takes a cluster's backups to an S3 service and back, and takes the
// service away.
func TestS3(t *testing.T) {
	server := newS3Server(t)
	target := &backup.S3{
		Bucket: bucket, Endpoint: server.endpoint(), Region: "us-east-1", Prefix: "site", PathStyle: true,
		CAFile: server.certificate, Timeout: 2 * time.Second,
	}
	s := newSite(t, func(c *backup.Config) { c.Folder, c.S3 = "", target })
	target.AccessKeyFile, target.SecretKeyFile = s.secret(t, "access", accessKey), s.secret(t, "key", secretKey)
	s.write(t, s.cfgFile, s.cfg)
	k := s.open(t, nil)
	ctx := t.Context()
	s.pg.Exec("CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)")
	first, err := k.Now(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	a := s.insert(t, "a")
	s.insert(t, "b")
	s.archive(t, k)

	t.Run("list, verify and restore", func(t *testing.T) {
		inv, err := k.List(ctx)
		if err != nil || len(inv.Backups) != 1 || inv.Backups[0].Label != first.Label || inv.Backups[0].Stored == 0 {
			t.Errorf("inventory %+v, %v", inv, err)
		}
		if v, err := k.Verify(ctx); err != nil || len(v.Checked) != 1 || v.Segments < 2 {
			t.Errorf("verification %+v, %v", v, err)
		}
		dir := filepath.Join(s.dir, "restored")
		defer os.RemoveAll(dir)
		if _, err := k.Restore(ctx, backup.Restore{Dir: dir, Goal: backup.Goal{XID: a.xid}}); err != nil {
			t.Fatal(err)
		}
		if got := notes(t, dir); !slices.Equal(got, []string{"a"}) {
			t.Errorf("restored rows %v, want a alone", got)
		}
	})

	for _, tt := range []struct {
		name   string
		change func(*backup.S3)
		want   string
	}{
		{"wrong secret key", func(c *backup.S3) { c.SecretKeyFile = s.secret(t, "wrong-key", "not-the-key") }, "refuses the keys in " + target.AccessKeyFile},
		{"unknown access key", func(c *backup.S3) { c.AccessKeyFile = s.secret(t, "wrong-access", "nobody") }, "(InvalidAccessKeyId)"},
		{"bucket of somebody else", func(c *backup.S3) { c.Bucket = "other" }, "other"},
		{"certificate nobody vouches for", func(c *backup.S3) { c.CAFile = "/etc/ssl/certs/ca-certificates.crt" }, "name the file of its authority in s3.caFile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			other := s.open(t, func(c *backup.Config) {
				changed := *c.S3
				tt.change(&changed)
				c.S3 = &changed
			})
			_, err := other.List(ctx)
			oneSentence(t, err, tt.want)
			_, err = other.Now(ctx, "")
			oneSentence(t, err, tt.want)
			for _, secret := range []string{secretKey, "not-the-key"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error has a key: %v", err)
				}
			}
		})
	}

	t.Run("server away", func(t *testing.T) {
		server.stop(t)
		s.insert(t, "c")
		s.pg.Exec("SELECT pg_switch_wal()")
		_, err := k.List(ctx)
		oneSentence(t, err, server.endpoint()+" does not answer")
		eventually.Nil(t, archiveLimit, func() error {
			lag, err := k.ArchiveLag(ctx)
			if err == nil && (lag.Waiting == 0 || lag.Failed == 0 || lag.Oldest == 0) {
				err = fmt.Errorf("no failed attempt yet: %+v", lag)
			}
			return err
		})
		server.start(t)
		s.insert(t, "d")
		s.archive(t, k)
		if v, err := k.Verify(ctx); err != nil {
			t.Errorf("after the service came back: %+v, %v", v, err)
		}
	})
}
