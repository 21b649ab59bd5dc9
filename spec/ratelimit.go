package spec

// RateLimit is one rule of the gateways: how many requests, or tokens of the
// language models, somebody may use. All gateways together enforce it.
type RateLimit struct {
	// Name is what metrics, headers and errors call the limit. Unique. With
	// another name a limit begins anew.
	Name string `yaml:"name" pattern:"^[A-Za-z0-9._-]{1,64}$" wants:"1 to 64 letters, digits, '.', '_' or '-'"`
	// Rate is what is admitted in the long run, always with its window: "100
	// per minute" and "100 per second" are 60 times apart.
	Rate string `yaml:"rate" pattern:"^[0-9]{1,12}([.][0-9]{1,6})?( per |/)(second|minute|hour|day)$" wants:"a number and its window, like \"100 per minute\""`
	// Burst is how many may come at once after a pause; 0 is a tenth of the
	// rate's number, at least 1. Within any one window at most burst + rate
	// are admitted: with "100 per minute" 110 in the first minute and 100 in
	// each minute after it.
	Burst int `yaml:"burst" range:"0..1000000000"`
	// By says who shares one budget: all requests of an app, of a user within
	// an app, of a client address (IPv6: of a /64), of a class of requests, or
	// all there are.
	By string `yaml:"by" enum:"app,user,address,route,all"`
	// Unit is what is counted. Tokens are charged when an answer has ended:
	// an answer may overrun the budget, and later requests pay for it.
	Unit string `yaml:"unit" enum:"requests,tokens"`
	// Match narrows the limit to some requests.
	Match RateLimitMatch `yaml:"match"`
}

// RateLimitMatch selects requests; what is empty selects all.
type RateLimitMatch struct {
	// Apps are the names of some apps (gateway.apps), or the ids of their keys;
	// empty means all.
	Apps []string `yaml:"apps" range:"0..1000"`
	// Classes of requests: chat, workflow, read, retrieve, upload, ingest,
	// mutate, stop, console, other.
	Classes []string `yaml:"classes" range:"0..10"`
	// PathPrefix is what the path of the URL begins with, like /v1/.
	PathPrefix string `yaml:"pathPrefix"`
}

// SetDefaults counts requests unless the file says otherwise.
func (l *RateLimit) SetDefaults() { l.Unit = "requests" }
