package gateway

import (
	"net/http"
	"strconv"
	"strings"

	"fournines/gateway/dify"
)

// unblock asks Dify for a stream where the client asked for a blocking answer,
// if the settings say so. Pings then tell a slow answer from a dead instance, no
// proxy on the way to Dify takes the silence for death, and a client that leaves
// is a task that can be stopped. What the client gets is put together from the
// events; see dify.Answer.
func (x *exchange) unblock() {
	if !x.set.Stream.BlockingAsStream || !x.class.Streams() || x.asked.Mode != dify.Blocking ||
		!x.body.complete() || !isJSON(x.r.Header) || x.r.Method != http.MethodPost ||
		x.r.Header.Get("Content-Encoding") != "" || !strings.HasPrefix(x.r.URL.Path, "/v1/") {
		return
	}
	body, ok := dify.AskStream(x.body.held)
	if !ok {
		return // Dify has to say what is wrong with it
	}
	x.body.held, x.body.length = body, int64(len(body))
	if _, ok := x.r.Header["Content-Length"]; ok {
		x.r.Header["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	x.asked.Mode, x.unblocked = dify.Streaming, true
}

// finish ends a stream that is complete.
func (p *pump) finish() {
	if p.answer == nil {
		p.open()
		return
	}
	status, body, ok := p.answer.Result()
	if !ok {
		p.fail(dify.ErrStreamCut) // it ended in good order and too early
		return
	}
	header := p.held.header
	p.drop()
	for _, name := range [...]string{"X-Accel-Buffering", "Cache-Control", "Content-Encoding"} {
		header.Del(name)
	}
	header["Content-Type"] = []string{"application/json"}
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	p.x.commit(status, header)
	_ = p.x.writeBody(body)
}
