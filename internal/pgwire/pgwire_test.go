package pgwire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func startupPacket(code uint32, body string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	b = binary.BigEndian.AppendUint32(b, code)
	return append(b, body...)
}

func TestReadStartup(t *testing.T) {
	const v30 = 3 << 16
	tests := []struct {
		name string
		in   []byte
		want *Startup
		bad  bool
	}{
		{name: "ssl", in: startupPacket(codeSSL, ""), want: &Startup{Kind: SSLRequest}},
		{name: "gss", in: startupPacket(codeGSSENC, ""), want: &Startup{Kind: GSSENCRequest}},
		{name: "cancel", in: startupPacket(codeCancel, "\x00\x00\x00\x07abcd"), want: &Startup{Kind: CancelRequest, PID: 7, Key: []byte("abcd")}},
		{name: "startup", in: startupPacket(v30, "user\x00u\x00options\x00\x00\x00"), want: &Startup{Major: 3, Params: map[string]string{"user": "u", "options": ""}}},
		{name: "newer minor and option", in: startupPacket(v30+2, "user\x00u\x00_pq_.x\x001\x00\x00"), want: &Startup{Major: 3, Minor: 2, Params: map[string]string{"user": "u"}, Unsupported: []string{"_pq_.x"}}},
		{name: "protocol 2", in: startupPacket(2<<16, "whatever"), want: &Startup{Major: 2}},
		{name: "ssl with garbage", in: startupPacket(codeSSL, "x"), bad: true},
		{name: "short cancel", in: startupPacket(codeCancel, "\x00\x00"), bad: true},
		{name: "no end", in: startupPacket(v30, "user\x00u\x00"), bad: true},
		{name: "no value", in: startupPacket(v30, "user\x00"), bad: true},
		{name: "bytes after end", in: startupPacket(v30, "user\x00u\x00\x00x"), bad: true},
		{name: "too long", in: []byte{0, 1, 0, 0, 0, 3, 0, 0}, bad: true},
		{name: "negative", in: []byte{0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0}, bad: true},
		{name: "too short", in: []byte{0, 0, 0, 4}, bad: true},
		{name: "http", in: []byte("GET / HTTP/1.1\r\n\r\n"), bad: true},
		{name: "endless parameters", in: startupPacket(v30, strings.Repeat("a", 1)+strings.Repeat("x\x00y\x00", 2000)+"\x00"), bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for split := 0; split <= len(tt.in); split++ {
				r := bufio.NewReaderSize(io.MultiReader(bytes.NewReader(tt.in[:split]), bytes.NewReader(tt.in[split:]), strings.NewReader("rest")), 16)
				got, err := ReadStartup(r)
				if tt.bad {
					if !errors.Is(err, ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
						t.Fatalf("split %d: got %v, %v; want a protocol error", split, got, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("split %d: %v", split, err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Fatalf("split %d: %s", split, diff)
				}
				if rest, _ := io.ReadAll(r); string(rest) != "rest" {
					t.Fatalf("split %d: consumed too much, rest %q", split, rest)
				}
			}
		})
	}
}

func TestParseOptions(t *testing.T) {
	got, err := ParseOptions(`-c timezone=UTC -cgeqo=off --search-path=a\ b,c`)
	want := [][2]string{{"timezone", "UTC"}, {"geqo", "off"}, {"search_path", "a b,c"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatal(err, diff)
	}
	for _, bad := range []string{"-c", "-c x", "-d 5", "plain", "--=v"} {
		if got, err := ParseOptions(bad); err == nil {
			t.Errorf("%q accepted as %v", bad, got)
		}
	}
}

func TestCopyOneByteAtATime(t *testing.T) {
	msg := AppendQuery(nil, strings.Repeat("select ", 100))
	r := bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(msg)), 16)
	typ, size, err := PeekHeader(r)
	if err != nil || typ != 'Q' || size != len(msg) {
		t.Fatal(typ, size, err)
	}
	var out bytes.Buffer
	w := bufio.NewWriterSize(&out, 32)
	if n, err := Copy(w, r, size); err != nil || n != size {
		t.Fatal(n, err)
	}
	w.Flush()
	if !bytes.Equal(out.Bytes(), msg) {
		t.Fatal("copy differs")
	}
	if _, _, err := PeekHeader(r); !errors.Is(err, io.EOF) {
		t.Fatalf("end of stream: %v", err)
	}
	if _, _, err := PeekHeader(bufio.NewReader(strings.NewReader("Q\x00"))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("torn header: %v", err)
	}
}

func TestBuildersAgreeWithPgproto3(t *testing.T) {
	var b []byte
	b = AppendAuth(b, 0, nil)
	b = AppendParameterStatus(b, "TimeZone", "UTC")
	b = AppendKeyData(b, 7, []byte{1, 2, 3, 4})
	b = AppendNegotiate(b, 0, []string{"_pq_.x"})
	b = AppendComplete(b, "SELECT 1")
	b = AppendError(b, &ErrorResponse{Severity: "FATAL", Code: "57P01", Message: "m", Detail: "d", Hint: "h"})
	b = AppendReady(b, 'I')
	f := pgproto3.NewFrontend(bytes.NewReader(b), io.Discard)
	for _, want := range []pgproto3.BackendMessage{
		&pgproto3.AuthenticationOk{}, &pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"},
		&pgproto3.BackendKeyData{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}},
		&pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: 3 << 16, UnrecognizedOptions: []string{"_pq_.x"}},
		&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")},
		&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P01", Message: "m", Detail: "d", Hint: "h"},
		&pgproto3.ReadyForQuery{TxStatus: 'I'},
	} {
		got, err := f.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if _, skip := want.(*pgproto3.NegotiateProtocolVersion); skip {
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	var c []byte
	c = AppendQuery(c, "select 1")
	c = AppendParse(c, "n", []byte("select 2\x00\x00\x00"))
	c = AppendNamed(c, 'D', 'S', "n")
	c = AppendNamed(c, 'C', 'P', "p")
	be := pgproto3.NewBackend(bytes.NewReader(c), io.Discard)
	for _, want := range []pgproto3.FrontendMessage{
		&pgproto3.Query{String: "select 1"}, &pgproto3.Parse{Name: "n", Query: "select 2"},
		&pgproto3.Describe{ObjectType: 'S', Name: "n"}, &pgproto3.Close{ObjectType: 'P', Name: "p"},
	} {
		got, err := be.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	e := ErrorResponse{Severity: "ERROR", Code: "40001", Message: "x", Detail: "y", Hint: "z"}
	if got := ParseError(AppendError(nil, &e)[HeaderLen:]); got != e {
		t.Fatalf("got %+v want %+v", got, e)
	}
}

func FuzzStartup(f *testing.F) {
	f.Add(startupPacket(3<<16, "user\x00u\x00options\x00-c a=b\x00\x00"))
	f.Add(startupPacket(codeCancel, "12345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ReadStartup(bufio.NewReaderSize(bytes.NewReader(b), 16))
		if err != nil {
			return
		}
		if s.Kind == StartupMessage && s.Major == 3 {
			_, _ = ParseOptions(s.Params["options"])
		}
	})
}

// readAll reads messages until the stream ends or is wrong, as a proxy does:
// small ones as a whole, others copied or skipped.
func readAll(r *bufio.Reader) (types string, bodies [][]byte, err error) {
	for n := 0; ; n++ {
		typ, size, err := PeekHeader(r)
		if err == nil {
			err = CheckClientSize(typ, size)
		}
		if err != nil {
			return types, bodies, err
		}
		var body []byte
		switch n % 3 {
		case 0:
			body, err = ReadBody(nil, r, size)
		case 1:
			var out bytes.Buffer
			w := bufio.NewWriterSize(&out, 16)
			_, err = Copy(w, r, size)
			_ = w.Flush()
			if body = out.Bytes(); len(body) >= HeaderLen {
				body = body[HeaderLen:]
			}
		default:
			err = Skip(r, size)
		}
		if err != nil {
			return types, bodies, err
		}
		types, bodies = types+string(rune(typ)), append(bodies, body)
		_ = ParseError(body)
		if name, rest, ok := CString(body); ok && len(name)+1+len(rest) != len(body) {
			panic("a part of the body is gone")
		}
	}
}

// However the bytes arrive, the same messages are read, none larger than what
// was sent, and the stream ends with an error that says why.
func FuzzReader(f *testing.F) {
	f.Add(AppendQuery(nil, "select 1"))
	f.Add(AppendNamed(AppendParse(AppendQuery(nil, "begin"), "s", []byte("select $1\x00\x00\x00")), 'D', 'S', "s"))
	f.Add(AppendError(nil, &ErrorResponse{Severity: "ERROR", Code: "1", Message: "m"}))
	f.Add([]byte("Q\xff\xff\xff\xff"))
	f.Add([]byte("S\x00\x00\x00\x04X\x00\x00\x00\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		types, bodies, err := readAll(bufio.NewReaderSize(bytes.NewReader(b), 16))
		total := 0
		for _, body := range bodies {
			total += len(body)
		}
		if total > len(b) {
			t.Fatalf("%d bytes of messages in %d of input", total, len(b))
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrProtocol) {
			t.Fatalf("the stream ends with %v", err)
		}
		slowTypes, slowBodies, slowErr := readAll(bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(b)), 16))
		if diff := cmp.Diff(bodies, slowBodies); types != slowTypes || diff != "" || err.Error() != slowErr.Error() {
			t.Fatalf("byte by byte: %q and %v, at once %q and %v\n%s", slowTypes, slowErr, types, err, diff)
		}
	})
}
