//go:build soak

package limit

import "time"

const accuracyTime = time.Minute
