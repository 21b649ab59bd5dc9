package availability

import (
	"math"
	"math/rand/v2"
	"slices"
)

// z95 is the 95% point of the standard normal distribution: 90% lie within it
// on both sides.
const z95 = 1.6448536269514722

// sigma is the standard deviation of the logarithm for a factor, as it is
// defined at Assumption.Factor.
func sigma(factor float64) float64 { return math.Log(max(factor, 1)) / z95 }

// around draws from a lognormal distribution with mean 1.
func around(r *rand.Rand, s float64) float64 {
	return math.Exp(s*r.NormFloat64() - s*s/2)
}

// upper is the 95% point of a lognormal distribution with mean 1.
func upper(s float64) float64 { return math.Exp(s*z95 - s*s/2) }

// belief draws what an assumption's mean may be, as a multiple of its Value.
func (a Assumption) belief(r *rand.Rand) float64 {
	if a.Observed == nil {
		return around(r, sigma(a.Factor))
	}
	// Jeffreys' prior: what is believed of a rate after counting.
	return gamma(r, a.Observed.Events+0.5) / a.Observed.Years / a.Mean()
}

// Mean is the mean of what is believed.
func (a Assumption) Mean() float64 {
	if a.Observed != nil {
		return (a.Observed.Events + 0.5) / a.Observed.Years
	}
	return a.Value
}

// quantiles returns the 5% and 95% points of the belief, as multiples of Mean.
func (a Assumption) quantiles() (low, high float64) {
	s := sigma(a.Factor)
	if a.Observed != nil {
		// A lognormal with the same mean and variance is close enough for a rank.
		s = math.Sqrt(math.Log1p(1 / (a.Observed.Events + 0.5)))
	}
	return math.Exp(-s*z95 - s*s/2), upper(s)
}

// gamma draws from a gamma distribution with scale 1 (Marsaglia and Tsang 2000).
func gamma(r *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(r, shape+1) * math.Pow(r.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-r.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// doubt is the standard deviation of the logarithm of a mean that comes from
// samples: the standard error, wider when there are few. A coefficient of
// variation under 0.3 is not believed: a handful of runs that agree by chance
// would claim to know it all.
func doubt(samples []float64) float64 {
	n := float64(len(samples))
	m := mean(samples)
	if n == 0 || m == 0 {
		return 0
	}
	ss := 0.0
	for _, x := range samples {
		ss += (x - m) * (x - m)
	}
	cv := 0.3
	if n > 1 {
		cv = max(cv, math.Sqrt(ss/(n-1))/m)
	}
	// The variance of Student's distribution over the normal one; it does not
	// exist for fewer than four samples.
	wider := 4.0
	if n > 3 {
		wider = min(wider, (n-1)/(n-3))
	}
	return math.Sqrt(math.Log1p(wider * cv * cv / n))
}

func mean(xs []float64) float64 {
	if len(xs) == 0 {
		return 0
	}
	sum := 0.0
	for _, x := range xs {
		sum += x
	}
	return sum / float64(len(xs))
}

// quantile of sorted values, between 0 and 1.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Interval is what is believed of a number.
type Interval struct {
	Mean   float64 `json:"mean"`
	Median float64 `json:"median"`
	// Low and High enclose 95% of the belief.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

func interval(values []float64) Interval {
	s := slices.Clone(values)
	slices.Sort(s)
	return Interval{Mean: mean(s), Median: quantile(s, 0.5), Low: quantile(s, 0.025), High: quantile(s, 0.975)}
}
