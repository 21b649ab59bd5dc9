package keyspace

// Match tells whether s matches the glob pattern, as KEYS and SCAN understand
// it: *, ?, [abc], [^a], [a-z] and \ for escape. Its time is bounded by
// len(pattern) × len(s).
func Match(pattern, s []byte) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, mark = p, i
				p++
				continue
			}
			if next, ok := matchOne(pattern, p, s[i]); ok {
				p = next
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne matches one byte against the pattern's element at p and returns
// the position behind that element.
func matchOne(pattern []byte, p int, c byte) (int, bool) {
	switch pattern[p] {
	case '?':
		return p + 1, true
	case '\\':
		if p+1 < len(pattern) {
			p++
		}
		return p + 1, pattern[p] == c
	case '[':
		p++
		not := p < len(pattern) && pattern[p] == '^'
		if not {
			p++
		}
		found := false
		for {
			switch {
			case p >= len(pattern):
				// An unclosed class ends with the pattern.
				return len(pattern), found != not
			case pattern[p] == '\\' && p+1 < len(pattern):
				p++
				found = found || pattern[p] == c
			case pattern[p] == ']':
				return p + 1, found != not
			case p+2 < len(pattern) && pattern[p+1] == '-':
				lo, hi := pattern[p], pattern[p+2]
				if lo > hi {
					lo, hi = hi, lo
				}
				found = found || (c >= lo && c <= hi)
				p += 2
			default:
				found = found || pattern[p] == c
			}
			p++
		}
	}
	return p + 1, pattern[p] == c
}
