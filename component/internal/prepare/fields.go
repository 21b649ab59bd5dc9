package prepare

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
)

// Fields collects what is wrong with a configuration, one error per field, so
// that a person can mend everything in one go.
type Fields struct{ errs []error }

// Check records a problem with field unless ok.
func (f *Fields) Check(ok bool, field, problem string) {
	if !ok {
		f.errs = append(f.errs, fmt.Errorf("%s: %s", field, problem))
	}
}

// NotEmpty records a problem when value is empty.
func (f *Fields) NotEmpty(field, value string) {
	f.Check(value != "", field, "must not be empty")
}

// Path records a problem unless value is an absolute path.
func (f *Fields) Path(field, value string) {
	f.Check(filepath.IsAbs(value), field, fmt.Sprintf("%q is not an absolute path", value))
}

// IP records a problem unless value is an IP address that one host can own.
func (f *Fields) IP(field, value string) {
	addr, err := netip.ParseAddr(value)
	f.Check(err == nil && !addr.IsUnspecified(), field, fmt.Sprintf("%q is not an IP address of one host", value))
}

// Port records a problem unless value is a TCP port.
func (f *Fields) Port(field string, value int) {
	f.Check(value > 0 && value < 65536, field, fmt.Sprintf("%d is not a port (1..65535)", value))
}

// HostPort records a problem unless value is host:port.
func (f *Fields) HostPort(field, value string) {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	f.Check(err == nil, field, fmt.Sprintf("%q is not host:port", value))
}

// Err joins all problems under the component's name, or is nil.
func (f *Fields) Err(component string) error {
	if len(f.errs) == 0 {
		return nil
	}
	return fmt.Errorf("%s configuration: %w", component, errors.Join(f.errs...))
}
