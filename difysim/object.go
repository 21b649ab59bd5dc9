package difysim

import (
	"bytes"
	"encoding/json"
	"errors"
)

// object is a JSON object that keeps the order of its fields: key, value, key,
// value. Clients read Dify's events in logs, where order helps.
type object []any

// MarshalJSON writes the fields in order.
func (o object) MarshalJSON() ([]byte, error) {
	if len(o) == 2 && o[0] == rawEvent {
		if raw, ok := o[1].(json.RawMessage); ok {
			return raw, nil
		}
	}
	if len(o)%2 != 0 {
		return nil, errors.New("object has a key without a value")
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for i := 0; i < len(o); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		for _, v := range o[i : i+2] {
			raw, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			b.Write(raw)
			b.WriteByte(':')
		}
		b.Truncate(b.Len() - 1)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}
