//go:build !soak

package limit

import "time"

// accuracyTime is how long admissions are counted. `make accuracy-limits` takes
// the minute that the goal names.
const accuracyTime = 6 * time.Second
