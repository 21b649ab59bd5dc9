package audit

import "strings"

// directive is one directive of an nginx configuration.
type directive struct {
	name   string
	args   []string
	line   int
	inside *directive
	block  []*directive
}

func (d *directive) arg(i int) string {
	if i < len(d.args) {
		return d.args[i]
	}
	return ""
}

// nginxFile is an nginx configuration file. Templates are read too: a ${NAME}
// is a word.
type nginxFile struct {
	*file
	all []*directive
}

// parseNginx reads words, blocks and comments; what does not close is read to
// the end.
func parseNginx(f *file) *nginxFile {
	n := &nginxFile{file: f}
	var inside *directive
	var words []string
	start := 0
	end := func(block bool) {
		if len(words) > 0 || block {
			d := &directive{line: start, inside: inside}
			if len(words) > 0 {
				d.name, d.args = words[0], words[1:]
			}
			n.all = append(n.all, d)
			if inside != nil {
				inside.block = append(inside.block, d)
			}
			if block {
				inside = d
			}
		}
		words = nil
	}
	for i, line := range f.lines {
		for j := 0; j < len(line); {
			switch line[j] {
			case '#':
				j = len(line)
			case ' ', '\t', '\r':
				j++
			case ';':
				end(false)
				j++
			case '{':
				end(true)
				j++
			case '}':
				end(false)
				if inside != nil {
					inside = inside.inside
				}
				j++
			default:
				if len(words) == 0 {
					start = i + 1
				}
				word, next := nginxWord(line, j)
				words = append(words, word)
				j = next
			}
		}
	}
	end(false)
	return n
}

// nginxWord reads a word that begins at j, quoted or not.
func nginxWord(line string, j int) (string, int) {
	if q := line[j]; q == '"' || q == '\'' {
		if e := strings.IndexByte(line[j+1:], q); e >= 0 {
			return line[j+1 : j+1+e], j + e + 2
		}
		return line[j+1:], len(line)
	}
	k := j
	for k < len(line) {
		if strings.HasPrefix(line[k:], "${") {
			if e := strings.IndexByte(line[k:], '}'); e > 0 {
				k += e + 1
				continue
			}
		}
		if strings.IndexByte(" \t\r;{}", line[k]) >= 0 {
			break
		}
		k++
	}
	return line[j:max(k, j+1)], max(k, j+1)
}

// inherited is the value of a directive at d: its own block, then those around
// it; nil when nobody sets it.
func (d *directive) inherited(name string) *directive {
	for b := d; b != nil; b = b.inside {
		for _, x := range b.block {
			if x.name == name {
				return x
			}
		}
	}
	return nil
}
