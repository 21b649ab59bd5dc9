package route

import "bytes"

// The lexical rules of PostgreSQL, as far as the ends of tokens go. They are
// those of its scan.l with standard_conforming_strings on; FuzzRoute compares
// verdicts on shapes with those on texts.

// Classes of bytes.
const (
	plain    = iota // white space, operators and punctuation without a case of its own
	wordByte        // starts a word
	digit
	quote
	doubleQuote
	dollar
	dash
	slash
	dot
	opening // ( and [
	closing // ) and ]
	comma
	semicolon
)

var classes = func() (t [256]uint8) {
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = wordByte, wordByte
	}
	for c := 0x80; c < 256; c++ {
		t[c] = wordByte
	}
	for c := '0'; c <= '9'; c++ {
		t[c] = digit
	}
	t['_'], t['\''], t['"'], t['$'], t['-'], t['/'], t['.'] = wordByte, quote, doubleQuote, dollar, dash, slash, dot
	t['('], t['['], t[')'], t[']'], t[','], t[';'] = opening, opening, closing, closing, comma, semicolon
	return t
}()

// inWord holds for bytes that continue a word.
var inWord = func() (t [256]bool) {
	for c := range t {
		t[c] = classes[c] == wordByte || classes[c] == digit || c == '$'
	}
	return t
}()

func byteAt(b []byte, i int) byte {
	if i < len(b) {
		return b[i]
	}
	return 0
}

// endOfWord returns the index behind the word that has begun before i.
func endOfWord(b []byte, i int) int {
	for i < len(b) && inWord[b[i]] {
		i++
	}
	return i
}

// endOfLineComment returns the index of the line's end behind i; \r ends a
// line too.
func endOfLineComment(b []byte, i int) int {
	for i < len(b) && b[i] != '\n' && b[i] != '\r' {
		i++
	}
	return i
}

// endOfComment returns the index behind the comment that starts at i;
// comments nest. ok is false when it does not end.
func endOfComment(b []byte, i int) (end int, ok bool) {
	depth := 0
	for i < len(b) {
		switch {
		case b[i] == '/' && byteAt(b, i+1) == '*':
			depth++
			i += 2
		case b[i] == '*' && byteAt(b, i+1) == '/':
			depth--
			i += 2
			if depth == 0 {
				return i, true
			}
		default:
			i++
		}
	}
	return len(b), false
}

// endOfQuoted returns the index behind the identifier or string whose quote q
// is at i. A doubled quote does not close it.
func endOfQuoted(b []byte, i int, q byte) (end int, ok bool) {
	for i++; i < len(b); {
		n := bytes.IndexByte(b[i:], q)
		if n < 0 {
			return len(b), false
		}
		if i += n + 1; byteAt(b, i) != q {
			return i, true
		}
		i++
	}
	return len(b), false
}

// endOfString returns the index behind the string constant whose quote is at
// i, with the parts that continue it on later lines, which keep its rules.
func endOfString(b []byte, i int, escapes bool) (end int, ok bool) {
	for {
		if escapes {
			end, ok = endOfEscaped(b, i)
		} else {
			end, ok = endOfQuoted(b, i, '\'')
		}
		if !ok {
			return end, false
		}
		if i = continuation(b, end); i < 0 {
			return end, true
		}
	}
}

// endOfEscaped is endOfQuoted for E'...'.
func endOfEscaped(b []byte, i int) (end int, ok bool) {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '\'':
			if byteAt(b, i+1) != '\'' {
				return i + 1, true
			}
			i++
		}
	}
	return len(b), false
}

// continuation returns the index of the quote that continues a string that has
// ended before i, or -1: white space and line comments with at least one line
// end lie between.
func continuation(b []byte, i int) int {
	line := false
	for i < len(b) {
		switch c := b[i]; {
		case c == '\n' || c == '\r':
			line = true
			i++
		case c == ' ' || c == '\t' || c == '\f' || c == '\v':
			i++
		case c == '-' && byteAt(b, i+1) == '-':
			i = endOfLineComment(b, i)
		case c == '\'' && line:
			return i
		default:
			return -1
		}
	}
	return -1
}

// endOfDollar returns the index behind the dollar-quoted string that starts at
// i. quoted is false when none starts there, ok when it does not end.
func endOfDollar(b []byte, i int) (end int, quoted, ok bool) {
	j := i + 1
	for j < len(b) && b[j] != '$' {
		if !inWord[b[j]] || j == i+1 && classes[b[j]] == digit {
			return 0, false, false
		}
		j++
	}
	if j >= len(b) {
		return 0, false, false
	}
	tag := b[i : j+1]
	n := bytes.Index(b[j+1:], tag)
	if n < 0 {
		return len(b), true, false
	}
	return j + 1 + n + len(tag), true, true
}

// endOfNumber returns the index behind the number that starts at i with a
// digit, or with a dot before a digit. integer holds for digits alone.
func endOfNumber(b []byte, i int) (end int, integer bool) {
	integer = true
	for i < len(b) && classes[b[i]] == digit {
		i++
	}
	if byteAt(b, i) == '.' && byteAt(b, i+1) != '.' {
		integer = false
		for i++; i < len(b) && classes[b[i]] == digit; {
			i++
		}
	}
	if c := byteAt(b, i); c == 'e' || c == 'E' {
		j := i + 1
		if s := byteAt(b, j); s == '+' || s == '-' {
			j++
		}
		if j < len(b) && classes[b[j]] == digit {
			integer = false
			for i = j; i < len(b) && classes[b[i]] == digit; {
				i++
			}
		}
	}
	return i, integer
}

// equalFold compares a word with a lower-case ASCII word.
func equalFold(w []byte, lower string) bool {
	if len(w) != len(lower) {
		return false
	}
	for i := range w {
		c := w[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

var hintMark = []byte("fournines:")

// commentHint reads "fournines:primary" or "fournines:standby" in a comment.
func commentHint(comment []byte) Hint {
	hint := NoHint
	for {
		i := bytes.Index(comment, hintMark)
		if i < 0 {
			return hint
		}
		comment = comment[i+len(hintMark):]
		n := endOfWord(comment, 0)
		switch string(comment[:n]) {
		case "primary":
			return HintPrimary
		case "standby":
			hint = HintStandby
		}
	}
}
