package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// MaxQuestionBytes bounds the body of a retrieval that is cached. Dify's queries
// have at most 250 characters; the rest is the retrieval model.
const MaxQuestionBytes = 64 << 10

// Key names one question of one API key: the SHA-256 of the whole key, the place
// that is asked and the question in its normal form. It cannot be turned back into them.
type Key [sha256.Size]byte

// String is what operators see: the first 16 hexadecimal digits.
func (k Key) String() string { return hex.EncodeToString(k[:8]) }

// KeyOf names a question. place is the data set with whatever else the answer
// depends on, normal the result of Normal.
func KeyOf(credential, place string, normal []byte) Key {
	buf := make([]byte, 0, 256)
	buf = append(buf, credential...)
	buf = append(buf, 0)
	buf = append(buf, place...)
	buf = append(buf, 0)
	return sha256.Sum256(append(buf, normal...))
}

// replaced stands for bytes and escapes that are no Unicode: what they were in
// the client's text is lost, so two texts with it are not known to be alike.
const replaced = "\uFFFD"

// Normal returns the normal form of a retrieval's body: a JSON object with its
// members in order and without white space, all of them included, so that
// anything that may matter to Dify makes another question; the text of "query" is
// made alike as mode says. Not ok says that the body is not to be cached: it is
// no JSON object that both sides read alike, or has no query.
func Normal(body []byte, mode string) (normal []byte, ok bool) {
	if len(body) > MaxQuestionBytes || !utf8.Valid(body) {
		return nil, false
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber() // 1e400 is a number too
	if d.Decode(&m) != nil {
		return nil, false
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, false
	}
	query, isText := m["query"].(string)
	if !isText || query == "" {
		return nil, false
	}
	m["query"] = alike(query, mode)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(m) != nil || strings.Contains(b.String(), replaced) || bytes.Contains(b.Bytes(), []byte(`\ufffd`)) {
		return nil, false
	}
	return b.Bytes()[:b.Len()-1], true
}

// alike makes texts alike.
func alike(s, mode string) string {
	switch mode {
	case NormaliseSpace:
		return strings.Join(strings.Fields(s), " ")
	case NormaliseFold:
		return strings.Join(strings.Fields(norm.NFKC.String(cases.Fold().String(norm.NFKC.String(s)))), " ")
	}
	return s
}
