package gateway

import "time"

// Conversations sets what happens to requests of one conversation that come at
// the same time. Dify does not survive two runs in one conversation.
type Conversations struct {
	// Serialise lets one request of a conversation work at a time; the next
	// one waits. With redis it holds across all gateways. Default true.
	Serialise bool `yaml:"serialise"`
	// MaxWaiting requests may wait for one conversation; more get 429.
	// Default 4.
	MaxWaiting int `yaml:"maxWaiting"`
	// Wait is how long one waits before it gets 429. Default 30s.
	Wait time.Duration `yaml:"wait"`
}

func defaultConversations() Conversations {
	return Conversations{Serialise: true, MaxWaiting: 4, Wait: 30 * time.Second}
}

func (c *Conversations) validate(bad func(field, format string, args ...any)) {
	if c.MaxWaiting < 0 || c.MaxWaiting > 1000 {
		bad("conversations.maxWaiting", "%d is not between 0 and 1000", c.MaxWaiting)
	}
	if c.Wait < time.Millisecond {
		bad("conversations.wait", "%v is less than 1ms", c.Wait)
	}
}
