package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"fournines/component/internal/prepare"
)

// LeadElsewhere moves the leadership of the cluster away from the member called
// avoid, and tells if it did; it does nothing when another member leads. The
// last of the others that answers is chosen.
//
// The loss of the leader costs an election, and the next leader gives every lease
// its whole time again. When the leader dies together with the holder of a lease,
// as in a zone with the PostgreSQL primary, the lease so ends later by both.
func LeadElsewhere(ctx context.Context, members []Member, avoid string) (moved bool, err error) {
	type answer struct {
		Header struct {
			MemberID uint64 `json:"member_id,string"`
		} `json:"header"`
		Leader uint64 `json:"leader,string"`
	}
	url := func(m Member) string {
		return "http://" + net.JoinHostPort(m.Host, strconv.Itoa(DefaultClientPort)) + "/v3/maintenance/"
	}
	var errs []error
	var from Member
	var leader, target uint64
	for _, m := range members {
		var a answer
		if err := prepare.PostJSON(ctx, url(m)+"status", struct{}{}, &a); err != nil {
			errs = append(errs, err)
			continue
		}
		if m.Name != avoid {
			target = a.Header.MemberID
			continue
		}
		if a.Leader != a.Header.MemberID {
			return false, nil
		}
		from, leader = m, a.Leader
	}
	switch {
	case leader == 0:
		return false, errors.Join(errs...)
	case target == 0:
		return false, fmt.Errorf("nobody can take the leadership of etcd from %s: %w", avoid, errors.Join(errs...))
	}
	var nothing struct{}
	err = prepare.PostJSON(ctx, url(from)+"transfer-leadership", map[string]string{"targetID": strconv.FormatUint(target, 10)}, &nothing)
	if err != nil {
		return false, fmt.Errorf("move the leadership of etcd away from %s: %w", avoid, err)
	}
	return true, nil
}
