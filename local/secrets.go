package local

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"fournines/internal/process"
)

// secretBytes is the entropy of a generated secret: 192 bits, which base64
// writes as 32 characters without padding.
const secretBytes = 24

// secretDir is where the secrets of a stack lie, under its data directory.
const secretDir = "secrets"

// webhookSecret signs webhook calls; receivers' libraries want it in the form
// of the Standard Webhooks specification.
const webhookSecret = "gateway-webhook"

// Secrets are the generated passwords and keys of a stack, one file each,
// mode 0600, owned by the account that runs the processes which read them.
type Secrets struct {
	dir   string
	owner process.Owner
}

// OpenSecrets returns the secrets of the stack in the data directory dir. It
// makes nothing.
func OpenSecrets(dir string, owner process.Owner) *Secrets {
	return &Secrets{dir: filepath.Join(dir, secretDir), owner: owner}
}

// Path is the file of the secret called name; it may not exist yet.
func (s *Secrets) Path(name string) string { return filepath.Join(s.dir, name) }

// Ensure generates each named secret that does not exist yet. A secret that
// exists is never changed: servers have it in their data.
func (s *Secrets) Ensure(names ...string) error {
	if err := process.MkdirAll(s.dir, 0o700, s.owner); err != nil {
		return err
	}
	for _, name := range names {
		_, err := os.Stat(s.Path(name))
		if err == nil {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for secret %s: %w", name, err)
		}
		if err := process.WriteFile(s.Path(name), []byte(newSecret(name)+"\n"), 0o600, s.owner); err != nil {
			return fmt.Errorf("write secret %s: %w", name, err)
		}
	}
	return nil
}

// newSecret is a random secret in the form that its readers want.
func newSecret(name string) string {
	random := make([]byte, secretBytes)
	// Read never fails and always fills the slice.
	_, _ = rand.Read(random)
	if name == webhookSecret {
		return "whsec_" + base64.StdEncoding.EncodeToString(random)
	}
	// The URL alphabet has nothing that a shell, a URL or an INI file reads
	// as anything but itself.
	return base64.RawURLEncoding.EncodeToString(random)
}

// Read returns the secret called name.
func (s *Secrets) Read(name string) (string, error) {
	text, err := os.ReadFile(s.Path(name))
	if err != nil {
		return "", fmt.Errorf("read secret %s: %w", name, err)
	}
	value := strings.TrimSpace(string(text))
	if value == "" {
		return "", fmt.Errorf("secret %s is empty: remove %s only if the stack has no data yet", name, s.Path(name))
	}
	return value, nil
}
