package jobs

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// maxCalls webhook calls run at a time.
	maxCalls = 16
	// maxHookResult is the largest result that a call carries; a larger one has to
	// be fetched.
	maxHookResult = 256 << 10
	// hookPauseMin and hookPauseMax bound the pause after a failed call.
	hookPauseMin = 5 * time.Second
	hookPauseMax = time.Hour
)

// caller makes webhook calls as the Standard Webhooks specification has them.
type caller struct {
	hosts    []string
	http     bool
	secrets  [][]byte
	client   *http.Client
	networks []netip.Prefix
	timeout  time.Duration
	attempts int
}

func newCaller(cfg Webhook) (*caller, error) {
	lines, err := readSecretLines(cfg.SecretFile)
	if err != nil {
		return nil, fmt.Errorf("secretFile: %w", err)
	}
	c := &caller{http: cfg.AllowHTTP, timeout: cfg.Timeout, attempts: cfg.Attempts}
	for i, line := range lines {
		secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(line, "whsec_"))
		if err != nil || !strings.HasPrefix(line, "whsec_") || len(secret) < 24 || len(secret) > 64 {
			return nil, fmt.Errorf("secretFile: secret %d is not whsec_ and 24 to 64 bytes in base64", i+1)
		}
		c.secrets = append(c.secrets, secret)
	}
	for _, h := range cfg.Hosts {
		c.hosts = append(c.hosts, strings.ToLower(h))
	}
	for _, n := range cfg.AllowNetworks {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			return nil, err
		}
		c.networks = append(c.networks, p.Masked())
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: c.control}
	c.client = &http.Client{
		Transport: &http.Transport{
			Proxy: nil, DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 5 * time.Second, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       cfg.Timeout,
	}
	return c, nil
}

func (c *caller) close() { c.client.CloseIdleConnections() }

// permits tells whether a caller may name that address. Its text is for the
// client. A nil caller permits none.
func (c *caller) permits(raw string) error {
	if c == nil {
		return errors.New("this gateway makes no webhook calls")
	}
	if len(raw) > maxWebhookURL {
		return errors.New("too long")
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Opaque != "" {
		return errors.New("not an absolute URL")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !c.http) {
		return errors.New("the scheme is not allowed")
	}
	if u.User != nil || u.Fragment != "" {
		return errors.New("credentials and fragments are not allowed")
	}
	host := strings.ToLower(u.Hostname())
	for _, h := range c.hosts {
		if domain, ok := strings.CutPrefix(h, "*"); ok && strings.HasSuffix(host, domain) && len(host) > len(domain) || host == h {
			return nil
		}
	}
	return errors.New("this host is not one that the gateway may call")
}

var errNotPublic = errors.New("the host's address is not a public one")

// control looks at each address that is about to be dialed, after the name has
// been resolved, so that no name can lead inside.
func (c *caller) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := ap.Addr().Unmap()
	for _, n := range c.networks {
		if n.Contains(ip) {
			return nil
		}
	}
	if !publicAddress(ip) {
		return errNotPublic
	}
	return nil
}

// notPublic are ranges that net/netip does not name (RFC 6890 and others).
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
}

func publicAddress(ip netip.Addr) bool {
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

// sign returns the value of webhook-signature.
func (c *caller) sign(id, timestamp string, body []byte) string {
	var out []string
	for _, secret := range c.secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + timestamp + "."))
		mac.Write(body)
		out = append(out, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(out, " ")
}

var errGone = errors.New("the receiver answered 410: it wants no more calls")

// call makes one call.
func (c *caller) call(ctx context.Context, target, id string, body []byte) error {
	if err := c.permits(target); err != nil {
		return err // the configuration has changed
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "fournines")
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", timestamp)
	req.Header.Set("Webhook-Signature", c.sign(id, timestamp, body))
	resp, err := c.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // without the address, which may hold a secret
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return nil
	case resp.StatusCode == http.StatusGone:
		return errGone
	}
	return fmt.Errorf("the receiver answered %d", resp.StatusCode)
}

// hookBody is what a call carries.
type hookBody struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"`
	Data      Status `json:"data"`
}

// callSoon makes the call that is due for a job, in a goroutine of its own, when
// there is room.
func (l *Lane) callSoon(ctx context.Context, id string) {
	set := l.settings.Load()
	if set.webhook == nil {
		return
	}
	select {
	case l.hookSlots <- struct{}{}:
	default:
		return // the next sweep
	}
	r, err := l.store.run(ctx, hookTakeScript, id, "", (set.webhook.timeout + settleTry).Milliseconds())
	if err != nil || r.word != "ok" || !l.begin() {
		<-l.hookSlots
		return
	}
	queue, _ := queueOf(id)
	rec, err := r.record(queue, id, 0)
	go func() {
		defer l.runs.Done()
		defer func() { <-l.hookSlots }()
		if err == nil {
			err = l.callFor(context.WithoutCancel(ctx), set, rec)
		}
		l.called(context.WithoutCancel(ctx), set, rec, err)
	}()
}

func (l *Lane) callFor(ctx context.Context, set *settings, rec *record) error {
	target, err := set.seal.box(rec.id).open(rec.hook, labelHook)
	if err != nil {
		return err
	}
	data := l.status(set, rec, true)
	data.Webhook = nil
	if len(data.Result) > maxHookResult {
		data.Result = nil
	}
	body, err := json.Marshal(hookBody{"job." + string(rec.state), rec.finished.UTC().Format(time.RFC3339), data})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, set.webhook.timeout)
	defer cancel()
	// The same for each attempt, another one after a replay.
	return set.webhook.call(ctx, string(target), rec.id+"."+strconv.Itoa(rec.runs), body)
}

// called notes the outcome of a call.
func (l *Lane) called(ctx context.Context, set *settings, rec *record, err error) {
	outcome, text := "delivered", ""
	if err != nil {
		outcome, text = "again", err.Error()
		if rec.hookTries+1 >= set.webhook.attempts || errors.Is(err, errGone) || errors.Is(err, errSealed) {
			outcome = "dead"
		}
	}
	label := outcome
	if label == "again" {
		label = "failed"
	}
	l.m.hooks.WithLabelValues(label).Inc()
	if err != nil {
		l.log.Warn("webhook call failed", "job", rec.id, "outcome", label, "attempt", rec.hookTries+1, "err", err)
	}
	try, cancel := context.WithTimeout(ctx, settleTry)
	defer cancel()
	wait := backoff(hookPauseMin, hookPauseMax, 2*rec.hookTries)
	if _, err := l.store.runPatiently(try, hookEndScript, rec.id, "", outcome, text, wait.Milliseconds()); err != nil {
		l.log.Warn("outcome of a webhook call not stored, it will be made again", "job", rec.id, "err", err)
	}
}
