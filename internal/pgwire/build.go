package pgwire

import "encoding/binary"

// ErrorResponse is an ErrorResponse or NoticeResponse.
type ErrorResponse struct {
	Severity string // "ERROR", "FATAL", "PANIC" or a notice's level
	Code     string // SQLSTATE, five characters
	Message  string
	Detail   string
	Hint     string
}

// Append appends a message with the given body to dst.
func Append(dst []byte, typ byte, body ...byte) []byte {
	dst = append(dst, typ)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+len(body)))
	return append(dst, body...)
}

// AppendHeader appends the header of a message whose body has n bytes.
func AppendHeader(dst []byte, typ byte, n int) []byte {
	dst = append(dst, typ)
	return binary.BigEndian.AppendUint32(dst, uint32(4+n))
}

// AppendError appends an ErrorResponse.
func AppendError(dst []byte, e *ErrorResponse) []byte {
	start := len(dst)
	dst = append(dst, 'E', 0, 0, 0, 0)
	field := func(code byte, s string) {
		if s != "" {
			dst = append(dst, code)
			dst = append(dst, s...)
			dst = append(dst, 0)
		}
	}
	field('S', e.Severity)
	field('V', e.Severity)
	field('C', e.Code)
	field('M', e.Message)
	field('D', e.Detail)
	field('H', e.Hint)
	dst = append(dst, 0)
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst
}

// ParseError decodes the body of an ErrorResponse or NoticeResponse as far as
// it is well-formed.
func ParseError(body []byte) ErrorResponse {
	var e ErrorResponse
	for len(body) > 0 && body[0] != 0 {
		code := body[0]
		s, rest, ok := CString(body[1:])
		if !ok {
			break
		}
		switch code {
		case 'S':
			if e.Severity == "" {
				e.Severity = string(s)
			}
		case 'V': // not localised, so it wins
			e.Severity = string(s)
		case 'C':
			e.Code = string(s)
		case 'M':
			e.Message = string(s)
		case 'D':
			e.Detail = string(s)
		case 'H':
			e.Hint = string(s)
		}
		body = rest
	}
	return e
}

// AppendReady appends a ReadyForQuery with the transaction status 'I', 'T' or 'E'.
func AppendReady(dst []byte, status byte) []byte { return Append(dst, 'Z', status) }

// AppendComplete appends a CommandComplete.
func AppendComplete(dst []byte, tag string) []byte {
	dst = AppendHeader(dst, 'C', len(tag)+1)
	dst = append(dst, tag...)
	return append(dst, 0)
}

// AppendParameterStatus appends a ParameterStatus.
func AppendParameterStatus(dst []byte, name, value string) []byte {
	dst = AppendHeader(dst, 'S', len(name)+len(value)+2)
	dst = append(dst, name...)
	dst = append(dst, 0)
	dst = append(dst, value...)
	return append(dst, 0)
}

// AppendKeyData appends a BackendKeyData.
func AppendKeyData(dst []byte, pid uint32, key []byte) []byte {
	dst = AppendHeader(dst, 'K', 4+len(key))
	dst = binary.BigEndian.AppendUint32(dst, pid)
	return append(dst, key...)
}

// AppendAuth appends an Authentication message: 0 ok, 10 SASL, 11 continue, 12 final.
func AppendAuth(dst []byte, code uint32, data []byte) []byte {
	dst = AppendHeader(dst, 'R', 4+len(data))
	dst = binary.BigEndian.AppendUint32(dst, code)
	return append(dst, data...)
}

// AppendNegotiate appends a NegotiateProtocolVersion that offers 3.minor.
func AppendNegotiate(dst []byte, minor int, unsupported []string) []byte {
	var body []byte
	body = binary.BigEndian.AppendUint32(body, uint32(3<<16|minor))
	body = binary.BigEndian.AppendUint32(body, uint32(len(unsupported)))
	for _, s := range unsupported {
		body = append(body, s...)
		body = append(body, 0)
	}
	return Append(dst, 'v', body...)
}

// AppendQuery appends a simple Query.
func AppendQuery(dst []byte, sql string) []byte {
	dst = AppendHeader(dst, 'Q', len(sql)+1)
	dst = append(dst, sql...)
	return append(dst, 0)
}

// AppendParse appends a Parse; rest is the query with its NUL and the
// parameter types, as they stood in another Parse.
func AppendParse(dst []byte, name string, rest []byte) []byte {
	dst = AppendHeader(dst, 'P', len(name)+1+len(rest))
	dst = append(dst, name...)
	dst = append(dst, 0)
	return append(dst, rest...)
}

// AppendNamed appends a Describe ('D') or Close ('C') of a statement ('S') or
// portal ('P').
func AppendNamed(dst []byte, typ, kind byte, name string) []byte {
	dst = AppendHeader(dst, typ, len(name)+2)
	dst = append(dst, kind)
	dst = append(dst, name...)
	return append(dst, 0)
}

// AppendCancel appends a whole cancel request packet.
func AppendCancel(dst []byte, pid uint32, key []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(12+len(key)))
	dst = binary.BigEndian.AppendUint32(dst, codeCancel)
	dst = binary.BigEndian.AppendUint32(dst, pid)
	return append(dst, key...)
}

// Column is one column of a RowDescription, in text format.
type Column struct {
	Name string
	// OID of the type, such as 25 for text and 20 for int8.
	OID uint32
}

// AppendRowDescription appends a RowDescription.
func AppendRowDescription(dst []byte, columns []Column) []byte {
	start := len(dst)
	dst = append(dst, 'T', 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(columns)))
	for _, c := range columns {
		dst = append(dst, c.Name...)
		dst = append(dst, 0)
		dst = binary.BigEndian.AppendUint32(dst, 0) // no table
		dst = binary.BigEndian.AppendUint16(dst, 0)
		dst = binary.BigEndian.AppendUint32(dst, c.OID)
		dst = binary.BigEndian.AppendUint16(dst, 0xffff)     // a type of variable size
		dst = binary.BigEndian.AppendUint32(dst, 0xffffffff) // without a modifier
		dst = binary.BigEndian.AppendUint16(dst, 0)          // text
	}
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst
}

// AppendDataRow appends a DataRow of values in text format; nil is NULL.
func AppendDataRow(dst []byte, values []*string) []byte {
	start := len(dst)
	dst = append(dst, 'D', 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(values)))
	for _, v := range values {
		if v == nil {
			dst = binary.BigEndian.AppendUint32(dst, 0xffffffff)
			continue
		}
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(*v)))
		dst = append(dst, *v...)
	}
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst
}

// AppendNotice appends a NoticeResponse.
func AppendNotice(dst []byte, e *ErrorResponse) []byte {
	start := len(dst)
	dst = AppendError(dst, e)
	dst[start] = 'N'
	return dst
}
