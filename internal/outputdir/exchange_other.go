//go:build !linux

package outputdir

import "errors"

// exchange needs Linux.
func exchange(string, string) error { return errors.ErrUnsupported }
