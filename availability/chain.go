package availability

import (
	"fmt"
	"math"
)

// MaxReplicas is how many replicas of one link a chain is tried with.
const MaxReplicas = 9

// Chain is parts in series, such as the plugins that a workflow calls one after
// the other, against an objective.
type Chain struct {
	// Parts are the availabilities of the links, each above 0 and below 1.
	Parts []float64 `json:"parts"`
	// Target is the objective for the whole chain.
	Target float64 `json:"target"`
	// CommonCause is the share of a link's failures that hits all of its
	// replicas at once (the beta factor), 0 to 1.
	CommonCause float64 `json:"commonCause"`
}

// Need is what one link of a chain has to become.
type Need struct {
	// Now is the link's availability.
	Now float64 `json:"now"`
	// Each is what every link needs when all get the same part of the budget.
	Each float64 `json:"each"`
	// Replicas in parallel that reach Each when they fail independently; 0 when
	// more than MaxReplicas would be needed.
	Replicas int `json:"replicas"`
	// With is what these replicas give when they fail independently.
	With float64 `json:"with"`
	// ReplicasShared is the same when CommonCause of the failures hits all
	// replicas at once; 0 when no number reaches Each.
	ReplicasShared int `json:"replicasShared"`
	// Ceiling is what any number of replicas stays below, because of the common
	// causes.
	Ceiling float64 `json:"ceiling"`
}

// ChainVerdict is what a chain gives and needs.
type ChainVerdict struct {
	// Now is the availability of the chain as it is.
	Now float64 `json:"now"`
	// Minutes a year that the chain is away now, and that the target allows.
	Minutes       float64 `json:"minutes"`
	BudgetMinutes float64 `json:"budgetMinutes"`
	Met           bool    `json:"met"`
	Needs         []Need  `json:"needs"`
	// WithReplicas is the chain with Need.Replicas everywhere, independent; with
	// WithShared the common causes count, with Need.ReplicasShared where that
	// is enough and MaxReplicas elsewhere. WithReplicas is 0 when one link has
	// no number of replicas that is enough.
	WithReplicas float64 `json:"withReplicas"`
	WithShared   float64 `json:"withShared"`
}

// Judge says what the chain gives and what each link needs.
func (c Chain) Judge() (ChainVerdict, error) {
	if len(c.Parts) == 0 {
		return ChainVerdict{}, fmt.Errorf("chain: want at least one availability")
	}
	for i, p := range c.Parts {
		if !(p > 0 && p < 1) {
			return ChainVerdict{}, fmt.Errorf("chain: link %d: availability %g: want more than 0 and less than 1", i+1, p)
		}
	}
	if !(c.Target > 0 && c.Target < 1) {
		return ChainVerdict{}, fmt.Errorf("chain: target %g: want more than 0 and less than 1", c.Target)
	}
	if !(c.CommonCause >= 0 && c.CommonCause <= 1) {
		return ChainVerdict{}, fmt.Errorf("chain: common cause %g: want 0 to 1", c.CommonCause)
	}
	v := ChainVerdict{
		Now: Series(c.Parts...), BudgetMinutes: BudgetMinutes(c.Target),
		WithReplicas: 1, WithShared: 1,
	}
	v.Minutes = (1 - v.Now) * MinutesPerYear
	v.Met = v.Now >= c.Target
	each := math.Pow(c.Target, 1/float64(len(c.Parts)))
	for _, p := range c.Parts {
		n := Need{Now: p, Each: each, Ceiling: 1 - c.CommonCause*(1-p)}
		shared := 0.0
		for k := 1; k <= MaxReplicas; k++ {
			alone := 1 - math.Pow(1-p, float64(k))
			if n.Replicas == 0 && reaches(alone, each) {
				n.Replicas, n.With = k, alone
			}
			if n.ReplicasShared == 0 {
				shared = replicas(p, k, c.CommonCause)
				if reaches(shared, each) {
					n.ReplicasShared = k
				}
			}
		}
		v.WithReplicas *= n.With
		v.WithShared *= shared
		v.Needs = append(v.Needs, n)
	}
	return v, nil
}

// reaches compares availabilities without stumbling over the last bit.
func reaches(a, target float64) bool { return a >= target-1e-12 }

// replicas is the availability of k replicas of a part when the share beta of
// its failures hits all of them at once.
func replicas(a float64, k int, beta float64) float64 {
	if k == 1 {
		return a
	}
	u := 1 - a
	return (1 - beta*u) * (1 - math.Pow((1-beta)*u, float64(k)))
}
