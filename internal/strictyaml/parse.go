package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxLocateWork bounds the search for the line of a syntax error, in bytes
// parsed over all tries. Far beyond it the parser's own line has to do.
const maxLocateWork = 16 << 20

// parse reads the one document of data; an empty document is nil. The YAML
// parser gives no column and often the wrong line, so both are found here.
func parse(name string, data []byte) (*yaml.Node, *Error) {
	if bad := badText(data); bad != nil {
		bad.File = name
		return nil, bad
	}
	doc, second, err := parseText(data)
	if err != nil {
		return nil, locateSyntax(name, data, err)
	}
	if second != nil {
		return nil, &Error{
			File: name, Line: second.Line, Column: second.Column,
			Message: "a second document starts here", Hint: `remove the "---" before it: a file holds one document`,
		}
	}
	return doc, nil
}

// parseText returns the content of the first document and, when there is one,
// the second document.
func parseText(data []byte) (first, second *yaml.Node, err error) {
	// The parser panics with its own errors and recovers them; anything else
	// that it lets through on a hostile file must not end the program.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML parser gave up: %v", p)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil, nil
		}
		return nil, nil, err
	}
	switch err := dec.Decode(&next); {
	case err == nil:
		second = &next
	case !errors.Is(err, io.EOF):
		return nil, nil, err
	}
	if len(doc.Content) > 0 {
		first = doc.Content[0]
	}
	return first, second, nil
}

// badText finds what no YAML file may contain.
func badText(data []byte) *Error {
	line, column := 1, 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return &Error{Line: line, Column: column, Message: fmt.Sprintf("byte 0x%02x is not UTF-8 text", data[i]), Hint: "save the file as UTF-8"}
		case r == '\n':
			line, column = line+1, 0
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			return &Error{Line: line, Column: column, Message: fmt.Sprintf("control character 0x%02x in the text", r), Hint: "remove it"}
		}
		column++
		i += size
	}
	return nil
}

// locateSyntax turns an error of the YAML parser into one with a position.
func locateSyntax(name string, data []byte, err error) *Error {
	msg := oneLine(err)
	line := 0
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(msg); m != nil {
		// Digits only; a number too large for an int counts as unknown.
		line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	lines := bytes.Split(data, []byte("\n"))
	if len(lines)*len(data) <= maxLocateWork {
		line = firstBadLine(data, len(lines))
	}
	line = min(max(line, 1), len(lines))
	for line < len(lines) && isBlank(lines[line-1]) {
		line++
	}
	text := strings.TrimRight(string(lines[line-1]), "\r")
	column := utf8.RuneCountInString(text[:len(text)-len(strings.TrimLeft(text, " \t"))]) + 1
	e := &Error{File: name, Line: line, Column: column, Message: "not valid YAML: " + msg}
	indent := text[:len(text)-len(strings.TrimLeft(text, " \t"))]
	switch tab := strings.IndexByte(indent, '\t'); {
	case tab >= 0:
		e.Column = tab + 1
		e.Message = "not valid YAML: a tab in the indentation"
		e.Hint = "use spaces"
	case strings.Contains(msg, "cannot start any token"):
		if i := strings.IndexAny(text, "@`%"); i >= 0 {
			e.Column = utf8.RuneCountInString(text[:i]) + 1
			e.Hint = fmt.Sprintf("put a text that starts with %q in quotes", text[i])
		}
	case strings.Contains(msg, "mapping values are not allowed"):
		e.Hint = `check the indentation, and put a text that contains ": " in quotes`
	case strings.Contains(msg, "unexpected end of stream"):
		e.Hint = "a quote, bracket or brace is not closed"
	case strings.Contains(msg, "did not find expected node content"), strings.Contains(msg, "did not find expected ',' or"):
		e.Hint = "check brackets, braces and commas"
	case strings.Contains(msg, "could not find expected ':'"):
		e.Hint = `a field is written "name: value"`
	case strings.Contains(msg, "did not find expected key"), strings.Contains(msg, "did not find expected '-' indicator"):
		e.Hint = "its indentation fits nothing above it"
	}
	return e
}

// firstBadLine returns the line after the longest run of whole lines from the
// start that is valid YAML.
func firstBadLine(data []byte, count int) int {
	end := len(data)
	for line := count; line > 1; line-- {
		end = bytes.LastIndexByte(data[:end], '\n')
		if _, _, err := parseText(data[:end+1]); err == nil {
			return line
		}
	}
	return 1
}

func isBlank(line []byte) bool {
	text := bytes.TrimSpace(line)
	return len(text) == 0 || text[0] == '#'
}
