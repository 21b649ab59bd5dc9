package jobs

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// minKey is the least length of a key, which is random text.
const minKey = 32

// maxSecretFile bounds the files that hold keys and secrets.
const maxSecretFile = 64 << 10

// keyNameBytes is how much of a key's digest names it in what it encrypted.
const keyNameBytes = 4

// sealer holds the keys that encrypt what is kept in Redis. The first one
// encrypts, all decrypt, so that keys can be changed over while gateways run.
type sealer struct {
	first keyName
	keys  map[keyName][]byte
}

// keyName says which key encrypted something.
type keyName [keyNameBytes]byte

// box encrypts what belongs to one job with AES-256-GCM. Each job has a key of
// its own, derived from the file's, so that the number of messages under one key
// stays far below what random nonces allow, and one job's data cannot be put in
// the place of another's.
type box struct {
	s     *sealer
	id    string
	aeads map[keyName]cipher.AEAD
}

var errSealed = errors.New("cannot be decrypted with the keys of jobs.keyFile")

// NewKey returns a line for jobs.keyFile.
func NewKey() string {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	return hex.EncodeToString(key[:])
}

// readSecretLines reads a file that holds one secret a line; empty lines and
// lines that begin with # do not count. Only its owner and its group may read
// it: a process in Kubernetes that is not root gets its Secrets by the group.
func readSecretLines(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("%s: mode %v lets others read it; chmod 600 it", path, info.Mode().Perm())
	}
	if info.Size() > maxSecretFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxSecretFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%s: nothing in it", path)
	}
	return lines, nil
}

func loadSealer(path string) (*sealer, error) {
	lines, err := readSecretLines(path)
	if err != nil {
		return nil, err
	}
	s := &sealer{keys: make(map[keyName][]byte)}
	for i, line := range lines {
		key := []byte(line)
		if len(key) < minKey {
			return nil, fmt.Errorf("%s: key %d has fewer than %d characters; `fournines jobs new-key` makes one", path, i+1, minKey)
		}
		sum := sha256.Sum256(append([]byte("fournines jobs key name\x00"), key...))
		name := keyName(sum[:keyNameBytes])
		if i == 0 {
			s.first = name
		}
		s.keys[name] = key
	}
	return s, nil
}

// box returns the box of one job. It is not safe for concurrent use.
func (s *sealer) box(id string) *box {
	return &box{s: s, id: id, aeads: make(map[keyName]cipher.AEAD, 1)}
}

func (b *box) aead(name keyName) (cipher.AEAD, error) {
	if a, ok := b.aeads[name]; ok {
		return a, nil
	}
	key, ok := b.s.keys[name]
	if !ok {
		return nil, errSealed
	}
	derived, err := hkdf.Key(sha256.New, key, nil, "fournines job "+b.id, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	b.aeads[name] = a
	return a, nil
}

// seal encrypts plain. What is returned opens only under the same label, which
// says what it is.
func (b *box) seal(plain []byte, label string) ([]byte, error) {
	a, err := b.aead(b.s.first)
	if err != nil {
		return nil, err
	}
	out := make([]byte, keyNameBytes, keyNameBytes+len(plain)+a.Overhead())
	copy(out, b.s.first[:])
	return a.Seal(out, nil, plain, []byte(label)), nil
}

func (b *box) open(sealed []byte, label string) ([]byte, error) {
	if len(sealed) < keyNameBytes {
		return nil, errSealed
	}
	a, err := b.aead(keyName(sealed[:keyNameBytes]))
	if err != nil {
		return nil, err
	}
	plain, err := a.Open(nil, nil, sealed[keyNameBytes:], []byte(label))
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}
